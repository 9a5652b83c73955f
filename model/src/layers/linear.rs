//! A linear map with an optional bias.

use vljepa_kernels::{Result, View, ViewMut, Write, linear};

use crate::{Context, Gradients, Initial, LayoutBuilder, Parameters, Weight};

/// out = x·Wᵀ + b.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// (outputs, inputs).
    pub weight: Weight,
    /// (outputs).
    pub bias: Option<Weight>,
}

impl Linear {
    /// Registers `<name>.weight` (outputs, inputs), drawn as the recipe's initialisation says, and `<name>.bias` of zeros.
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

    /// Width of the output.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Width of the input.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// out (n, outputs) [+]= x (n, inputs)·Wᵀ + b.
    ///
    /// # Errors
    /// When shapes disagree.
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

    /// out (n, outputs) = residual (n, outputs) + x (n, inputs)·Wᵀ + b, in another tensor than the
    /// residual.
    ///
    /// # Errors
    /// When shapes disagree.
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

    /// Adds to the gradients of weight and bias: dW += d_outᵀ·x, db += Σ d_out.
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn backward_weight(
        &self,
        cx: Context<'_>,
        x: View<'_>,
        d_out: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (d_weight, d_bias) = match &self.bias {
            None => (gradients.of(&self.weight), None),
            Some(bias) => {
                let (d_weight, d_bias) = gradients.pair(&self.weight, bias);
                (d_weight, Some(d_bias))
            }
        };
        linear::backward_weight(cx.stream, x, d_out, d_weight, d_bias)
    }

    /// `d_x` (n, inputs) [+]= `d_out` (n, outputs)·W.
    ///
    /// # Errors
    /// When shapes disagree.
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
