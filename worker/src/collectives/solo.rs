//! One process: every collective is the identity.

/// The data plane of a single process.
#[derive(Debug, Clone, Copy)]
pub struct Solo;
