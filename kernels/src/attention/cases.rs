//! Shapes for the tests and benches of attention.

use super::{Dims, Mask};
use crate::{Device, Lengths};

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(super) dims: Dims,
    pub(crate) lengths: Vec<usize>,
    pub(crate) mask: Mask,
}

impl Case {
    pub(crate) fn lengths(&self) -> Lengths {
        let ends = self.lengths.iter().scan(0, |end, len| {
            *end += i32::try_from(*len).unwrap_or(0);
            Some(*end)
        });
        Lengths::new(Device::Host, std::iter::once(0).chain(ends).collect()).unwrap()
    }
}

fn case(
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mask: Mask,
    lengths: &[usize],
) -> Case {
    Case { dims: Dims { query_heads, kv_heads, head_dim }, lengths: lengths.to_vec(), mask }
}

/// No token at all, empty sequences, one token, sizes around tiles and vectors, grouped heads, and
/// every mask.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 4, Mask::Full, &[]),
        case(2, 1, 5, Mask::Full, &[0, 1, 0]),
        case(4, 2, 16, Mask::Full, &[16, 45, 33, 1, 17, 8, 9, 24, 31, 2]),
        case(4, 4, 16, Mask::Causal, &[45, 0, 64, 65, 3]),
        case(3, 1, 20, Mask::Window(5), &[17, 1, 4, 70]),
        case(3, 1, 18, Mask::Window(1), &[30]),
        case(2, 2, 64, Mask::Full, &[257, 128, 129]),
        case(6, 2, 8, Mask::Causal, &[257, 400]),
        case(2, 1, 12, Mask::Window(129), &[513]),
        case(1, 1, 7, Mask::Window(1000), &[300]),
    ]
}
