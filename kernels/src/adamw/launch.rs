//! AdamW's kernel and how it is launched.
//!
//! Floor: memory; 30 bytes per parameter: weights, both moments and the gradient are read, weights and moments written, and two bytes for the
//! copy that forward passes read. Twenty operations per parameter are nothing beside them.
//!
//! Tiling: each unit updates two vectors of four, eight loads of 16 bytes in flight before the first result is needed. A range is one launch however
//! many tensors lie in it, as parameters, moments and gradients are flat buffers and a range shares its hyperparameters. Clip factor and
//! the flag that says whether all gradients are finite are read on the device: with the flag down nothing is written, and no step waits for the host.
//!
//! Considered: pointers of many tensors in one launch (what flat buffers make unnecessary); moments in bf16 (8 bytes less, another optimizer).

use super::Hyper;
use super::cube::adamw_step::AdamwStep;
use crate::compile::{self, CompileError, Emit, Launch, Scalar, Source, cubes, emit, offset};
use crate::parallel::round;

/// Units of a cube.
const UNITS: u32 = 256;
/// Vectors of four that a unit updates.
const VECTORS: usize = 2;

/// What decides the kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Elements of a vector: 4, or 1 where the range is no multiple of it.
    pub width: usize,
    /// Whether the weights' bf16 copy is written.
    pub copied: bool,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        format!("adamw_step_w{}{}", self.width, if self.copied { "_copy" } else { "" })
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(UNITS);
        emit!(
            e, name, AdamwStep: [weights m v gradient control copy]
            [keep step_size root_scale gain1 beta2 gain2 eps count],
            self.width, self.copied, VECTORS,
        )
    }
}

/// Buffers of one update, each of `count` elements; `copy` is what forward passes read.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<B> {
    /// Parameters, f32.
    pub weights: B,
    /// First moment, f32.
    pub m: B,
    /// Second moment, f32.
    pub v: B,
    /// Gradient, f32.
    pub gradient: B,
    /// Clip factor and finite flag, f32 (2).
    pub control: B,
    /// Where the updated weights go in bf16.
    pub copy: Option<B>,
}

/// One update of `count` parameters.
#[must_use]
pub fn step<B: Copy>(buffers: Buffers<B>, count: usize, hyper: Hyper) -> Vec<Launch<B>> {
    if count == 0 {
        return Vec::new();
    }
    let width = if count.is_multiple_of(4) { 4 } else { 1 };
    let (correction1, correction2) = hyper.bias_corrections();
    let vectors = count / width;
    let Buffers { weights, m, v, gradient, control, copy } = buffers;
    vec![Launch {
        kernel: compile::Kernel::Adamw(Kernel { width, copied: copy.is_some() }),
        cubes: [cubes(vectors, UNITS as usize * VECTORS), 1, 1],
        buffers: vec![weights, m, v, gradient, control, copy.unwrap_or(control)],
        scalars: vec![
            Scalar::F32(round(1.0 - hyper.lr * hyper.weight_decay)),
            Scalar::F32(round(hyper.lr / correction1)),
            Scalar::F32(round(1.0 / correction2.sqrt())),
            Scalar::F32(round(1.0 - hyper.beta1)),
            Scalar::F32(round(hyper.beta2)),
            Scalar::F32(round(1.0 - hyper.beta2)),
            Scalar::F32(round(hyper.eps)),
            Scalar::U32(offset(vectors)),
        ],
    }]
}
