//! MLP of a transformer block: plain or gated.

use vljepa_kernels::{Result, Tensor, View, Write, activation, gated_mlp};

use super::Linear;
use crate::{Context, Gradients, Parameters};

/// Activation between the two linear maps of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// act(up(x)) (V-JEPA 2, SONAR).
    Plain(activation::Activation),
    /// act(gate(x)) · up(x), with gate and up fused into one map of twice the width (Llama, Gemma).
    Gated(gated_mlp::Activation),
}

/// MLP: down(activation(up(x))).
#[derive(Debug, Clone, Copy)]
pub struct Mlp {
    /// Map to the hidden width, (f, d), or the fused map [gate | up], (2f, d).
    pub up: Linear,
    /// Map back to the model width, (d, f).
    pub down: Linear,
    /// Activation between `up` and `down`.
    pub activation: Activation,
}

/// State that [`Mlp::backward`] consumes.
#[derive(Debug)]
pub struct MlpSaved {
    /// Input of the activation, (n, f) or (n, 2f).
    hidden: Tensor,
    /// Result of the activation, (n, f).
    activated: Tensor,
}

impl Mlp {
    /// Activation of `up(x)` for x (n, d). The caller applies the `down` map.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
    ) -> Result<MlpSaved> {
        let n = x.shape()[0];
        let mut hidden = cx.take(&[n, self.up.outputs()])?;
        self.up.forward(cx, parameters, x, Write::Set, hidden.view_mut())?;
        let mut activated = cx.take(&[n, self.down.inputs()])?;
        let out = activated.view_mut();
        match self.activation {
            Activation::Plain(kind) => activation::forward(cx.stream, hidden.view(), kind, out)?,
            Activation::Gated(kind) => gated_mlp::forward(cx.stream, hidden.view(), kind, out)?,
        }
        Ok(MlpSaved { hidden, activated })
    }

    /// Gradient of x (n, d), given `d_out` (n, d), the gradient of the `down` map's result. Adds to
    /// the gradients of both maps.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        saved: MlpSaved,
        d_out: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let MlpSaved { hidden, activated } = saved;
        self.down.backward_weight(cx, activated.view(), d_out, gradients)?;
        // The gradient of the activation overwrites the activation, whose value has been used.
        let mut d_activated = activated;
        self.down.backward_input(cx, parameters, d_out, Write::Set, d_activated.view_mut())?;
        let mut d_hidden = cx.take(hidden.shape())?;
        let (before, d_out) = (hidden.view(), d_activated.view());
        match self.activation {
            Activation::Plain(kind) => {
                activation::backward(cx.stream, before, kind, d_out, d_hidden.view_mut())?;
            }
            Activation::Gated(kind) => {
                gated_mlp::backward(cx.stream, before, kind, d_out, d_hidden.view_mut())?;
            }
        }
        drop((hidden, d_activated));
        self.up.backward_weight(cx, x, d_hidden.view(), gradients)?;
        let mut d_x = cx.take(x.shape())?;
        self.up.backward_input(cx, parameters, d_hidden.view(), Write::Set, d_x.view_mut())?;
        Ok(d_x)
    }

    /// Result of the activation (n, f), the input of the `down` map.
    #[must_use]
    pub fn activated(saved: &MlpSaved) -> View<'_> {
        saved.activated.view()
    }
}
