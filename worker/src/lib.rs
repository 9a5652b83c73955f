//! Training worker: one process per device, which runs one job of a recipe. This is the only crate
//! that communicates between ranks. It does not know Slurm.
//!
//! A job starts in [`job`]. To follow training, read [`training::train`], then [`training::step`].

pub mod checkpoint;
pub mod collectives;
#[cfg(feature = "cuda")]
pub mod compile;
pub mod engine;
pub mod error;
pub mod evaluation;
pub mod inference;
pub mod initial;
pub mod inputs;
pub mod job;
mod latency;
mod log;
mod measurement;
pub mod observe;
pub mod rank;
pub mod rates;
#[cfg(feature = "cuda")]
pub mod rehearsal;
pub mod score;
pub mod sets;
pub mod sharding;
mod stream;
mod table;
#[cfg(test)]
mod testing;
pub mod training;
pub mod weights;
