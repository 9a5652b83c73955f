//! The kernel of AdamW and its launch.
//!
//! Floor: memory, 30 bytes per parameter. The kernel reads weights, both moments and the gradient,
//! and writes weights, moments and the 2-byte copy that forward passes read. Twenty operations per
//! parameter are negligible beside that.
//!
//! Tiling: each thread updates two vectors of four elements, so that eight 16-byte loads are in
//! flight before the first result is needed. A range is one launch, no matter how many tensors it
//! contains, because parameters, moments and gradients are flat buffers and the range shares its
//! hyperparameters. The kernel reads the clip factor and the finite flag on the device: if the flag
//! is 0 it writes nothing, and no step waits for the host.
//!
//! Alternatives considered: pointers to many tensors in one launch (flat buffers make them
//! unnecessary); moments in bf16 (8 bytes less, but another optimizer).

use super::Hyper;
use super::cube::adamw_step::AdamwStep;
use crate::compile::{self, CompileError, Emit, Launch, Scalar, Source, cubes, emit, offset};
use crate::parallel::round;

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: u32 = 256;
/// Vectors that one thread updates.
const VECTORS: usize = 2;

/// Key of the kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Elements per vector: 4, or 1 if 4 does not divide the length of the range.
    pub width: usize,
    /// Whether the kernel also writes a bf16 copy of the weights.
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

/// Buffers of one update, each of `count` elements except `control`.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<B> {
    /// Parameters in f32, read and written.
    pub weights: B,
    /// First moment in f32, read and written.
    pub m: B,
    /// Second moment in f32, read and written.
    pub v: B,
    /// Gradient in f32, only read.
    pub gradient: B,
    /// Clip factor and finite flag, f32 (2).
    pub control: B,
    /// Destination of the updated weights in bf16, which forward passes read.
    pub copy: Option<B>,
}

/// Launch of one update of `count` parameters; empty if `count` is 0.
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
