//! The kernels of L2 normalisation and their launches.
//!
//! Floor: memory, and the launches themselves: a rank's 128 rows of 1,536 elements are 0.4 MB. A
//! row is read twice, the second time from L1.

use super::cube::normalize_backward::NormalizeBackward;
use super::cube::normalize_forward::NormalizeForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Warps of a block, each of which takes one row.
const WARPS: usize = 8;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether the kernel computes the gradient.
    pub backward: bool,
    /// Element type of x, out and d_x.
    pub element: Element,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = if self.backward { "backward" } else { "forward" };
        format!("normalize_{pass}_{}", self.element.name())
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
        let e = Emit::new(offset(WARPS * 32));
        if self.backward {
            emit!(e, name, NormalizeBackward::<F>: [out norm d_out d_x] [rows width])
        } else {
            emit!(e, name, NormalizeForward::<F>: [x out norm] [eps rows width])
        }
    }
}

/// Launch for `out` (b, e) = x / max(‖x‖, eps), and `norm`, f32 (b), for [`backward`].
///
/// # Errors
/// When the elements are too many for 32-bit offsets.
pub fn forward<B: Copy>(
    [x, out, norm]: [B; 3],
    eps: f32,
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let scalars = vec![Scalar::F32(eps)];
    launch(
        "normalize::forward",
        Kernel { backward: false, element },
        vec![x, out, norm],
        scalars,
        shape,
    )
}

/// Launch for `d_x` (b, e), from `out` and `norm` of [`forward`] and `d_out`, f32 (b, e).
///
/// # Errors
/// Same as [`forward`].
pub fn backward<B: Copy>(
    [out, norm, d_out, d_x]: [B; 4],
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let buffers = vec![out, norm, d_out, d_x];
    launch("normalize::backward", Kernel { backward: true, element }, buffers, vec![], shape)
}

fn launch<B: Copy>(
    operation: &'static str,
    kernel: Kernel,
    buffers: Vec<B>,
    mut scalars: Vec<Scalar>,
    [b, e]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    if b.saturating_mul(e) >= 1 << 32 {
        let needed = format!("rows times a width of {e} must stay below 2^32 (32-bit offsets)");
        return Err(check::value(operation, "rows", b.to_string(), needed));
    }
    if b * e == 0 {
        return Ok(Vec::new());
    }
    scalars.extend([Scalar::U32(offset(b)), Scalar::U32(offset(e))]);
    Ok(vec![Launch {
        kernel: compile::Kernel::Normalize(kernel),
        cubes: [cubes(b, WARPS), 1, 1],
        buffers,
        scalars,
    }])
}
