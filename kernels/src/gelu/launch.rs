//! GELU's kernels and how they are launched.
//!
//! Floor: memory; forward reads x and writes out, backward reads x and d_out and writes d_x: 2 and 3 passes. One 16-byte vector per unit: enough
//! loads in flight from 2,048 units of a multiprocessor. In a product's epilogue it would cost no pass at all; cuBLASLt has such an epilogue
//! for the tanh form only.

use super::Gelu;
use super::cube::gelu_backward::GeluBackward;
use super::cube::gelu_forward::GeluForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Units of a cube.
const UNITS: usize = 256;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether it is the gradient's.
    pub backward: bool,
    /// Which form.
    pub kind: Gelu,
    /// Element type.
    pub element: Element,
    /// Elements of a vector.
    pub lanes: usize,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let kind = match self.kind {
            Gelu::Erf => "erf",
            Gelu::Tanh => "tanh",
        };
        let pass = if self.backward { "backward" } else { "forward" };
        format!("gelu_{kind}_{pass}_w{}_{}", self.lanes, self.element.name())
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
            emit!(e, name, GeluBackward::<F>: [x d_out d_x] [count], self.lanes, self.kind)
        } else {
            emit!(e, name, GeluForward::<F>: [x out] [count], self.lanes, self.kind)
        }
    }
}

/// `out` = x·Φ(x) of `count` elements.
///
/// # Errors
/// When 32 bits do not number their vectors.
pub fn forward<B: Copy>(
    x: B,
    out: B,
    kind: Gelu,
    element: Element,
    count: usize,
) -> Result<Vec<Launch<B>>> {
    launch("gelu::forward", vec![x, out], false, kind, element, count)
}

/// `d_x` = `d_out` · d(x·Φ(x))/dx of `count` elements.
///
/// # Errors
/// As [`forward`].
pub fn backward<B: Copy>(
    x: B,
    d_out: B,
    d_x: B,
    kind: Gelu,
    element: Element,
    count: usize,
) -> Result<Vec<Launch<B>>> {
    launch("gelu::backward", vec![x, d_out, d_x], true, kind, element, count)
}

fn launch<B: Copy>(
    operation: &'static str,
    buffers: Vec<B>,
    backward: bool,
    kind: Gelu,
    element: Element,
    count: usize,
) -> Result<Vec<Launch<B>>> {
    let lanes = element.lanes(count);
    check::numbered(operation, "vectors of x", count / lanes, 1)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::Gelu(Kernel { backward, kind, element, lanes }),
        cubes: [cubes(count / lanes, UNITS), 1, 1],
        buffers,
        scalars: vec![Scalar::U32(offset(count / lanes))],
    }])
}
