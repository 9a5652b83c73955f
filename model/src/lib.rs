//! VL-JEPA as forward and backward over kernels. Never communicates, never reads a data set.
//!
//! [`VlJepa`] is the composition: an X-encoder turns frames into visual tokens, a predictor turns them and a query into a predicted
//! embedding, a Y-encoder turns the target text into its embedding (VL-JEPA, arXiv 2512.10942, §3). Each part has a `forward`
//! that says what it saves and a `backward` that uses it up; there is no tape. Recompute is calling `forward` again.
//!
//! Shapes in names: `b` rows of the batch, `n` packed tokens, `d` width of a model, `h` heads, `f` hidden width of an MLP, `e` width
//! of the shared embedding, `g` rows of the global batch.

mod error;
pub mod layers;
pub mod loss;
pub mod optimizer;
mod parameters;
pub mod predictor;
mod vl_jepa;
pub mod weights;
pub mod x_encoder;
pub mod y_encoder;

pub use error::ModelError;
pub use layers::{Embedded, Head, Sequence, TextModel};
pub use loss::{Alpha, Gathered, InfoNce, Objective, PairDistance, Statistics};
pub use optimizer::{AdamW, learning_rate_at};
pub use parameters::{
    Gradients, Group, Initial, Layout, LayoutBuilder, OnReady, Parameter, ParameterId, Parameters,
    Weight,
};
pub use predictor::Predictor;
pub use vl_jepa::VlJepa;
pub use x_encoder::{Visual, XEncoder};
pub use y_encoder::YEncoder;

use vljepa_kernels::{Arena, DType, Result, Stream, Tensor};
pub use vljepa_recipes::schema::Recompute;

/// What a forward pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be none.
    Nothing,
    /// What is needed, without what the policy computes again.
    Needed(Recompute),
}

impl Keep {
    /// Everything a backward pass reads.
    pub const EVERYTHING: Self = Self::Needed(Recompute::None);

    /// Whether a backward pass will follow.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::Nothing
    }

    /// The same where `wanted`, otherwise nothing.
    #[must_use]
    pub fn only_if(self, wanted: bool) -> Self {
        if wanted { self } else { Self::Nothing }
    }
}

/// What every operation of a step runs on and takes its memory from.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The queue operations are issued to.
    pub stream: &'a Stream,
    /// Where activations and their gradients come from, and go back to when dropped.
    pub arena: &'a Arena,
}

impl Context<'_> {
    /// A tensor of activations, f32 on the host and bf16 on a GPU, whose elements are undefined.
    ///
    /// # Errors
    /// When the arena's budget is spent.
    pub fn take(&self, shape: &[usize]) -> Result<Tensor> {
        self.arena.take(self.arena.device().activations(), shape)
    }

    /// An f32 tensor whose elements are undefined: statistics, and gradients of embeddings.
    ///
    /// # Errors
    /// When the arena's budget is spent.
    pub fn take_f32(&self, shape: &[usize]) -> Result<Tensor> {
        self.arena.take(DType::F32, shape)
    }
}
