//! The kernels of the global norm and their launches.
//!
//! Floor: memory, 4 bytes per parameter once (AdamW then reads the gradient again, 4 of its 30
//! bytes per parameter). Eight blocks per multiprocessor walk over the range with four numbers per
//! load. Every block writes one partial sum, and one block adds the partial sums of all ranges in
//! order. Factor and flag stay on the device, where AdamW reads them. Without atomics, every run
//! gives the same bits.

use super::cube::norm_control::NormControl;
use super::cube::norm_squares::NormSquares;
use crate::compile::{self, CompileError, Element, Emit, Launch, Scalar, Source, emit, offset};
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;
/// Largest number of blocks that share a range: eight for each of 132 multiprocessors, whose loads
/// in flight cover the latency of memory.
const CUBES: usize = 1056;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Computes partial sums of squares.
    Squares {
        /// Elements per vector, from [`Element::lanes`].
        lanes: usize,
    },
    /// Adds the partial sums, and computes the clip factor and the finite flag.
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

/// Number of partial sums that [`squares`] writes for a range of `count` numbers.
#[must_use]
pub fn parts(count: usize) -> usize {
    let lanes = Element::F32.lanes(count);
    (count / lanes).div_ceil(UNITS).min(CUBES)
}

/// Launches that write the partial sums of squares of `count` f32 numbers to `partials`: [`parts`]
/// of them, starting at index `first`.
///
/// # Errors
/// If the range is too long for 32-bit offsets.
pub fn squares<B: Copy>(x: B, partials: B, count: usize, first: usize) -> Result<Vec<Launch<B>>> {
    let lanes = Element::F32.lanes(count);
    // The loop of a thread exceeds the end by at most one round of all blocks.
    if count / lanes >= (1 << 32) - CUBES * UNITS {
        let needed = "must have fewer than 2^34 numbers, or fewer than 2^32 if 4 does not divide \
                      their count (32-bit offsets)";
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

/// Launch that adds `count` partial sums of all ranges. It writes Σ x² to `squared_sum`, f32 (1),
/// and clip factor and finite flag to `control`, f32 (2).
///
/// # Errors
/// If `max_norm` is not positive.
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
