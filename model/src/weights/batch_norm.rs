//! Batch norms, which are folded into the convolutions before them when weights are read.
//!
//! A batch norm with frozen statistics maps each channel x to γ·(x − μ)/√(σ² + ε) + β. After a
//! convolution with weight w and no bias, it is the same as the weight s·w and the bias β − s·μ,
//! with s = γ/√(σ² + ε).

use super::files::Tensors;
use crate::{ModelError, ParameterId};

/// Value added to the variance, the default of PyTorch's `BatchNorm2d`.
const EPS: f64 = 1e-5;

/// End of the name of the number of batches that a batch norm has seen. No model needs it.
pub(super) const COUNTER: &str = ".num_batches_tracked";

/// A batch norm that is folded into the weight before it and into a bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchNorm {
    /// Start of the published names of its vectors, such as `visual.bn1`.
    pub name: String,
    /// Number of channels.
    pub channels: usize,
    /// Parameter that holds the bias, (channels).
    pub bias: ParameterId,
}

/// What a batch norm does to its input.
pub(super) struct Folded {
    /// Factor s of each channel.
    pub scale: Vec<f64>,
    /// Bias β − s·μ of each channel.
    pub bias: Vec<f32>,
}

impl BatchNorm {
    /// Published names of γ, β, μ and σ².
    #[must_use]
    pub fn names(&self) -> [String; 4] {
        let vectors = ["weight", "bias", "running_mean", "running_var"];
        vectors.map(|vector| format!("{}.{vector}", self.name))
    }

    /// Reads the vectors that have these names in the file, and computes with them in f64.
    ///
    /// # Errors
    /// If the file cannot be read, or a variance is negative.
    pub(super) fn read(
        &self,
        tensors: &mut Tensors,
        names: &[String],
    ) -> Result<Folded, ModelError> {
        let mut vectors = [const { Vec::new() }; 4];
        for (vector, name) in vectors.iter_mut().zip(names) {
            tensors.read(name, |_, values| vector.extend(values.iter().copied().map(f64::from)))?;
        }
        let [weight, bias, mean, variance] = vectors;
        if let Some(channel) = variance.iter().position(|variance| *variance < 0.0) {
            let (name, value) = (&names[3], variance[channel]);
            let reason = format!(
                "{name} holds the variance {value} (element {channel}), which is negative; take \
                 the file from its source again"
            );
            return Err(ModelError::Format { path: tensors.path().to_owned(), reason });
        }
        let scale = weight.iter().zip(&variance).map(|(weight, v)| weight / (v + EPS).sqrt());
        let scale: Vec<f64> = scale.collect();
        #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
        let shifted = |((bias, scale), mean): ((&f64, &f64), &f64)| (bias - scale * mean) as f32;
        let bias = bias.iter().zip(&scale).zip(&mean).map(shifted).collect();
        Ok(Folded { scale, bias })
    }
}

impl Folded {
    /// Multiplies the weights of each channel, which are `weight`'s rows.
    pub(super) fn multiply(&self, weight: &mut [f32]) {
        let inputs = weight.len() / self.scale.len();
        for (row, scale) in weight.chunks_exact_mut(inputs).zip(&self.scale) {
            #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
            row.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
    }
}
