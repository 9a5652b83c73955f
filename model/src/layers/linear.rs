//! Linear map with an optional bias.

use vljepa_kernels::{Result, View, ViewMut, Write, linear};

use crate::{Context, Gradients, Initial, LayoutBuilder, Parameters, Weight};

/// Linear map: out = x·Wᵀ + b.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// Matrix W, (outputs, inputs).
    pub weight: Weight,
    /// Vector b, (outputs), or `None` if the map has no bias.
    pub bias: Option<Weight>,
}

impl Linear {
    /// Registers `<name>.weight` (outputs, inputs), initialised as the recipe asks, and, if `bias`
    /// is true, `<name>.bias` (outputs), initialised to zero.
    pub fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        [outputs, inputs]: [usize; 2],
        bias: bool,
    ) -> Self {
        let weight = layout.add_matrix(format!("{name}.weight"), [outputs, inputs]);
        let zeros = Initial::Constant(0.0);
        let bias = bias.then(|| layout.add(format!("{name}.bias"), &[outputs], zeros));
        Self { weight, bias }
    }

    /// Number of output features.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Number of input features.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Computes x·Wᵀ + b and writes it to `out` or adds it to `out`, as `write` says. Shapes: x
    /// (n, inputs), `out` (n, outputs).
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        write: Write,
        out: ViewMut<'_>,
    ) -> Result<()> {
        let bias = self.bias.as_ref().map(|b| parameters.of(b));
        linear::forward(cx.stream, x, parameters.of(&self.weight), bias, write, out)
    }

    /// Computes out = residual + x·Wᵀ + b, where `out` is a different tensor than `residual`.
    /// Shapes: x (n, inputs), `residual` and `out` (n, outputs).
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn forward_onto(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        residual: View<'_>,
        out: ViewMut<'_>,
    ) -> Result<()> {
        let bias = self.bias.as_ref().map(|b| parameters.of(b));
        linear::forward_onto(cx.stream, x, parameters.of(&self.weight), bias, residual, out)
    }

    /// Adds to the gradients of weight and bias: dW += d_outᵀ·x, db += Σ d_out. Does nothing if
    /// they are frozen.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn backward_weight(
        &self,
        cx: Context<'_>,
        x: View<'_>,
        d_out: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if !self.weight.trainable() {
            return Ok(());
        }
        let (d_weight, d_bias) = match &self.bias {
            None => (gradients.of(&self.weight), None),
            Some(bias) => {
                let (d_weight, d_bias) = gradients.pair(&self.weight, bias);
                (d_weight, Some(d_bias))
            }
        };
        linear::backward_weight(cx.stream, x, d_out, d_weight, d_bias)
    }

    /// Computes `d_out`·W and writes it to `d_x` or adds it to `d_x`, as `write` says. Shapes:
    /// `d_out` (n, outputs), `d_x` (n, inputs).
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn backward_input(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        d_out: View<'_>,
        write: Write,
        d_x: ViewMut<'_>,
    ) -> Result<()> {
        linear::backward_input(cx.stream, d_out, parameters.of(&self.weight), write, d_x)
    }
}
