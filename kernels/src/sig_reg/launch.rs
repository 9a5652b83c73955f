//! The kernels of `SIGReg` and their launches.
//!
//! Floor: arithmetic, about 60 operations for a projection of 4 bytes. The 128 rows of a rank on
//! 1,024 directions take less than a launch; 24,576 rows on one GPU take 0.1 ms.
//!
//! Tiling: a thread takes one direction, so a warp reads 128 bytes of a row of projections, and the
//! sums stay in registers. Up to 64 blocks share the rows of a direction. Each writes 16 sums for
//! each direction, and the launch of `column_sums` adds them in a fixed order.

use super::cube::sig_reg_coefficients::SigRegCoefficients;
use super::cube::sig_reg_gradients::SigRegGradients;
use super::cube::sig_reg_sums::SigRegSums;
use super::{KNOTS, turns};
use crate::column_sums::launch::total;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 128;
/// Fewest rows that a block takes, unless there are fewer.
const ROWS: usize = 32;
/// Largest number of blocks that share the rows of a direction.
const PARTS: usize = 64;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Sums cosines and sines over rows.
    Sums,
    /// Replaces sums by coefficients.
    Coefficients,
    /// Computes the gradients of projections.
    Gradients {
        /// Element type of the gradients.
        element: Element,
    },
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Sums => "sig_reg_sums".to_owned(),
            Self::Coefficients => "sig_reg_coefficients".to_owned(),
            Self::Gradients { element } => format!("sig_reg_gradients_{}", element.name()),
        }
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self {
            Self::Gradients { element: Element::Bf16 } => self.emit_as::<half::bf16>(name),
            Self::Sums | Self::Coefficients | Self::Gradients { element: Element::F32 } => {
                self.emit_as::<f32>(name)
            }
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let (e, knots) = (Emit::new(offset(UNITS)), offset(KNOTS));
        match self {
            Self::Sums => emit!(
                e, name, SigRegSums: [projections partial] [turns rows directions rows_of_part], knots,
            ),
            Self::Coefficients => emit!(
                e, name, SigRegCoefficients: [sums terms] [global factor directions], knots,
            ),
            Self::Gradients { .. } => emit!(
                e, name, SigRegGradients::<F>:
                [projections coefficients out] [turns rows directions rows_of_part], knots,
            ),
        }
    }

    /// Launch over the projections (rows, directions) in [`parts`] shares of the rows.
    fn launch<B>(self, buffers: Vec<B>, [rows, directions]: [usize; 2]) -> Launch<B> {
        let parts = parts(rows);
        let integers = [rows, directions, rows.div_ceil(parts)].map(|n| Scalar::U32(offset(n)));
        Launch {
            kernel: compile::Kernel::SigReg(self),
            cubes: [cubes(directions, UNITS), offset(parts), 1],
            buffers,
            scalars: [Scalar::F32(turns())].into_iter().chain(integers).collect(),
        }
    }
}

/// Number of blocks that share `rows` rows.
fn parts(rows: usize) -> usize {
    rows.div_ceil(ROWS).clamp(1, PARTS)
}

/// Number of f32 elements in the workspace of [`add_sums`].
#[must_use]
pub fn workspace(rows: usize, directions: usize) -> usize {
    parts(rows) * 2 * KNOTS * directions
}

/// Launches that add the sums over the rows of projections, f32 (b, m), to sums, f32 (2·[`KNOTS`],
/// m). The second buffer has as many f32 elements as [`workspace`] says.
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn add_sums<B: Copy>(
    [projections, partial, sums]: [B; 3],
    shape @ [rows, directions]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    check_size("sig_reg::add_sums", shape)?;
    if rows * directions == 0 {
        return Ok(Vec::new());
    }
    let first = Kernel::Sums.launch(vec![projections, partial], shape);
    Ok(vec![first, total(partial, sums, parts(rows), 2 * KNOTS * directions)])
}

/// Launch that replaces sums, f32 (2·[`KNOTS`], m), over `global` rows by coefficients, and writes
/// terms, f32 (m).
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn coefficients<B>(
    buffers: [B; 2],
    global: f32,
    factor: f32,
    directions: usize,
) -> Result<Vec<Launch<B>>> {
    check_size("sig_reg::coefficients", [1, directions])?;
    if directions == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::SigReg(Kernel::Coefficients),
        cubes: [cubes(directions, UNITS), 1, 1],
        buffers: buffers.into(),
        scalars: vec![Scalar::F32(global), Scalar::F32(factor), Scalar::U32(offset(directions))],
    }])
}

/// Launch that writes the gradients (b, m) of projections, f32 (b, m), with coefficients, f32
/// (2·[`KNOTS`], m).
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn gradients<B>(
    buffers: [B; 3],
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    check_size("sig_reg::gradients", shape)?;
    if shape.contains(&0) {
        return Ok(Vec::new());
    }
    Ok(vec![Kernel::Gradients { element }.launch(buffers.into(), shape)])
}

/// Checks projections and partial sums against 32-bit offsets.
fn check_size(operation: &'static str, [rows, directions]: [usize; 2]) -> Result<()> {
    check::numbered(operation, "rows", rows, directions)?;
    check::numbered(operation, "directions", directions, PARTS * 2 * KNOTS)
}
