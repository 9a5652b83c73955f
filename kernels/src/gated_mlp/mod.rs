//! The gate of a gated MLP: out = activation(gate) · up. One linear layer computes gate and up side
//! by side.
//!
//! # On a GPU
//!
//! Memory-bound: 3f elements per token forward, 5f backward, 16 bytes per thread, arithmetic in
//! f32.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

use crate::{Result, Stream, View, ViewMut, check};

/// Activation function of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activation {
    /// x · σ(x), used by Llama and Qwen.
    Silu,
    /// GELU in its tanh form, used by Gemma.
    GeluTanh,
}

/// Writes `activation(gate) · up` to `out` (n, f). Each row of `gate_up` (n, 2f) holds gate and
/// then up. Both tensors are f32, or on a GPU both may be bf16.
///
/// Source: Shazeer 2020 (arXiv 2002.05202), as `LlamaMLP` and `Gemma3MLP` of transformers.
///
/// # Errors
/// If shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, gated_mlp};
///
/// let (gate_up, mut out) = ([0.0, 50.0, 3.0, 2.0], [f32::NAN; 2]);
/// let gate_up = View::from_f32(&gate_up, &[1, 4]);
/// let out_view = ViewMut::from_f32(&mut out, &[1, 2]);
/// gated_mlp::forward(&Stream::Host, gate_up, gated_mlp::Activation::Silu, out_view)?;
/// assert_eq!(out, [0.0, 100.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    gate_up: View<'_>,
    activation: Activation,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "gated_mlp::forward";
    let [n, f] = check::rank(NAME, "out", out.shape())?;
    check::shape(NAME, "gate_up", gate_up.shape(), &[n, 2 * f])?;
    match stream {
        Stream::Host => {
            let gate_up = gate_up.host_f32(NAME, "gate_up")?;
            host::forward(gate_up, f, activation, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(gate_up.dtype(), "gate_up")?;
            let (gate_up, out) = (call.at(gate_up, "gate_up", e)?, call.at(out, "out", e)?);
            call.run(launch::forward(gate_up, out, activation, e, [n, f])?)?;
        }),
    }
    Ok(())
}

/// The gradient of [`forward`]: `d_gate` = `d_out`·up·activation′(gate) and `d_up` =
/// `d_out`·activation(gate), side by side in `d_gate_up` (n, 2f).
///
/// # Errors
/// If shapes or element types disagree.
pub fn backward(
    stream: &Stream,
    gate_up: View<'_>,
    activation: Activation,
    d_out: View<'_>,
    d_gate_up: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "gated_mlp::backward";
    let [n, f] = check::rank(NAME, "d_out", d_out.shape())?;
    check::shape(NAME, "gate_up", gate_up.shape(), &[n, 2 * f])?;
    check::shape(NAME, "d_gate_up", d_gate_up.shape(), &[n, 2 * f])?;
    match stream {
        Stream::Host => {
            let gate_up = gate_up.host_f32(NAME, "gate_up")?;
            let d_out = d_out.host_f32(NAME, "d_out")?;
            let d_gate_up = d_gate_up.host_f32_mut(NAME, "d_gate_up")?;
            host::backward(gate_up, f, activation, d_out, d_gate_up);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(gate_up.dtype(), "gate_up")?;
            let (gate_up, d_out) = (call.at(gate_up, "gate_up", e)?, call.at(d_out, "d_out", e)?);
            let d_gate_up = call.at(d_gate_up, "d_gate_up", e)?;
            call.run(launch::backward(gate_up, d_out, d_gate_up, activation, e, [n, f])?)?;
        }),
    }
    Ok(())
}
