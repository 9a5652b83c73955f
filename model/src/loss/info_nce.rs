//! `InfoNCE` over the rows of all ranks (VL-JEPA §2): with the similarities s = α·P·Tᵀ, the loss is
//! the cross-entropy of the diagonal, averaged over both directions.

use std::ops::Range;

use vljepa_kernels::info_nce::{self, Batch};
use vljepa_kernels::{Result, Tensor, View, copy};

use super::EmbeddingGradients;
use crate::{Context, Gradients, Weight};

/// Bidirectional `InfoNCE` (VL-JEPA §2).
#[derive(Debug, Clone, Copy)]
pub struct InfoNce {
    /// Logarithm of α, the factor of the similarities.
    pub logit_scale: Weight,
    /// Whether rows with equal target texts are excluded from each other's negatives.
    pub mask_equal_targets: bool,
}

/// Factor α of the similarities in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alpha {
    /// exp(logit_scale), clamped to the recipe's `max_scale`.
    pub value: f32,
    /// Whether exp(logit_scale) exceeds `max_scale`.
    pub clamped: bool,
}

/// Embeddings of all ranks, and the range of rows that belongs to this rank.
#[derive(Debug, Clone)]
pub struct Gathered<'a> {
    /// Predicted embeddings P, (g, e).
    pub predicted: View<'a>,
    /// Target embeddings T, (g, e).
    pub target: View<'a>,
    /// Hashes of the target texts, u64 (g). Read only if equal targets are masked.
    pub hashes: Option<View<'a>>,
    /// Rows that belong to this rank.
    pub rows: Range<usize>,
}

/// Log-sum-exps of this rank's rows. The backward pass needs those of all ranks, so the caller
/// gathers them first.
#[derive(Debug)]
pub struct Statistics {
    /// Log-sum-exp r of each row of P over all rows of T, f32 (b).
    pub predicted_lse: Tensor,
    /// Log-sum-exp c of each row of T over all rows of P, f32 (b).
    pub target_lse: Tensor,
    /// Similarity s_ii of each pair, f32 (b).
    pub diagonal: Tensor,
}

impl InfoNce {
    /// Keeps `logit_scale` from drifting past the clamp. While α is clamped, a gradient that would
    /// raise `logit_scale` is set to zero, and a gradient that lowers it is kept. The gradient must
    /// already be summed over all ranks, because the shares of single ranks can differ in sign.
    ///
    /// # Errors
    /// If the gradient cannot be read back from the device.
    pub fn hold_at_clamp(
        &self,
        cx: Context<'_>,
        alpha: Alpha,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if self.logit_scale.trainable() && alpha.clamped {
            let sum = gradients.of(&self.logit_scale).as_view().to_f32()?[0];
            let held = [sum.max(0.0)];
            copy::copy(cx.stream, View::from_f32(&held, &[1]), gradients.of(&self.logit_scale))?;
        }
        Ok(())
    }

    fn batch<'a>(&self, gathered: &Gathered<'a>) -> Batch<'a> {
        Batch {
            predicted: gathered.predicted,
            target: gathered.target,
            hashes: gathered.hashes.filter(|_| self.mask_equal_targets),
            rows: gathered.rows.clone(),
        }
    }

    /// Computes the log-sum-exps of this rank's rows in both directions.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn statistics(
        &self,
        cx: Context<'_>,
        alpha: Alpha,
        gathered: &Gathered<'_>,
    ) -> Result<Statistics> {
        let (alpha, b) = (alpha.value, gathered.rows.len());
        let (mut r, mut c) = (cx.take_f32(&[b])?, cx.take_f32(&[b])?);
        let mut diagonal = cx.take_f32(&[b])?;
        let batch = self.batch(gathered);
        let (predicted, target, s) = (r.view_mut(), c.view_mut(), diagonal.view_mut());
        info_nce::both_statistics(cx.stream, &batch, alpha, predicted, target, s)?;
        Ok(Statistics { predicted_lse: r, target_lse: c, diagonal })
    }

    /// This rank's share of the loss: Σ (r_i + c_i − 2·s_ii) / 2g over its rows.
    ///
    /// # Errors
    /// If the statistics cannot be read back from the device.
    pub fn loss(&self, statistics: &Statistics, global: usize) -> Result<f64> {
        let r = statistics.predicted_lse.to_f32()?;
        let c = statistics.target_lse.to_f32()?;
        Ok(info_nce::loss(&r, &c, &statistics.diagonal.to_f32()?, global))
    }

    /// Gradients of this rank's embeddings, given the log-sum-exps of all ranks' rows,
    /// `predicted_lse` (g) and `target_lse` (g). Adds this rank's share to the gradient of
    /// `logit_scale`. When that gradient is summed over all ranks, call [`InfoNce::hold_at_clamp`].
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        alpha: Alpha,
        gathered: &Gathered<'_>,
        predicted_lse: View<'_>,
        target_lse: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<EmbeddingGradients> {
        let (batch, alpha) = (self.batch(gathered), alpha.value);
        let shape = [gathered.rows.len(), gathered.predicted.shape()[1]];
        let (mut predicted, mut target) = (cx.take_f32(&shape)?, cx.take_f32(&shape)?);
        let trained = self.logit_scale.trainable();
        let d_scale = trained.then(|| gradients.of(&self.logit_scale));
        let (d_p, d_t) = (predicted.view_mut(), target.view_mut());
        info_nce::both_gradients(
            cx.stream,
            &batch,
            predicted_lse,
            target_lse,
            alpha,
            d_p,
            d_t,
            d_scale,
        )?;
        Ok(EmbeddingGradients { predicted, target })
    }
}
