//! AdamW optimizer and learning-rate schedule.

mod adamw;
mod learning_rate;

pub use adamw::AdamW;
pub use learning_rate::learning_rate_at;
