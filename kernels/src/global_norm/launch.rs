//! The kernels of the global norm and how they are launched.
//!
//! Floor: memory; 4 bytes per parameter, once (AdamW reads the gradient again: 1.4 of its 30 GB). Two cubes per multiprocessor walk over the
//! range, four numbers per load; every cube leaves one partial sum, and one cube adds those of all ranges in their order. Nothing goes through the
//! host: AdamW reads factor and flag on the device. No atomics: the same bits in every run.

use super::cube::norm_control::NormControl;
use super::cube::norm_squares::NormSquares;
use crate::compile::{self, CompileError, Element, Emit, Launch, Scalar, Source, emit, offset};
use crate::{Result, check};

/// Units of a cube.
const UNITS: usize = 256;
/// Cubes that share a range: two for each of 132 multiprocessors.
const CUBES: usize = 264;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Partial sums of squares.
    Squares {
        /// Elements of a vector.
        lanes: usize,
    },
    /// Their sum, the clip factor and the finite flag.
    Control,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Squares { lanes } => format!("global_norm_squares_w{lanes}"),
            Self::Control => "global_norm_control".to_owned(),
        }
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(UNITS));
        let planes = UNITS / 32;
        match self {
            Self::Squares { lanes } => {
                emit!(e, name, NormSquares: [x partials] [count first], lanes, lanes, planes)
            }
            Self::Control => emit!(
                e, name, NormControl: [partials squared_sum control] [max_norm count], planes,
            ),
        }
    }
}

/// Partial sums that [`squares`] leaves for a range of `count` numbers.
#[must_use]
pub fn parts(count: usize) -> usize {
    let lanes = Element::F32.lanes(count);
    (count / lanes).div_ceil(UNITS).min(CUBES)
}

/// Partial sums of squares of a range of `count` f32 into `partials`, [`parts`] of them from `first` on.
///
/// # Errors
/// When 32-bit offsets do not count the range.
pub fn squares<B: Copy>(x: B, partials: B, count: usize, first: usize) -> Result<Vec<Launch<B>>> {
    let lanes = Element::F32.lanes(count);
    // Units step over the end by at most one round of all cubes.
    if count / lanes >= (1 << 32) - CUBES * UNITS {
        let needed =
            "numbers stay below 2^34, or 2^32 where 4 does not divide them (32-bit offsets)";
        return Err(check::value("global_norm::squares", "x", count.to_string(), needed));
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::GlobalNorm(Kernel::Squares { lanes }),
        cubes: [offset(parts(count)), 1, 1],
        buffers: vec![x, partials],
        scalars: vec![Scalar::U32(offset(count / lanes)), Scalar::U32(offset(first))],
    }])
}

/// From `count` partial sums of all ranges: Σ x² into `squared_sum`, f32 (1), clip factor and finite flag into `control`, f32 (2).
///
/// # Errors
/// When `max_norm` is not positive.
pub fn control<B: Copy>(
    partials: B,
    squared_sum: B,
    control: B,
    count: usize,
    max_norm: f32,
) -> Result<Launch<B>> {
    if max_norm.is_nan() || max_norm <= 0.0 {
        let needed = "must be positive (infinite: never clip)";
        return Err(check::value("global_norm::control", "max_norm", max_norm.to_string(), needed));
    }
    Ok(Launch {
        kernel: compile::Kernel::GlobalNorm(Kernel::Control),
        cubes: [1, 1, 1],
        buffers: vec![partials, squared_sum, control],
        scalars: vec![Scalar::F32(max_norm), Scalar::U32(offset(count))],
    })
}
