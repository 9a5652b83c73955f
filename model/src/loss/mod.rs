//! Training objectives: bidirectional `InfoNCE` over the gathered batch (VL-JEPA §2), or the
//! distance of each pair (VL-JEPA §4.7, Table 5c).
//!
//! Each rank computes the share of the loss and the gradients of its own rows. The sum of the
//! shares of all ranks is the loss of the global batch.

mod info_nce;
mod pair_distance;

pub use info_nce::{Alpha, Gathered, InfoNce, Statistics};
pub use pair_distance::PairDistance;

use vljepa_kernels::Tensor;
use vljepa_kernels::distance::Distance;
use vljepa_recipes::schema::{Loss, LossKind};

use crate::Weight;

/// Loss function that the recipe chooses.
#[derive(Debug, Clone, Copy)]
pub enum Objective {
    /// Bidirectional `InfoNCE`, which needs the embeddings of all ranks.
    InfoNce(InfoNce),
    /// Distance of each pair, which needs only this rank's rows.
    Distance(PairDistance),
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
        }
    }
}

/// Whether this loss needs embeddings of length one.
pub(crate) fn normalises(kind: LossKind) -> bool {
    match kind {
        LossKind::InfoNce | LossKind::Cosine => true,
        LossKind::L1 | LossKind::L2 => false,
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
