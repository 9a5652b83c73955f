//! Tensors on a device and the operations of VL-JEPA on them, forward and backward. Never reads a recipe, never communicates.
//!
//! One folder per operation: `mod.rs` (formula, shapes, errors; validates, then dispatches), `reference.rs` (plain Rust, the
//! definition of right), `host.rs` (only where the host needs a faster version), `cases.rs` (shapes, seeds, tolerances).
//!
//! Conventions. Activations and their gradients are written ([`Write::Set`]) unless the call says [`Write::Add`]; gradients
//! of parameters are always added to, so that micro-batches accumulate. Shapes in names: `b` rows of the batch, `n` packed
//! tokens, `d` model width, `h` query heads, `g` key/value heads, `f` hidden width of an MLP, `e` width of the shared embedding.

pub mod adamw;
pub mod attention;
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
pub mod gelu;
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
mod tensor;
pub mod testing;

pub use device::{Arena, Device, Stream};
pub use error::{KernelError, Result};
pub use packed::{Lengths, Packed};
pub use tensor::{DType, Shape, Tensor, View, ViewMut};

/// Whether an operation writes its output or adds to what stands there (β = 0 or 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// output = result.
    Set,
    /// output += result.
    Add,
}

impl Write {
    /// What stands in the output afterwards.
    #[inline]
    pub(crate) fn apply(self, stands: f32, result: f32) -> f32 {
        match self {
            Self::Set => result,
            Self::Add => stands + result,
        }
    }
}
