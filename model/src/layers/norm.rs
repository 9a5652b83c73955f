//! Layer norm (V-JEPA 2) and RMS norm (Llama, Gemma) behind one interface.

use vljepa_kernels::rms_norm::{self, Scale};
use vljepa_kernels::{Result, Tensor, View, ViewMut, Write, layer_norm};

use crate::{Context, Gradients, Initial, LayoutBuilder, Parameters, Weight};

/// Normalisation over the last dimension.
#[derive(Debug, Clone, Copy)]
pub enum Norm {
    /// Layer norm: (x − mean)/√(var + eps)·w + b (V-JEPA 2).
    Layer {
        /// Factor w of each element, (d).
        weight: Weight,
        /// Summand b of each element, (d).
        bias: Weight,
        /// Constant added to the variance.
        eps: f32,
    },
    /// RMS norm: x/√(mean(x²) + eps), times w (Llama) or times 1 + w (Gemma).
    Rms {
        /// Weight w of each element, (d).
        weight: Weight,
        /// Whether the factor is w or 1 + w.
        scale: Scale,
        /// Constant added to the mean square.
        eps: f32,
    },
}

/// Statistics of each row that [`Norm::backward`] reads.
#[derive(Debug)]
pub struct NormSaved {
    mean: Option<Tensor>,
    rstd: Tensor,
}

impl Norm {
    /// Registers a layer norm of width `d`, initialised to w = 1 and b = 0.
    pub fn layer(layout: &mut LayoutBuilder, name: &str, d: usize, eps: f32) -> Self {
        let weight = layout.add(format!("{name}.weight"), &[d], Initial::Constant(1.0));
        let bias = layout.add(format!("{name}.bias"), &[d], Initial::Constant(0.0));
        Self::Layer { weight, bias, eps }
    }

    /// Registers an RMS norm of width `d`, initialised so that the factor is 1.
    pub fn rms(layout: &mut LayoutBuilder, name: &str, d: usize, scale: Scale, eps: f32) -> Self {
        let neutral = match scale {
            Scale::Plain => 1.0,
            Scale::OnePlus => 0.0,
        };
        let weight = layout.add(format!("{name}.weight"), &[d], Initial::Constant(neutral));
        Self::Rms { weight, scale, eps }
    }

    /// Normalises x (n, d) into a new tensor.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
    ) -> Result<(Tensor, NormSaved)> {
        let mut out = cx.take(x.shape())?;
        let rows = x.shape()[0];
        let mut rstd = cx.take_f32(&[rows])?;
        let saved = match self {
            Self::Layer { weight, bias, eps } => {
                let mut mean = cx.take_f32(&[rows])?;
                layer_norm::forward(
                    cx.stream,
                    x,
                    parameters.of(weight),
                    parameters.of(bias),
                    *eps,
                    out.view_mut(),
                    mean.view_mut(),
                    rstd.view_mut(),
                )?;
                NormSaved { mean: Some(mean), rstd }
            }
            Self::Rms { weight, scale, eps } => {
                let (out, rstd_view) = (out.view_mut(), rstd.view_mut());
                rms_norm::forward(
                    cx.stream,
                    x,
                    parameters.of(weight),
                    *scale,
                    *eps,
                    out,
                    rstd_view,
                )?;
                NormSaved { mean: None, rstd }
            }
        };
        Ok((out, saved))
    }

    /// Computes the gradient of x, given `d_out` (n, d), and writes it to `d_x` (n, d) or adds it
    /// to `d_x`, as `write` says. Adds to the gradients of the norm's weights unless they are
    /// frozen.
    ///
    /// # Errors
    /// If shapes disagree.
    #[expect(clippy::too_many_arguments, reason = "one argument per operand of the formula")]
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        saved: &NormSaved,
        d_out: View<'_>,
        write: Write,
        d_x: ViewMut<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let rstd = saved.rstd.view();
        // The kernels compute the gradients of weights in any case. Those of frozen weights are
        // dropped.
        let d = x.shape()[1];
        let mut dropped = None;
        match (self, &saved.mean) {
            (Self::Layer { weight, bias, .. }, Some(mean)) => {
                let (d_weight, d_bias) = if weight.trainable() {
                    gradients.pair(weight, bias)
                } else {
                    let both = dropped.insert(cx.take_f32(&[2, d])?);
                    let (d_weight, d_bias) = both.view_mut().split_at(d);
                    (d_weight.part(0, &[d]), d_bias.part(0, &[d]))
                };
                let (weight, mean) = (parameters.of(weight), mean.view());
                layer_norm::backward(
                    cx.stream, x, weight, mean, rstd, d_out, write, d_x, d_weight, d_bias,
                )
            }
            (Self::Layer { .. }, None) => unreachable!("a layer norm saves its means"),
            (Self::Rms { weight, scale, .. }, _) => {
                let d_weight = if weight.trainable() {
                    gradients.of(weight)
                } else {
                    dropped.insert(cx.take_f32(&[d])?).view_mut()
                };
                let weight = parameters.of(weight);
                rms_norm::backward(cx.stream, x, weight, *scale, rstd, d_out, write, d_x, d_weight)
            }
        }
    }
}
