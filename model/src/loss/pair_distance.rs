//! Distance of (predicted, target) pairs, averaged over the global batch.

use vljepa_kernels::distance::{self, Distance};
use vljepa_kernels::{Result, View};

use super::{EmbeddingGradients, gradients_of_distance, reciprocal};
use crate::Context;

/// Distance loss, which has no negatives (VL-JEPA Table 5c).
#[derive(Debug, Clone, Copy)]
pub struct PairDistance {
    /// Cosine, L1 or L2 distance.
    pub kind: Distance,
}

impl PairDistance {
    /// This rank's share of the mean distance over the `global` rows of all ranks. `predicted` and
    /// `target` hold this rank's rows, (b, e).
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn loss(
        &self,
        cx: Context<'_>,
        predicted: View<'_>,
        target: View<'_>,
        global: usize,
    ) -> Result<f64> {
        let sum = distance::forward(cx.stream, predicted, target, self.kind)?;
        Ok(sum * f64::from(reciprocal(global)))
    }

    /// Gradients of this rank's embeddings (b, e), with the same arguments as [`Self::loss`].
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        predicted: View<'_>,
        target: View<'_>,
        global: usize,
    ) -> Result<EmbeddingGradients> {
        gradients_of_distance(cx, [predicted, target], self.kind, reciprocal(global))
    }
}
