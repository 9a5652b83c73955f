//! Training worker: one process per device, which runs one job of a recipe. This is the only crate
//! that communicates between ranks. It does not know Slurm.
//!
//! A job starts in [`session`]. To follow training, read [`train`], then [`step`].

pub mod checkpoint;
pub mod collectives;
#[cfg(feature = "cuda")]
pub mod compile;
pub(crate) mod connect;
pub mod control;
pub mod device;
pub mod drill;
pub mod embed;
pub mod engine;
pub mod environment;
pub mod error;
pub mod evaluation;
pub mod feed;
pub mod generation;
pub mod health;
pub mod inference;
pub mod meter;
pub mod metrics;
pub mod optimize;
#[cfg(feature = "cuda")]
pub mod rehearsal;
pub mod rendezvous;
pub mod session;
mod signals;
pub mod step;
pub mod trace;
pub mod train;
