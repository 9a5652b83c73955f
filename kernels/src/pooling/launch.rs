//! The kernels of mean pooling and their launches.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit.
//!
//! Floor: memory. Forward reads n·d elements, backward writes them. A block takes one sequence and
//! 256 vectors of its width; each thread owns 16 bytes of a token and walks over the tokens, so
//! that neighbouring threads read neighbouring bytes and sums need no exchange. Offsets are read on
//! the device.

use super::cube::pooling_backward::PoolingBackward;
use super::cube::pooling_forward::PoolingForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block of every kernel here.
const THREADS: usize = 256;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether the kernel computes the gradient.
    pub backward: bool,
    /// Element type of activations and gradients.
    pub element: Element,
    /// Elements of a vector.
    pub lanes: usize,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = if self.backward { "backward" } else { "forward" };
        format!("pooling_{pass}_w{}_{}", self.lanes, self.element.name())
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
        let e = Emit::new(offset(THREADS));
        if self.backward {
            emit!(e, name, PoolingBackward::<F>: [d_out offsets d_x] [sequences tokens vectors], self.lanes)
        } else {
            emit!(e, name, PoolingForward::<F>: [x offsets out] [vectors], self.lanes)
        }
    }
}

/// Packed sequences of one call. The caller guarantees that no sequence is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// b: number of sequences.
    pub sequences: usize,
    /// n: number of rows, including rows after the last sequence.
    pub tokens: usize,
    /// d: elements of a row.
    pub width: usize,
}

/// Launch for `out` (b, d): means of the rows of `x` (n, d) between consecutive `offsets`, i32
/// (b + 1).
///
/// # Errors
/// When the vectors are too many for 32-bit numbers.
pub fn forward<B: Copy>(
    x: B,
    offsets: B,
    out: B,
    element: Element,
    sizes: Sizes,
) -> Result<Vec<Launch<B>>> {
    let vectors = check_sizes("pooling::forward", element, sizes)?;
    if sizes.sequences == 0 || vectors == 0 {
        return Ok(Vec::new());
    }
    let lanes = element.lanes(sizes.width);
    Ok(vec![Launch {
        kernel: compile::Kernel::Pooling(Kernel { backward: false, element, lanes }),
        cubes: [offset(sizes.sequences), cubes(vectors, THREADS), 1],
        buffers: vec![x, offsets, out],
        scalars: vec![Scalar::U32(offset(vectors))],
    }])
}

/// Launch for `d_x` (n, d) from `d_out` (b, d); rows after the last sequence become zero.
///
/// # Errors
/// Same as [`forward`].
pub fn backward<B: Copy>(
    d_out: B,
    offsets: B,
    d_x: B,
    element: Element,
    sizes: Sizes,
) -> Result<Vec<Launch<B>>> {
    let vectors = check_sizes("pooling::backward", element, sizes)?;
    if sizes.tokens == 0 || vectors == 0 {
        return Ok(Vec::new());
    }
    let lanes = element.lanes(sizes.width);
    Ok(vec![Launch {
        kernel: compile::Kernel::Pooling(Kernel { backward: true, element, lanes }),
        cubes: [offset(sizes.sequences + 1), cubes(vectors, THREADS), 1],
        buffers: vec![d_out, offsets, d_x],
        scalars: vec![
            Scalar::U32(offset(sizes.sequences)),
            Scalar::U32(offset(sizes.tokens)),
            Scalar::U32(offset(vectors)),
        ],
    }])
}

/// Checks that 32 bits can number all vectors, and returns the vectors of a row.
fn check_sizes(operation: &'static str, element: Element, sizes: Sizes) -> Result<usize> {
    let Sizes { sequences, tokens, width } = sizes;
    let vectors = width / element.lanes(width);
    check::numbered(operation, "tokens", tokens.max(sequences), vectors)?;
    Ok(vectors)
}
