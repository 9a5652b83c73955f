//! What training lowers: bidirectional `InfoNCE` over the gathered batch, or distances of pairs (VL-JEPA §3.2, Table 5c).
//!
//! Each rank computes the share and the gradients of its own rows; shares and gradients of all ranks add up.

mod info_nce;
mod pair_distance;

pub use info_nce::{Alpha, Gathered, InfoNce, Statistics};
pub use pair_distance::PairDistance;

use vljepa_kernels::Tensor;
use vljepa_kernels::distance::Distance;
use vljepa_recipes::schema::{Loss, LossKind};

use crate::Weight;

/// The loss of a recipe.
#[derive(Debug, Clone, Copy)]
pub enum Objective {
    /// Bidirectional `InfoNCE`: needs the embeddings of all ranks.
    InfoNce(InfoNce),
    /// A distance of each pair: needs this rank's rows only.
    Distance(PairDistance),
}

/// Gradients of this rank's embeddings.
#[derive(Debug)]
pub struct EmbeddingGradients {
    /// f32 (b, e).
    pub predicted: Tensor,
    /// f32 (b, e).
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

/// Whether embeddings have length one under this loss.
pub(crate) fn normalises(kind: LossKind) -> bool {
    match kind {
        LossKind::InfoNce | LossKind::Cosine => true,
        LossKind::L1 | LossKind::L2 => false,
    }
}

/// The reciprocal of a number of rows.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "batches are below 2^24 rows"
)]
fn reciprocal(rows: usize) -> f32 {
    (1.0 / rows.max(1) as f64) as f32
}
