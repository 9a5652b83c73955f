//! What the three encoders are built of. Each layer says what its forward pass saves and uses that up in its backward pass.
//!
//! Gradients of activations flow through one tensor (n, d) per stack: the residual stream's, to which every branch adds its own.

mod attention;
mod block;
mod head;
mod linear;
mod mlp;
mod norm;
mod rotary;
mod stack;
mod text_model;

pub use attention::{Attention, AttentionSaved, HeadNorms};
pub use block::{Block, BlockSaved};
pub use head::{Embedded, Head, HeadSaved};
pub use linear::Linear;
pub use mlp::{Activation, Mlp, MlpSaved};
pub use norm::{Norm, NormSaved};
pub use rotary::Rotary;
pub use stack::{Sequence, Stack, StackSaved};
pub use text_model::TextModel;
