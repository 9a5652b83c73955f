//! One process per device: runs one job of a recipe. The only crate that does collectives. Knows no Slurm.
//!
//! A job starts in [`session`], training reads top-down through [`train`] and [`step`].

pub mod checkpoint;
pub mod collectives;
#[cfg(feature = "cuda")]
pub mod compile;
pub mod control;
pub mod device;
pub mod embed;
pub mod engine;
pub mod environment;
pub mod error;
pub mod evaluation;
pub mod inference;
pub mod metrics;
pub mod optimize;
pub mod session;
pub mod step;
pub mod train;
