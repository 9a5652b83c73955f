//! The kernels of cross-entropy and how they are launched.
//!
//! Floor: memory; 2·v bytes of bf16 per token forward, 4·v backward. Considered: both in one launch, which reads logits twice from L2 instead
//! of memory when a row stays there; forward alone is what an evaluation needs, and a chunk of 1,024 tokens (263 MB) does not stay.

use super::cube::cross_entropy_backward::CrossEntropyBackward;
use super::cube::cross_entropy_forward::CrossEntropyForward;
use crate::compile::{self, CompileError, Element, Emit, Launch, Scalar, Source, emit, offset};
use crate::{Result, check};

/// Units of a cube.
const UNITS: usize = 256;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Which pass.
    pub pass: Pass,
    /// Element type of the logits.
    pub element: Element,
    /// Elements of a vector.
    pub lanes: usize,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Losses and log-sum-exps.
    Forward,
    /// Logits into their gradient.
    Backward,
}

impl Kernel {
    /// The kernel of a vocabulary of `v` words.
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

/// A chunk of tokens.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<B> {
    /// (n, v): read, or turned into their gradient.
    pub logits: B,
    /// i32 (n), below v, negative for none.
    pub targets: B,
    /// f32 (n).
    pub lse: B,
    /// Element type of the logits.
    pub element: Element,
    /// n.
    pub tokens: usize,
    /// v.
    pub vocabulary: usize,
}

/// Losses, f32 (n), and log-sum-exps of a chunk.
///
/// # Errors
/// When there are more logits than 32-bit offsets count: take a smaller chunk.
pub fn forward<B: Copy>(chunk: Chunk<B>, losses: B) -> Result<Vec<Launch<B>>> {
    let buffers = vec![chunk.logits, chunk.targets, losses, chunk.lse];
    launch("cross_entropy::forward", chunk, Pass::Forward, buffers, vec![])
}

/// A chunk's logits into their gradient of `factor` · Σ losses.
///
/// # Errors
/// As [`forward`].
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
            "tokens times a vocabulary of {vocabulary} stay below 2^32 (32-bit offsets): take a smaller chunk"
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
