//! VL-JEPA's forward and backward passes, built on `vljepa_kernels`. This crate neither
//! communicates between ranks nor reads data sets.
//!
//! [`VlJepa`] combines three parts: the X-encoder maps frames to visual tokens, the predictor maps
//! visual tokens and a query to a predicted embedding, and the Y-encoder maps the target text to
//! its embedding (VL-JEPA, arXiv 2512.10942, §2 and §3.1). [`DualEncoder`] is a published pair of
//! encoders without a predictor, a baseline of the paper. [`YDecoder`] writes the text of an
//! embedding with a [`LanguageModel`]. [`Vlm`] is the paper's token-predicting baseline. Each part
//! has a `forward`, which returns the state that its `backward` consumes; there is no autograd
//! tape. To recompute activations, a backward pass calls `forward` again.
//!
//! Letters in shapes: `b` rows of the batch, `n` packed tokens, `d` width of a model, `h` heads,
//! `f` hidden width of an MLP, `e` width of the shared embedding, `g` rows of the global batch.

mod dual_encoder;
mod error;
mod group;
pub mod language_model;
pub mod layers;
pub mod loss;
pub mod optimizer;
mod parameters;
pub mod predictor;
pub mod transformers;
mod vl_jepa;
pub mod vlm;
pub mod weights;
pub mod x_encoder;
pub mod y_decoder;
pub mod y_encoder;

pub use dual_encoder::{DualEncoder, Tower};
pub use error::ModelError;
pub use group::Group;
pub use language_model::LanguageModel;
pub use layers::{Embedded, Head, Sequence, TextModel};
pub use loss::{Alpha, Gathered, InfoNce, Objective, PairDistance, SigReg, Statistics, VicReg};
pub use optimizer::{AdamW, learning_rate_at};
pub use parameters::{
    Gradients, Initial, Layout, LayoutBuilder, OnReady, Parameter, ParameterId, Parameters, Weight,
};
pub use predictor::Predictor;
pub use vl_jepa::VlJepa;
pub use vlm::Vlm;
pub use x_encoder::{Visual, XEncoder};
pub use y_decoder::YDecoder;
pub use y_encoder::YEncoder;

use vljepa_kernels::{Arena, DType, Result, Stream, Tensor};
pub use vljepa_recipes::schema::Recompute;

/// How much state a forward pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// No state, because no backward pass will follow.
    Nothing,
    /// The state that the backward pass reads, except for activations that the policy recomputes.
    Needed(Recompute),
}

impl Keep {
    /// All state that the backward pass reads; nothing is recomputed.
    pub const EVERYTHING: Self = Self::Needed(Recompute::None);

    /// Whether a backward pass will follow.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::Nothing
    }

    /// Returns `self` if `wanted` is true, otherwise [`Keep::Nothing`].
    #[must_use]
    pub fn only_if(self, wanted: bool) -> Self {
        if wanted { self } else { Self::Nothing }
    }
}

/// Stream and memory arena that all operations of a step use.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Stream on which operations are launched.
    pub stream: &'a Stream,
    /// Allocator of activations and their gradients. Their memory returns to the arena on drop.
    pub arena: &'a Arena,
}

impl Context<'_> {
    /// Allocates a tensor for activations, f32 on the host and bf16 on a GPU. Its elements are
    /// undefined.
    ///
    /// # Errors
    /// If the arena's budget is exhausted or the device runs out of memory.
    pub fn take(&self, shape: &[usize]) -> Result<Tensor> {
        self.arena.take(self.arena.device().activations(), shape)
    }

    /// Allocates an f32 tensor for statistics or gradients of embeddings. Its elements are
    /// undefined.
    ///
    /// # Errors
    /// If the arena's budget is exhausted or the device runs out of memory.
    pub fn take_f32(&self, shape: &[usize]) -> Result<Tensor> {
        self.arena.take(DType::F32, shape)
    }
}
