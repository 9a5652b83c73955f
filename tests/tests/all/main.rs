//! What crosses crates: goldens, programs run as a user runs them, the workspace's rules.

mod architecture;
mod golden;
mod golden_step;
mod golden_text;
mod golden_x_encoder;
mod programs;
mod resume;
mod tiny;
mod user_errors;
mod world_size;
