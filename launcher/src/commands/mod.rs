//! The commands of `vljepa-launch`, one file each.

mod call;
pub(crate) mod doctor;
pub(crate) mod jobs;
pub(crate) mod latency;
pub(crate) mod paper;
pub(crate) mod plan;
pub(crate) mod preflight;
pub(crate) mod programme;
pub(crate) mod reproduce;
pub(crate) mod score;
pub(crate) mod sets;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod stream;
pub(crate) mod train;
pub(crate) mod weights;
