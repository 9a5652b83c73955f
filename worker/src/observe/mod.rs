//! What a run shows of itself: rates and phases, metrics, traces.

pub mod gauges;
pub mod meter;
pub mod metrics;
pub mod trace;
