//! The kernels of cross-entropy and their launches.
//!
//! Floor: memory, 2·v bytes of bf16 per token forward and 4·v backward.
//!
//! Alternative considered: both passes in one launch, which reads the logits the second time from
//! L2 instead of memory if a row stays there. But an evaluation needs forward alone, and a chunk of
//! 1,024 tokens (263 MB) does not stay in L2.

use super::cube::cross_entropy_backward::CrossEntropyBackward;
use super::cube::cross_entropy_forward::CrossEntropyForward;
use crate::compile::{self, CompileError, Element, Emit, Launch, Scalar, Source, emit, offset};
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Pass that the kernel computes.
    pub pass: Pass,
    /// Element type of the logits.
    pub element: Element,
    /// Elements per vector, from [`Element::lanes`].
    pub lanes: usize,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Computes losses and log-sum-exps.
    Forward,
    /// Replaces the logits by their gradient.
    Backward,
}

impl Kernel {
    /// The kernel of `pass` for a vocabulary of `v` tokens.
    #[must_use]
    pub fn of(pass: Pass, element: Element, v: usize) -> Self {
        Self { pass, element, lanes: element.lanes(v) }
    }

    pub(crate) fn name(self) -> String {
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        };
        format!("cross_entropy_{pass}_w{}_{}", self.lanes, self.element.name())
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self.element {
            Element::F32 => self.emit_as::<f32>(name),
            Element::Bf16 => self.emit_as::<half::bf16>(name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(UNITS));
        match self.pass {
            Pass::Forward => emit!(
                e, name, CrossEntropyForward::<F>: [logits targets losses lse] [vectors],
                self.lanes, self.lanes, UNITS / 32,
            ),
            Pass::Backward => emit!(
                e, name, CrossEntropyBackward::<F>: [logits targets lse] [factor vectors],
                self.lanes, self.lanes,
            ),
        }
    }
}

/// Buffers and sizes of a chunk of tokens.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<B> {
    /// Logits (n, v), which backward replaces by their gradient.
    pub logits: B,
    /// Targets, i32 (n), below v; negative if a token has no target.
    pub targets: B,
    /// Log-sum-exps of the tokens, f32 (n).
    pub lse: B,
    /// Element type of the logits.
    pub element: Element,
    /// Number of tokens in the chunk (n).
    pub tokens: usize,
    /// Size of the vocabulary (v).
    pub vocabulary: usize,
}

/// Launches that write the losses, f32 (n), and the log-sum-exps of a chunk.
///
/// # Errors
/// If there are too many logits for 32-bit offsets; the caller must take a smaller chunk.
pub fn forward<B: Copy>(chunk: Chunk<B>, losses: B) -> Result<Vec<Launch<B>>> {
    let buffers = vec![chunk.logits, chunk.targets, losses, chunk.lse];
    launch("cross_entropy::forward", chunk, Pass::Forward, buffers, vec![])
}

/// Launches that replace the logits of a chunk by their gradient of `factor` · Σ losses.
///
/// # Errors
/// If there are too many logits for 32-bit offsets.
pub fn backward<B: Copy>(chunk: Chunk<B>, factor: f32) -> Result<Vec<Launch<B>>> {
    let buffers = vec![chunk.logits, chunk.targets, chunk.lse];
    let scalars = vec![Scalar::F32(factor)];
    launch("cross_entropy::backward", chunk, Pass::Backward, buffers, scalars)
}

fn launch<B: Copy>(
    operation: &'static str,
    chunk: Chunk<B>,
    pass: Pass,
    buffers: Vec<B>,
    mut scalars: Vec<Scalar>,
) -> Result<Vec<Launch<B>>> {
    let Chunk { element, tokens, vocabulary, .. } = chunk;
    if tokens.saturating_mul(vocabulary) >= 1 << 32 {
        let needed = format!(
            "tokens times a vocabulary of {vocabulary} must stay below 2^32 (32-bit offsets): \
             take a smaller chunk"
        );
        return Err(check::value(operation, "tokens", tokens.to_string(), needed));
    }
    if tokens == 0 || vocabulary == 0 {
        return Ok(Vec::new());
    }
    let kernel = Kernel::of(pass, element, vocabulary);
    scalars.push(Scalar::U32(offset(vocabulary / kernel.lanes)));
    Ok(vec![Launch {
        kernel: compile::Kernel::CrossEntropy(kernel),
        cubes: [offset(tokens), 1, 1],
        buffers,
        scalars,
    }])
}
