//! The normalisations of the three encoders behind one face.

use vljepa_kernels::rms_norm::{self, Scale};
use vljepa_kernels::{Result, Tensor, View, ViewMut, Write, layer_norm};

use crate::{Context, Gradients, Initial, LayoutBuilder, Parameters, Weight};

/// A normalisation over the last dimension.
#[derive(Debug, Clone, Copy)]
pub enum Norm {
    /// (x − mean)/√(var + eps)·w + b (V-JEPA 2).
    Layer {
        /// (d).
        weight: Weight,
        /// (d).
        bias: Weight,
        /// Added to the variance.
        eps: f32,
    },
    /// x/√(mean x² + eps), times w (Llama) or 1 + w (Gemma).
    Rms {
        /// (d).
        weight: Weight,
        /// w or 1 + w.
        scale: Scale,
        /// Added to the mean square.
        eps: f32,
    },
}

/// Statistics of each row that a backward pass needs.
#[derive(Debug)]
pub struct NormSaved {
    mean: Option<Tensor>,
    rstd: Tensor,
}

impl Norm {
    /// Registers a layer norm of width `d` that starts as the plain normalisation.
    pub fn layer(layout: &mut LayoutBuilder, name: &str, d: usize, eps: f32) -> Self {
        let weight = layout.add(format!("{name}.weight"), &[d], Initial::Constant(1.0));
        let bias = layout.add(format!("{name}.bias"), &[d], Initial::Constant(0.0));
        Self::Layer { weight, bias, eps }
    }

    /// Registers an RMS norm of width `d` that starts as the plain normalisation.
    pub fn rms(layout: &mut LayoutBuilder, name: &str, d: usize, scale: Scale, eps: f32) -> Self {
        let neutral = match scale {
            Scale::Plain => 1.0,
            Scale::OnePlus => 0.0,
        };
        let weight = layout.add(format!("{name}.weight"), &[d], Initial::Constant(neutral));
        Self::Rms { weight, scale, eps }
    }

    /// The normalised x (n, d), as a new tensor.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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

    /// `d_x` (n, d) [+]= the gradient through this norm of `d_out` (n, d); adds to the gradients of its weights.
    ///
    /// # Errors
    /// When shapes disagree.
    #[expect(clippy::too_many_arguments, reason = "what the formula reads and writes")]
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
        match (self, &saved.mean) {
            (Self::Layer { weight, bias, .. }, Some(mean)) => {
                let (d_weight, d_bias) = gradients.pair(weight, bias);
                let (weight, mean) = (parameters.of(weight), mean.view());
                layer_norm::backward(
                    cx.stream, x, weight, mean, rstd, d_out, write, d_x, d_weight, d_bias,
                )
            }
            (Self::Layer { .. }, None) => unreachable!("a layer norm saves its means"),
            (Self::Rms { weight, scale, .. }, _) => {
                let (weight, d_weight) = (parameters.of(weight), gradients.of(weight));
                rms_norm::backward(cx.stream, x, weight, *scale, rstd, d_out, write, d_x, d_weight)
            }
        }
    }
}
