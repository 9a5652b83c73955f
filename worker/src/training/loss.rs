//! The loss of a step over the global batch, with its collectives. Every rank issues the same ones
//! in the same order. InfoNCE: gather of embeddings, of hashes if equal targets are masked, and of
//! log-sum-exps. VICReg: sum of means, sum of products. SIGReg: sum of cosines and sines. The
//! distances need none.
//!
//! Shape suffixes: b = rows of this rank, g = rows of all ranks, e = width of the shared embedding.

use std::ops::Range;

use vljepa_data::order::mix;
use vljepa_kernels::{Tensor, View};
use vljepa_model::loss::{EmbeddingGradients, RegularisedShare};
use vljepa_model::{Alpha, Gathered, InfoNce, Objective, SigReg, Statistics, VicReg};
use vljepa_recipes::protocol::Phase;

use crate::collectives::{Collectives, Shares};
use crate::engine::{Engine, Training};

/// First word of the key of SIGReg's directions.
const DIRECTIONS: u64 = 0x6469_7265_6374;

/// This rank's share of the loss.
pub(super) enum LossShare {
    Known(f64),
    InfoNce(InfoNce, Box<Statistics>),
    Regularised(RegularisedShare),
}

impl LossShare {
    pub(super) fn read(&self, global: usize) -> vljepa_kernels::Result<f64> {
        match self {
            Self::Known(loss) => Ok(*loss),
            Self::InfoNce(loss, statistics) => loss.loss(statistics, global),
            Self::Regularised(share) => share.read(),
        }
    }
}

/// This rank's embeddings, with hashes that identify its target texts.
pub(super) struct OwnRows<'a> {
    pub(super) predicted: &'a Tensor,
    pub(super) target: &'a Tensor,
    pub(super) hashes: &'a [u64],
    pub(super) rows: Range<usize>,
}

impl OwnRows<'_> {
    /// Predicted and target embeddings.
    fn embeddings(&self) -> [View<'_>; 2] {
        [self.predicted.view(), self.target.view()]
    }
}

/// Returns this rank's share of the loss over the global batch, and the gradients of its
/// embeddings.
pub(super) fn loss_and_gradients(
    engine: &Engine,
    training: &mut Training,
    alpha: Alpha,
    collectives: &Collectives,
    shares: Shares,
    own: &OwnRows<'_>,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<(LossShare, EmbeddingGradients)> {
    match engine.model.objective {
        Objective::InfoNce(loss) => {
            info_nce(engine, training, (loss, alpha), collectives, shares, own, enter)
        }
        Objective::Distance(distance) => {
            let (cx, g) = (engine.context(), shares.global);
            let (p, t) = (own.predicted.view(), own.target.view());
            Ok((LossShare::Known(distance.loss(cx, p, t, g)?), distance.backward(cx, p, t, g)?))
        }
        Objective::VicReg(loss) => vic_reg(engine, loss, collectives, shares, own, enter),
        Objective::SigReg(loss) => {
            // The number of updates is part of a checkpoint, and the same on all ranks.
            let key = mix(&[DIRECTIONS, engine.seed(), training.optimizer.step]);
            sig_reg(engine, (loss, key), collectives, shares, own, enter)
        }
    }
}

/// The same for InfoNCE (ARCHITECTURE.md, "InfoNCE over ranks").
fn info_nce(
    engine: &Engine,
    training: &mut Training,
    (loss, alpha): (InfoNce, Alpha),
    collectives: &Collectives,
    shares: Shares,
    own: &OwnRows<'_>,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<(LossShare, EmbeddingGradients)> {
    let cx = engine.context();
    let all_rows = |own: &Tensor| -> anyhow::Result<Tensor> {
        let mut shape = own.shape().to_vec();
        shape[0] = shares.global;
        let mut all = cx.arena.take(own.dtype(), &shape)?;
        collectives.all_gather_rows(cx.stream, own.view(), shares, all.view_mut())?;
        Ok(all)
    };
    enter(Phase::Collective)?;
    let (predicted_ge, target_ge) = (all_rows(own.predicted)?, all_rows(own.target)?);
    let on_device = |hashes| Tensor::from_u64(hashes, &[shares.global]).on(engine.device());
    let hashes = loss.mask_equal_targets.then(|| collectives.all_gather_hashes(own.hashes, shares));
    let hashes = hashes.map(on_device).transpose()?;
    let gathered = Gathered {
        predicted: predicted_ge.view(),
        target: target_ge.view(),
        hashes: hashes.as_ref().map(Tensor::view),
        rows: own.rows.clone(),
    };
    enter(Phase::Forward)?;
    let statistics = loss.statistics(cx, alpha, &gathered)?;
    enter(Phase::Collective)?;
    let (r, c) = (all_rows(&statistics.predicted_lse)?, all_rows(&statistics.target_lse)?);
    enter(Phase::Backward)?;
    let gradients = &mut training.gradients;
    let d = loss.backward(cx, alpha, &gathered, r.view(), c.view(), gradients)?;
    Ok((LossShare::InfoNce(loss, Box::new(statistics)), d))
}

/// The same for VICReg: sums over ranks of means and of products of centred embeddings.
fn vic_reg(
    engine: &Engine,
    loss: VicReg,
    collectives: &Collectives,
    shares: Shares,
    own: &OwnRows<'_>,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<(LossShare, EmbeddingGradients)> {
    let (cx, embeddings, global) = (engine.context(), own.embeddings(), shares.global);
    let mut sums_2e = loss.sums(cx, embeddings)?;
    enter(Phase::Collective)?;
    collectives.all_reduce_sum(cx.stream, sums_2e.view_mut())?;
    enter(Phase::Forward)?;
    let mut moments = loss.moments(cx, embeddings, sums_2e.view(), global)?;
    enter(Phase::Collective)?;
    collectives.all_reduce_sum(cx.stream, moments.products.view_mut())?;
    enter(Phase::Backward)?;
    let (share, d) = loss.backward(cx, embeddings, &moments, global)?;
    Ok((LossShare::Regularised(share), d))
}

/// The same for SIGReg, with directions drawn from `key`: a sum over ranks of cosines and sines.
fn sig_reg(
    engine: &Engine,
    (loss, key): (SigReg, u64),
    collectives: &Collectives,
    shares: Shares,
    own: &OwnRows<'_>,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<(LossShare, EmbeddingGradients)> {
    let (cx, embeddings, global) = (engine.context(), own.embeddings(), shares.global);
    let directions = loss.directions(cx, key, engine.model.recipe().embed_dim)?;
    let mut projected = loss.project(cx, embeddings, directions)?;
    enter(Phase::Collective)?;
    collectives.all_reduce_sum(cx.stream, projected.sums.view_mut())?;
    enter(Phase::Backward)?;
    let (share, d) = loss.backward(cx, embeddings, &mut projected, global)?;
    Ok((LossShare::Regularised(share), d))
}
