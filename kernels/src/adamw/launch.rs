//! AdamW's kernel and how it is launched.

use super::Hyper;
use super::cube::adamw_step::AdamwStep;
use crate::compile::{CompileError, Emit, Launch, Scalar, Source};
use crate::parallel::round;

/// Units of a cube.
const UNITS: u32 = 256;
/// Vectors of four that a unit updates.
const VECTORS: usize = 2;

/// What decides the kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Elements of a vector: 4, or 1 where the range is no multiple of it.
    pub width: usize,
    /// Whether the weights' bf16 copy is written.
    pub copied: bool,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        format!("adamw_step_w{}{}", self.width, if self.copied { "_copy" } else { "" })
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(UNITS);
        let b = || e.buffer();
        let kernel = AdamwStep::new(
            e.settings(), e.properties(), e.target(),
            b(), b(), b(), b(), b(), b(),
            (), (), (), (), (), (), (), (),
            self.width, self.copied, VECTORS,
        );
        e.emit(name, &kernel)
    }
}
