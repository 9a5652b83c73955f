//! One process: every collective is the identity.

/// Backend of a single process, which exchanges nothing.
#[derive(Debug, Clone, Copy)]
pub struct Solo;
