//! `InfoNCE` over the rows of all ranks: s = α·P·Tᵀ, cross-entropy of the diagonal in both directions, averaged.

use std::ops::Range;

use vljepa_kernels::info_nce::{self, Batch};
use vljepa_kernels::{Result, Tensor, View, copy};

use super::EmbeddingGradients;
use crate::{Context, Gradients, Weight};

/// Bidirectional `InfoNCE`.
#[derive(Debug, Clone, Copy)]
pub struct InfoNce {
    /// α is its exponential.
    pub logit_scale: Weight,
    /// Whether rows of an equal target text are left out of each other's negatives.
    pub mask_equal_targets: bool,
}

/// The factor of the similarities in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alpha {
    /// exp(logit_scale), at most the recipe's `max_scale`.
    pub value: f32,
    /// Whether exp(logit_scale) lies beyond `max_scale`.
    pub clamped: bool,
}

/// Embeddings of all ranks, and which of them are this rank's.
#[derive(Debug, Clone)]
pub struct Gathered<'a> {
    /// (g, e): predicted embeddings, P.
    pub predicted: View<'a>,
    /// (g, e): target embeddings, T.
    pub target: View<'a>,
    /// u64 (g): hashes of the target texts; only read where equal targets are masked.
    pub hashes: Option<View<'a>>,
    /// This rank's rows.
    pub rows: Range<usize>,
}

/// Log-sum-exps of this rank's rows, to be gathered before the backward pass.
#[derive(Debug)]
pub struct Statistics {
    /// f32 (b): r, of the rows of P over all of T.
    pub predicted_lse: Tensor,
    /// f32 (b): c, of the rows of T over all of P.
    pub target_lse: Tensor,
    /// f32 (b): s_ii.
    pub diagonal: Tensor,
}

impl InfoNce {
    /// Where α is clamped, only a gradient that lowers it is kept, so that the temperature cannot wander off beyond the clamp but can
    /// come back. Takes the gradient summed over all ranks: shares of single ranks differ in sign.
    ///
    /// # Errors
    /// When the gradient cannot be read back from the device.
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

    /// Log-sum-exps of this rank's rows in both directions.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
    /// When the statistics cannot be read back from the device.
    pub fn loss(&self, statistics: &Statistics, global: usize) -> Result<f64> {
        let r = statistics.predicted_lse.to_f32()?;
        let c = statistics.target_lse.to_f32()?;
        Ok(info_nce::loss(&r, &c, &statistics.diagonal.to_f32()?, global))
    }

    /// Gradients of this rank's embeddings, from the log-sum-exps of all ranks' rows: `predicted_lse` (g) and `target_lse` (g).
    /// Adds this rank's share to the gradient of `logit_scale`; [`InfoNce::hold_at_clamp`] judges the sum.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
