//! The kernels of `VICReg` and their launches.
//!
//! Floor: memory. Centring reads and writes the embeddings of a rank, 0.4 MB each for 128 rows of
//! 1,536 in bf16. The weights read 9.4 MB and write 4.7 MB, 4 µs at 3.5 TB/s. One block computes a
//! row of weights, so the terms of a dimension need no second launch; the host adds those of all
//! dimensions.

use super::Factors;
use super::cube::vic_reg_centre::VicRegCentre;
use super::cube::vic_reg_weights::VicRegWeights;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Subtracts the mean of each column.
    Centre {
        /// Element type of the embeddings.
        element: Element,
    },
    /// Computes weights and terms.
    Weights {
        /// Element type of the weights.
        element: Element,
    },
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Centre { element } => format!("vic_reg_centre_{}", element.name()),
            Self::Weights { element } => format!("vic_reg_weights_{}", element.name()),
        }
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self {
            Self::Centre { element: Element::F32 } | Self::Weights { element: Element::F32 } => {
                self.emit_as::<f32>(name)
            }
            Self::Centre { .. } | Self::Weights { .. } => self.emit_as::<half::bf16>(name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(UNITS));
        match self {
            Self::Centre { .. } => {
                emit!(e, name, VicRegCentre::<F>: [x sums out] [inverse count width])
            }
            Self::Weights { .. } => emit!(
                e, name, VicRegWeights::<F>:
                [products weights terms] [inverse variance covariance width], UNITS / 32,
            ),
        }
    }
}

/// Launch that writes x (b, e) − sums (e) · `inverse` to out (b, e).
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn centre<B>(
    buffers: [B; 3],
    element: Element,
    inverse: f32,
    [rows, width]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    check::numbered("vic_reg::centre", "rows", rows, width)?;
    let count = rows * width;
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::VicReg(Kernel::Centre { element }),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers: buffers.into(),
        scalars: vec![Scalar::F32(inverse), Scalar::U32(offset(count)), Scalar::U32(offset(width))],
    }])
}

/// Launch that writes weights (e, e) and terms (e), from products (e, e).
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn weights<B>(
    buffers: [B; 3],
    element: Element,
    inverse: f32,
    factors: Factors,
    width: usize,
) -> Result<Vec<Launch<B>>> {
    check::numbered("vic_reg::weights", "dimensions", width, width)?;
    if width == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::VicReg(Kernel::Weights { element }),
        cubes: [offset(width), 1, 1],
        buffers: buffers.into(),
        scalars: vec![
            Scalar::F32(inverse),
            Scalar::F32(factors.variance),
            Scalar::F32(factors.covariance),
            Scalar::U32(offset(width)),
        ],
    }])
}
