//! What a run shows of itself: rates and phases, metrics, traces.

mod event_file;
pub mod gauges;
pub mod meter;
pub mod metrics;
pub mod trace;
