//! The optimizer and its learning rate.

mod adamw;
mod learning_rate;

pub use adamw::AdamW;
pub use learning_rate::learning_rate_at;
