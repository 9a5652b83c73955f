//! One rank: its number among the others, its device, its connection to the supervisor, its state.

pub(crate) mod connect;
pub mod control;
pub mod device;
pub mod drill;
pub mod environment;
pub mod generation;
#[cfg_attr(not(feature = "cuda"), path = "no_gpu.rs")]
pub(crate) mod gpu;
pub mod health;
pub(crate) mod limits;
pub mod rendezvous;
pub mod session;
pub(crate) mod signals;
pub mod sources;
