//! The kernels of mean pooling and how they are launched.
//!
//! Floor: memory; forward reads n·d elements, backward writes them. One cube per sequence and 256 vectors of its width; each unit owns 16
//! bytes of a token and walks over the tokens, so that neighbours read neighbouring bytes and sums need no exchange. Offsets are read on the device.

use super::cube::pooling_backward::PoolingBackward;
use super::cube::pooling_forward::PoolingForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Units of a cube.
const UNITS: usize = 256;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether it is the gradient's.
    pub backward: bool,
    /// Element type.
    pub element: Element,
    /// Elements of a vector.
    pub lanes: usize,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = if self.backward { "backward" } else { "forward" };
        format!("pooling_{pass}_w{}_{}", self.lanes, self.element.name())
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self.element {
            Element::F32 => self.emit_as::<f32>(name),
            Element::Bf16 => self.emit_as::<half::bf16>(name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(UNITS));
        if self.backward {
            emit!(e, name, PoolingBackward::<F>: [d_out offsets d_x] [sequences tokens vectors], self.lanes)
        } else {
            emit!(e, name, PoolingForward::<F>: [x offsets out] [vectors], self.lanes)
        }
    }
}

/// Packed sequences of one call. No sequence is empty: whoever makes the offsets checks that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// b.
    pub sequences: usize,
    /// n, with the rows behind the last sequence.
    pub tokens: usize,
    /// d.
    pub width: usize,
}

/// `out` (b, d): means of the rows of `x` (n, d) that `offsets`, i32 (b + 1), bound.
///
/// # Errors
/// When 32 bits do not number the vectors.
pub fn forward<B: Copy>(
    x: B,
    offsets: B,
    out: B,
    element: Element,
    sizes: Sizes,
) -> Result<Vec<Launch<B>>> {
    let vectors = check_sizes("pooling::forward", element, sizes)?;
    if sizes.sequences == 0 || vectors == 0 {
        return Ok(Vec::new());
    }
    let lanes = element.lanes(sizes.width);
    Ok(vec![Launch {
        kernel: compile::Kernel::Pooling(Kernel { backward: false, element, lanes }),
        cubes: [offset(sizes.sequences), cubes(vectors, UNITS), 1],
        buffers: vec![x, offsets, out],
        scalars: vec![Scalar::U32(offset(vectors))],
    }])
}

/// `d_x` (n, d) from `d_out` (b, d); zeros behind the last sequence.
///
/// # Errors
/// As [`forward`].
pub fn backward<B: Copy>(
    d_out: B,
    offsets: B,
    d_x: B,
    element: Element,
    sizes: Sizes,
) -> Result<Vec<Launch<B>>> {
    let vectors = check_sizes("pooling::backward", element, sizes)?;
    if sizes.tokens == 0 || vectors == 0 {
        return Ok(Vec::new());
    }
    let lanes = element.lanes(sizes.width);
    Ok(vec![Launch {
        kernel: compile::Kernel::Pooling(Kernel { backward: true, element, lanes }),
        cubes: [offset(sizes.sequences + 1), cubes(vectors, UNITS), 1],
        buffers: vec![d_out, offsets, d_x],
        scalars: vec![
            Scalar::U32(offset(sizes.sequences)),
            Scalar::U32(offset(sizes.tokens)),
            Scalar::U32(offset(vectors)),
        ],
    }])
}

/// Vectors of a row.
fn check_sizes(operation: &'static str, element: Element, sizes: Sizes) -> Result<usize> {
    let Sizes { sequences, tokens, width } = sizes;
    let vectors = width / element.lanes(width);
    check::numbered(operation, "tokens", tokens.max(sequences), vectors)?;
    Ok(vectors)
}
