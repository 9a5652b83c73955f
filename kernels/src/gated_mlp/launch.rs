//! The kernels of the gated MLP and their launches.
//!
//! Floor: memory. Forward reads 2f and writes f elements per token, backward reads 3f and writes
//! 2f. Each thread takes one 16-byte vector of gate and one of up. Backward computes activation and
//! derivative from one exponential; only gate and up are kept from the forward pass.

use super::Activation;
use super::cube::gated_mlp_backward::GatedMlpBackward;
use super::cube::gated_mlp_forward::GatedMlpForward;
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
    /// Activation function of the gate.
    pub activation: Activation,
    /// Element type of all buffers.
    pub element: Element,
    /// Elements per vector, from [`Element::lanes`].
    pub lanes: usize,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let activation = match self.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
        };
        let pass = if self.backward { "backward" } else { "forward" };
        format!("gated_{activation}_{pass}_w{}_{}", self.lanes, self.element.name())
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
        let (lanes, activation) = (self.lanes, self.activation);
        if self.backward {
            emit!(e, name, GatedMlpBackward::<F>: [gate_up d_out d_gate_up] [count vectors], lanes, activation)
        } else {
            emit!(e, name, GatedMlpForward::<F>: [gate_up out] [count vectors], lanes, activation)
        }
    }
}

/// Launches of `out` (n, f) = activation(gate)·up, from `gate_up` (n, 2f).
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn forward<B: Copy>(
    gate_up: B,
    out: B,
    activation: Activation,
    element: Element,
    [n, f]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    launch("gated_mlp::forward", vec![gate_up, out], false, activation, element, [n, f])
}

/// Launches that write the gradient of [`forward`] to `d_gate_up` (n, 2f).
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn backward<B: Copy>(
    gate_up: B,
    d_out: B,
    d_gate_up: B,
    activation: Activation,
    element: Element,
    [n, f]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let buffers = vec![gate_up, d_out, d_gate_up];
    launch("gated_mlp::backward", buffers, true, activation, element, [n, f])
}

fn launch<B: Copy>(
    operation: &'static str,
    buffers: Vec<B>,
    backward: bool,
    activation: Activation,
    element: Element,
    [n, f]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let lanes = element.lanes(f);
    check::numbered(operation, "rows", n, 2 * f / lanes)?;
    if n * f == 0 {
        return Ok(Vec::new());
    }
    let vectors = n * f / lanes;
    Ok(vec![Launch {
        kernel: compile::Kernel::GatedMlp(Kernel { backward, activation, element, lanes }),
        cubes: [cubes(vectors, UNITS), 1, 1],
        buffers,
        scalars: vec![Scalar::U32(offset(vectors)), Scalar::U32(offset(f / lanes))],
    }])
}

#[cfg(test)]
mod tests {
    use super::{Activation, Element, Scalar, forward};

    #[test]
    fn eighty_clips_of_32_frames_are_one_launch_and_what_32_bits_cannot_number_is_refused() {
        let launch = |n| forward((), (), Activation::Silu, Element::Bf16, [n, 8192]);
        let [launched] = &launch(80 * 4096).unwrap()[..] else { panic!("one launch") };
        assert_eq!(launched.scalars[0], Scalar::U32(80 * 4096 * 1024));
        // A row of `gate_up` has 2·f/8 vectors of 8 elements: 2,048.
        let most = (u32::MAX as usize - 1024) / 2048;
        assert!(launch(most).is_ok());
        let refused = launch(most + 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("at most {most} rows")), "{refused}");
    }
}
