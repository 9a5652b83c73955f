//! The kernels of distances and their launches.
//!
//! Floor: memory. Forward reads both embeddings, backward reads both and writes both gradients. The
//! 128 rows of 1,536 of a rank are 2 MB, so launches cost more than memory traffic. One warp
//! computes a row with its partial sum in registers; one block adds the distances of the rows in a
//! fixed order.

use super::Distance;
use super::cube::distance_backward::DistanceBackward;
use super::cube::distance_rows::DistanceRows;
use super::cube::distance_sum::DistanceSum;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::parallel::round;
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Computes the distance of each row.
    Rows {
        /// Kind of distance between rows.
        kind: Distance,
        /// Element type of the embeddings.
        element: Element,
    },
    /// Adds the distances of the rows.
    Sum,
    /// Computes the gradients of both sides.
    Backward {
        /// Kind of distance between rows.
        kind: Distance,
        /// Element type of the embeddings.
        element: Element,
    },
}

impl Distance {
    fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::L1 => "l1",
            Self::L2 => "l2",
        }
    }
}

impl Kernel {
    /// All kernels for one kind of distance.
    #[must_use]
    pub fn all(kind: Distance, element: Element) -> [Self; 3] {
        [Self::Rows { kind, element }, Self::Sum, Self::Backward { kind, element }]
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Rows { kind, element } => {
                format!("distance_{}_{}", kind.name(), element.name())
            }
            Self::Sum => "distance_sum".to_owned(),
            Self::Backward { kind, element } => {
                format!("distance_{}_backward_{}", kind.name(), element.name())
            }
        }
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self {
            Self::Rows { element: Element::F32, .. }
            | Self::Backward { element: Element::F32, .. }
            | Self::Sum => self.emit_as::<f32>(name),
            Self::Rows { .. } | Self::Backward { .. } => self.emit_as::<half::bf16>(name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(UNITS));
        match self {
            Self::Rows { kind, .. } => emit!(
                e, name, DistanceRows::<F>: [pred target out] [inverse_width rows width], kind,
            ),
            Self::Sum => emit!(e, name, DistanceSum: [values out] [count], UNITS / 32),
            Self::Backward { kind, .. } => emit!(
                e, name, DistanceBackward::<F>: [pred target d_pred d_target] [factor each count], kind,
            ),
        }
    }
}

/// Embeddings and sizes of one call.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<B> {
    /// Predicted embeddings (b, e).
    pub pred: B,
    /// Target embeddings (b, e).
    pub target: B,
    /// Element type of both embeddings.
    pub element: Element,
    /// Number of rows (b).
    pub rows: usize,
    /// Width of a row (e).
    pub width: usize,
}

/// Launches that write Σ distances to `out`, f32 (1). `distances`, f32 (b), is a workspace.
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn forward<B: Copy>(
    inputs: Inputs<B>,
    kind: Distance,
    distances: B,
    out: B,
) -> Result<Vec<Launch<B>>> {
    let Inputs { pred, target, element, rows, width } = inputs;
    check_size("distance::forward", rows, width)?;
    let each = Launch {
        kernel: compile::Kernel::Distance(Kernel::Rows { kind, element }),
        cubes: [cubes(rows, UNITS / 32), 1, 1],
        buffers: vec![pred, target, distances],
        scalars: vec![
            Scalar::F32(inverse(width)),
            Scalar::U32(offset(rows)),
            Scalar::U32(offset(width)),
        ],
    };
    let sum = Launch {
        kernel: compile::Kernel::Distance(Kernel::Sum),
        cubes: [1, 1, 1],
        buffers: vec![distances, out],
        scalars: vec![Scalar::U32(offset(rows))],
    };
    Ok(if rows == 0 { vec![sum] } else { vec![each, sum] })
}

/// Launches that write the gradients of `factor` · Σ distances, f32 (b, e) each.
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn backward<B: Copy>(
    inputs: Inputs<B>,
    kind: Distance,
    factor: f32,
    d_pred: B,
    d_target: B,
) -> Result<Vec<Launch<B>>> {
    let Inputs { pred, target, element, rows, width } = inputs;
    check_size("distance::backward", rows, width)?;
    let count = rows * width;
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::Distance(Kernel::Backward { kind, element }),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers: vec![pred, target, d_pred, d_target],
        scalars: vec![
            Scalar::F32(factor),
            Scalar::F32(factor * inverse(width)),
            Scalar::U32(offset(count)),
        ],
    }])
}

fn inverse(width: usize) -> f32 {
    round(1.0 / f64::from(offset(width.max(1))))
}

fn check_size(operation: &'static str, rows: usize, width: usize) -> Result<()> {
    if rows.saturating_mul(width) >= 1 << 32 || width >= 1 << 32 {
        let needed = format!("rows times width {width} must stay below 2^32 (32-bit offsets)");
        return Err(check::value(operation, "rows", rows.to_string(), needed));
    }
    Ok(())
}
