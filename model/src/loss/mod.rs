//! Training objectives: bidirectional `InfoNCE` over the gathered batch (VL-JEPA §2), the distance
//! of each pair (VL-JEPA §4.7, Table 5c), or that distance with a regulariser that prevents
//! collapse without negatives (VL-JEPA §2 names `VICReg`).
//!
//! Each rank computes the share of the loss and the gradients of its own rows. The sum of the
//! shares of all ranks is the loss of the global batch.

mod info_nce;
mod pair_distance;
mod sig_reg;
mod vic_reg;

pub use info_nce::{Alpha, Gathered, InfoNce, Statistics};
pub use pair_distance::PairDistance;
pub use sig_reg::{Projected, SigReg};
pub use vic_reg::{Moments, VicReg};

use vljepa_kernels::distance::{self, Distance};
use vljepa_kernels::{Result, Tensor, View};
use vljepa_recipes::schema::{Loss, LossKind};

use crate::{Context, Weight};

/// Loss function that the recipe chooses.
#[derive(Debug, Clone, Copy)]
pub enum Objective {
    /// Bidirectional `InfoNCE`, which needs the embeddings of all ranks.
    InfoNce(InfoNce),
    /// Distance of each pair, which needs only this rank's rows.
    Distance(PairDistance),
    /// Squared distance of each pair, with the variances and covariances of the global batch.
    VicReg(VicReg),
    /// Squared distance of each pair, with `SIGReg` of the global batch.
    SigReg(SigReg),
}

/// Gradients of this rank's embeddings.
#[derive(Debug)]
pub struct EmbeddingGradients {
    /// Gradient of the predicted embeddings, f32 (b, e).
    pub predicted: Tensor,
    /// Gradient of the target embeddings, f32 (b, e).
    pub target: Tensor,
}

impl Objective {
    pub(crate) fn new(loss: &Loss, logit_scale: Weight) -> Self {
        let distance = |kind| Self::Distance(PairDistance { kind });
        match loss.kind {
            LossKind::InfoNce => {
                Self::InfoNce(InfoNce { logit_scale, mask_equal_targets: loss.mask_equal_targets })
            }
            LossKind::Cosine => distance(Distance::Cosine),
            LossKind::L1 => distance(Distance::L1),
            LossKind::L2 => distance(Distance::L2),
            LossKind::VicReg => {
                let keys = &loss.vic_reg;
                Self::VicReg(VicReg {
                    invariance: keys.invariance,
                    variance: keys.variance,
                    covariance: keys.covariance,
                })
            }
            LossKind::SigReg => {
                let keys = &loss.sig_reg;
                Self::SigReg(SigReg { weight: keys.weight, directions: keys.directions })
            }
        }
    }
}

/// This rank's share of a loss with a regulariser over the global batch.
#[derive(Debug)]
pub struct RegularisedShare {
    /// Weighted distance of this rank's pairs.
    distance: f64,
    /// Parts of the regulariser, f32, the same on all ranks.
    terms: Tensor,
    /// Rows of this rank, of the global batch.
    fraction: f64,
}

impl RegularisedShare {
    #[expect(clippy::cast_precision_loss, reason = "batches are below 2^24 rows")]
    fn new(distance: f64, terms: Tensor, rows: usize, global: usize) -> Self {
        Self { distance, terms, fraction: rows as f64 / global.max(1) as f64 }
    }

    /// The share: the distance of this rank's pairs, and of the regulariser as much as the rank
    /// has of the global batch's rows.
    ///
    /// # Errors
    /// If the terms cannot be read back from the device.
    pub fn read(&self) -> Result<f64> {
        let terms: f64 = self.terms.to_f32()?.iter().map(|&term| f64::from(term)).sum();
        Ok(self.distance + self.fraction * terms)
    }
}

/// Gradients of `factor` times the sum of the distances of predicted and target embeddings.
fn gradients_of_distance(
    cx: Context<'_>,
    [predicted, target]: [View<'_>; 2],
    kind: Distance,
    factor: f32,
) -> Result<EmbeddingGradients> {
    let (mut d_p, mut d_t) = (cx.take_f32(predicted.shape())?, cx.take_f32(target.shape())?);
    let (p_out, t_out) = (d_p.view_mut(), d_t.view_mut());
    distance::backward(cx.stream, predicted, target, kind, factor, p_out, t_out)?;
    Ok(EmbeddingGradients { predicted: d_p, target: d_t })
}

/// Whether this loss needs embeddings of length one.
pub(crate) fn normalises(kind: LossKind) -> bool {
    match kind {
        LossKind::InfoNce | LossKind::Cosine => true,
        LossKind::L1 | LossKind::L2 | LossKind::VicReg | LossKind::SigReg => false,
    }
}

/// 1 / `rows`, or 1 if there are no rows.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "batches are below 2^24 rows"
)]
fn reciprocal(rows: usize) -> f32 {
    (1.0 / rows.max(1) as f64) as f32
}
