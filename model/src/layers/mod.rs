//! Layers of the X-encoder, the predictor and the Y-encoder. The forward pass of a layer returns
//! the state that its backward pass consumes.
//!
//! A stack keeps one gradient tensor (n, d) for its residual stream, and every branch adds its
//! gradient to that tensor.

mod attention;
mod block;
mod cached;
mod head;
mod linear;
mod mlp;
mod norm;
mod plain;
mod rotary;
mod sinusoids;
mod stack;
mod text_model;

pub use attention::{Attention, AttentionSaved, HeadNorms};
pub use block::{Block, BlockSaved};
pub use cached::{Extension, Pool};
pub use head::{Embedded, Head, HeadSaved, Pooling};
pub use linear::Linear;
pub use mlp::{Activation, Mlp, MlpSaved};
pub use norm::{Norm, NormSaved};
pub(crate) use plain::Plain;
pub use rotary::Rotary;
pub use sinusoids::Sinusoids;
pub use stack::{Sequence, Stack, StackSaved};
pub use text_model::{LlamaSizes, Positions, SonarSizes, TextModel, Trained};
