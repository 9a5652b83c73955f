//! The MLP of a block: plain with GELU, or gated.

use vljepa_kernels::{Result, Tensor, View, Write, gated_mlp, gelu};

use super::Linear;
use crate::{Context, Gradients, Parameters};

/// What stands between the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// gelu(up x) (V-JEPA 2).
    Plain(gelu::Gelu),
    /// act(gate x) · (up x), gate and up fused in one map of twice the width (Llama, Gemma).
    Gated(gated_mlp::Activation),
}

/// down(activation(up x)).
#[derive(Debug, Clone, Copy)]
pub struct Mlp {
    /// (f, d), or [gate | up] (2f, d).
    pub up: Linear,
    /// (d, f).
    pub down: Linear,
    /// What stands between them.
    pub activation: Activation,
}

/// What [`Mlp::backward`] needs.
#[derive(Debug)]
pub struct MlpSaved {
    /// Before the activation: (n, f), or (n, 2f).
    hidden: Tensor,
    /// Behind it, (n, f).
    activated: Tensor,
}

impl Mlp {
    /// Everything before the `down` map, for x (n, d).
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
            Activation::Plain(kind) => gelu::forward(cx.stream, hidden.view(), kind, out)?,
            Activation::Gated(kind) => gated_mlp::forward(cx.stream, hidden.view(), kind, out)?,
        }
        Ok(MlpSaved { hidden, activated })
    }

    /// `d_x` (n, d) for `d_out` (n, d) behind the `down` map; adds to the gradients of both maps.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
        // The activation's own memory takes its gradient: its value is not needed any more.
        let mut d_activated = activated;
        self.down.backward_input(cx, parameters, d_out, Write::Set, d_activated.view_mut())?;
        let mut d_hidden = cx.take(hidden.shape())?;
        let (before, d_out) = (hidden.view(), d_activated.view());
        match self.activation {
            Activation::Plain(kind) => {
                gelu::backward(cx.stream, before, kind, d_out, d_hidden.view_mut())?;
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

    /// The activation of a forward pass, the `down` map's input (n, f).
    #[must_use]
    pub fn activated(saved: &MlpSaved) -> View<'_> {
        saved.activated.view()
    }
}
