//! The kernels of activations and their launches.
//!
//! Floor: memory. Forward reads x and writes out, backward reads x and d_out and writes d_x: 2 and
//! 3 passes over memory. Each thread takes one 16-byte vector; the 2,048 threads of a
//! multiprocessor keep enough loads in flight. In the epilogue of a product they would cost no
//! pass at all, but of the forms of GELU cuBLASLt has only the tanh form there.

use super::Activation;
use super::cube::activation_backward::ActivationBackward;
use super::cube::activation_forward::ActivationForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether the kernel computes the gradient.
    pub backward: bool,
    /// Function that the kernel applies or differentiates.
    pub kind: Activation,
    /// Element type of all buffers.
    pub element: Element,
    /// Elements per vector, from [`Element::lanes`].
    pub lanes: usize,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let kind = match self.kind {
            Activation::Gelu => "gelu_erf",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluQuick => "gelu_quick",
            Activation::Relu => "relu",
        };
        let pass = if self.backward { "backward" } else { "forward" };
        format!("{kind}_{pass}_w{}_{}", self.lanes, self.element.name())
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
        if self.backward {
            emit!(e, name, ActivationBackward::<F>: [x d_out d_x] [count], self.lanes, self.kind)
        } else {
            emit!(e, name, ActivationForward::<F>: [x out] [count], self.lanes, self.kind)
        }
    }
}

/// Launches of `out` = x·g(x) for `count` elements.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn forward<B: Copy>(
    x: B,
    out: B,
    kind: Activation,
    element: Element,
    count: usize,
) -> Result<Vec<Launch<B>>> {
    launch("activation::forward", vec![x, out], false, kind, element, count)
}

/// Launches of `d_x` = `d_out` · d(x·g(x))/dx for `count` elements.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn backward<B: Copy>(
    x: B,
    d_out: B,
    d_x: B,
    kind: Activation,
    element: Element,
    count: usize,
) -> Result<Vec<Launch<B>>> {
    launch("activation::backward", vec![x, d_out, d_x], true, kind, element, count)
}

fn launch<B: Copy>(
    operation: &'static str,
    buffers: Vec<B>,
    backward: bool,
    kind: Activation,
    element: Element,
    count: usize,
) -> Result<Vec<Launch<B>>> {
    let lanes = element.lanes(count);
    check::numbered(operation, "vectors of x", count / lanes, 1)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::Activation(Kernel { backward, kind, element, lanes }),
        cubes: [cubes(count / lanes, UNITS), 1, 1],
        buffers,
        scalars: vec![Scalar::U32(offset(count / lanes))],
    }])
}
