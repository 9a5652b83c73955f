//! Tensors on a device and the operations of VL-JEPA on them, forward and backward. This crate
//! never reads a recipe and never communicates.
//!
//! Each operation has a folder. `mod.rs` documents the formula, the shapes and the errors,
//! validates the arguments and dispatches; `reference.rs` is the plain Rust that defines the
//! correct result; `host.rs` exists where the host needs a faster version; `cube.rs` and
//! `launch.rs` hold the GPU kernels and their launches; `cases.rs` lists the shapes, seeds and
//! tolerances of the tests.
//!
//! Conventions. Activations and their gradients are overwritten ([`Write::Set`]) unless the call
//! says [`Write::Add`]; gradients of parameters are always added to, so that micro-batches
//! accumulate. Letters in shapes: `b` rows of the batch, `n` packed tokens, `d` model width, `h`
//! query heads, `g` key/value heads, `f` hidden width of an MLP, `e` width of the shared embedding.

/// The part of an operation that issues kernels to the GPU stream `$stream`. A build without the
/// feature `cuda` has neither kernels nor such a stream, and does not compile `$body`.
#[cfg(feature = "cuda")]
macro_rules! on_gpu {
    ($stream:ident, $body:block) => {
        $body
    };
}
#[cfg(not(feature = "cuda"))]
macro_rules! on_gpu {
    ($stream:ident, $body:block) => {
        $stream.never()
    };
}

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cached_attention;
mod check;
pub mod column_sums;
#[cfg(feature = "cuda")]
pub mod compile;
pub mod copy;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
mod cube;
pub mod device;
pub mod distance;
pub mod embedding;
mod error;
pub mod gated_mlp;
pub mod global_norm;
pub mod info_nce;
pub mod layer_norm;
#[cfg(feature = "cuda")]
pub mod library;
pub mod linear;
pub mod math;
pub mod normalize;
mod packed;
mod parallel;
pub mod patch_embed;
pub mod pooling;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sig_reg;
mod tensor;
pub mod testing;
pub mod vic_reg;

pub use device::{Arena, Device, Stream};
pub use error::{KernelError, Result};
pub use packed::{Lengths, Packed};
pub use tensor::{DType, Shape, Tensor, View, ViewMut};

/// Whether an operation overwrites its output or adds to it (β = 0 or 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// β = 0: output = result.
    Set,
    /// β = 1: output += result.
    Add,
}

impl Write {
    /// The value that the output holds after the operation: `result`, or `old + result`.
    #[inline]
    pub(crate) fn apply(self, old: f32, result: f32) -> f32 {
        match self {
            Self::Set => result,
            Self::Add => old + result,
        }
    }
}
