//! Time budget of a training step of one rank.

use std::collections::BTreeMap;

use serde::Serialize;

use super::communication::{Algorithm, Group, Network as Links, Segment, exposed};
use super::rates::{Beyond, Rates};
use super::{Estimate, data, pixels};
use crate::cost::{
    Network, NetworkName, Operations, Pass, Tokens, networks, parameters, real, traffic,
};
use crate::schema::{Device, LossKind, Recipe, Stage};

/// Operations of attention's backward pass over those that [`Pass`] counts, because the scores are
/// computed again: 10·N²·width instead of 8.
const RECOMPUTED_SCORES: f64 = 1.25;

/// Bytes that AdamW reads and writes for a parameter: weight, gradient and both moments in f32, and
/// the copy of the weight in bf16.
const ADAMW_BYTES: f64 = 30.0;
/// Bytes of a parameter's gradient for the global norm, and for the zeros before the next step.
const NORM_AND_ZERO_BYTES: f64 = 8.0;

/// What takes the time of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// Matrix products of all networks.
    Products,
    /// Attention.
    Attention,
    /// Norms, activations, rotations and copies.
    MemoryBound,
    /// Launches that the host issues more slowly than the device computes them.
    Launches,
    /// Products of the loss, and waits of the device for the host.
    Loss,
    /// Global norm and AdamW.
    Optimizer,
    /// Collectives that the backward pass does not hide.
    Communication,
    /// Wait of all ranks for the slowest of them.
    Stragglers,
    /// Frames that come more slowly than the step needs them: decoding, or upload.
    Data,
}

impl Term {
    /// All terms, in the order of a plan.
    pub const ALL: [Self; 9] = [
        Self::Products,
        Self::Attention,
        Self::MemoryBound,
        Self::Launches,
        Self::Loss,
        Self::Optimizer,
        Self::Communication,
        Self::Stragglers,
        Self::Data,
    ];

    /// Name of the term in plans.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Attention => "attention",
            Self::MemoryBound => "memory-bound",
            Self::Launches => "launches",
            Self::Loss => "loss and waits",
            Self::Optimizer => "optimizer",
            Self::Communication => "communication",
            Self::Stragglers => "stragglers",
            Self::Data => "data",
        }
    }
}

/// Time of a step of the slowest rank, by term, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Budget {
    /// Seconds of each term.
    pub terms_s: BTreeMap<Term, Estimate>,
}

impl Budget {
    /// Sum of all terms. Their errors are independent.
    #[must_use]
    pub fn total(&self) -> Estimate {
        self.terms_s.values().fold(Estimate::default(), |sum, seconds| sum.plus(*seconds))
    }

    /// The term that limits the speed: data if it comes too late, because all other work then waits
    /// for it, and otherwise the term that takes most.
    #[must_use]
    pub fn limit(&self) -> Option<Term> {
        if self.of(Term::Data).value > 0.0 {
            return Some(Term::Data);
        }
        let most = self.terms_s.iter().max_by(|a, b| a.1.value.total_cmp(&b.1.value));
        most.filter(|(_, seconds)| seconds.value > 0.0).map(|(term, _)| *term)
    }

    /// Seconds of a term.
    #[must_use]
    pub fn of(&self, term: Term) -> Estimate {
        self.terms_s.get(&term).copied().unwrap_or_default()
    }
}

/// Collectives of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Communication {
    /// Seconds of the gathers and sums of the loss, which nothing hides.
    pub loss_s: Estimate,
    /// Seconds of the sums of gradients, if nothing else used the network.
    pub gradients_s: Estimate,
    /// Seconds of the sums of gradients after the backward pass.
    pub exposed_s: Estimate,
    /// Algorithm of the sum of a bucket.
    pub algorithm: Algorithm,
}

/// Time of a stage's step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) budget: Budget,
    pub(super) communication: Communication,
    pub(super) data: data::Supply,
    /// Operations of an average sample, without what is computed twice.
    pub(super) useful: f64,
    /// Whether frames are uploaded more slowly than they are decoded.
    pub(super) waits_for_upload: bool,
}

/// Seconds of the passes of a network for all rows of a rank.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PassTime {
    products: Estimate,
    attention: Estimate,
    memory_bound: Estimate,
    launches: Estimate,
}

impl PassTime {
    fn total(self) -> f64 {
        [self.products, self.attention, self.memory_bound, self.launches]
            .iter()
            .map(|time| time.value)
            .sum()
    }

    /// Sum of all parts. Their errors are independent.
    pub(super) fn estimate(self) -> Estimate {
        let parts = [self.products, self.attention, self.memory_bound, self.launches];
        parts.into_iter().fold(Estimate::default(), Estimate::plus)
    }

    /// Adds times that come from the same rates, whose errors add up.
    pub(super) fn plus(self, other: Self, weight: f64) -> Self {
        let add = |a: Estimate, b: Estimate| {
            Estimate::new(a.value + weight * b.value, a.deviation + weight * b.deviation)
        };
        Self {
            products: add(self.products, other.products),
            attention: add(self.attention, other.attention),
            memory_bound: add(self.memory_bound, other.memory_bound),
            launches: add(self.launches, other.launches),
        }
    }
}

/// Rows of the fullest rank, and how they are embedded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) micro_batch: usize,
}

impl Rows {
    fn micros(self) -> f64 {
        real(self.rows.div_ceil(self.micro_batch.max(1)))
    }
}

/// Plans a step of a stage.
pub(super) fn step(recipe: &Recipe, stage: &Stage, group: Group, rates: &Rates) -> Step {
    let mixture: Vec<(f64, Tokens)> = crate::cost::mixture(recipe, stage).collect();
    let mut step = without_data(recipe, stage, &mixture, group, rates);
    let rows = stage.batch.div_ceil(group.ranks().max(1));
    let (late, upload) = late_data(recipe, stage, rows, rates, &step.data, step.budget.total());
    step.budget.terms_s.insert(Term::Data, late);
    step.waits_for_upload = upload;
    step
}

/// Plans a step whose samples are always there. `mixture` has the tokens of a sample of each source
/// with the source's share.
pub(super) fn without_data(
    recipe: &Recipe,
    stage: &Stage,
    mixture: &[(f64, Tokens)],
    group: Group,
    rates: &Rates,
) -> Step {
    let rows = stage.batch.div_ceil(group.ranks().max(1));
    let micro_batch = stage.micro_batch.unwrap_or(rows).clamp(1, rows.max(1));
    let rows = Rows { rows, micro_batch };
    let mut time = PassTime::default();
    let mut segments: Vec<(NetworkName, Segment)> = Vec::new();
    let mut useful = 0.0;
    for &(weight, tokens) in mixture {
        let twice = rows.micro_batch < rows.rows;
        let all = networks(&recipe.model, tokens, twice, stage.recompute);
        useful += weight * of_sample(recipe, tokens).total();
        for network in &all {
            let of =
                |pass: &Pass, backward| pass_time(recipe, rates, network, pass, rows, backward);
            let (forward, again, backward) = (
                of(&network.forward, false),
                of(&network.again, false),
                of(&network.backward, true),
            );
            time = time.plus(forward, weight).plus(again, weight).plus(backward, weight);
            // Sums begin in the backward pass of the last micro-batch.
            let seconds = weight * (again.total() + backward.total()) / rows.micros();
            add_segment(&mut segments, network, seconds);
        }
    }
    let links = Links::of(rates, group, recipe.deterministic);
    let segments = in_backward_order(segments);
    let communication = communication(recipe, stage, group, &links, &segments);
    let own = [
        (Term::Products, time.products),
        (Term::Attention, time.attention),
        (Term::MemoryBound, time.memory_bound),
        (Term::Launches, time.launches),
        (Term::Loss, loss(recipe, stage, rows.rows, rates)),
        (Term::Optimizer, optimizer(recipe, group, rates)),
    ];
    let work = own.iter().fold(Estimate::default(), |sum, (_, time)| sum.plus(*time));
    let sums = communication.loss_s.plus(communication.exposed_s);
    let stragglers = slowest_of(group.ranks()) * rates.stragglers.value * work.value;
    let stragglers = Estimate::new(stragglers, stragglers * rates.stragglers.spread);
    let rest = [(Term::Communication, sums), (Term::Stragglers, stragglers)];
    let budget = Budget { terms_s: own.into_iter().chain(rest).collect() };
    let data = data::supply(recipe, stage, rates);
    Step { budget, communication, data, useful, waits_for_upload: false }
}

fn of_sample(recipe: &Recipe, tokens: Tokens) -> Operations {
    crate::cost::sample(&recipe.model, tokens, false, crate::schema::Recompute::None)
}

fn add_segment(segments: &mut Vec<(NetworkName, Segment)>, network: &Network, seconds: f64) {
    match segments.iter_mut().find(|(name, _)| *name == network.name) {
        Some((_, segment)) => segment.seconds += seconds,
        None => {
            let bytes = 4.0 * real(network.trained);
            segments.push((network.name, Segment { seconds, bytes }));
        }
    }
}

/// Sorts networks in the order of their backward passes: the Y-encoder first, so that its gradients
/// are summed while the predictor works, and the X-encoder last.
fn in_backward_order(mut segments: Vec<(NetworkName, Segment)>) -> Vec<Segment> {
    segments.sort_by_key(|(name, _)| match name {
        NetworkName::YDecoder => 0,
        NetworkName::YEncoder => 1,
        NetworkName::LanguageModel | NetworkName::Predictor => 2,
        NetworkName::XEncoder => 3,
    });
    segments.into_iter().map(|(_, segment)| segment).collect()
}

/// Time of a pass for all rows of a rank.
pub(super) fn pass_time(
    recipe: &Recipe,
    rates: &Rates,
    network: &Network,
    pass: &Pass,
    rows: Rows,
    backward: bool,
) -> PassTime {
    let samples = real(rows.rows);
    // A product of few rows leaves a part of the device idle.
    let of_product = real(network.tokens * rows.micro_batch);
    let fill = of_product / (of_product + rates.half_rate_rows.value).max(1.0);
    let rate = 1e12 * fill * rates.products_tflops.at(network.width, Beyond::Last);
    let products = if pass.products > 0.0 { samples * pass.products / rate } else { 0.0 };
    let (curve, factor) = if backward {
        (&rates.attention_backward_tflops, RECOMPUTED_SCORES)
    } else {
        (&rates.attention_forward_tflops, 1.0)
    };
    let attention: f64 = pass
        .attention
        .iter()
        .map(|(length, operations)| {
            samples * factor * operations / (1e12 * curve.at(*length, Beyond::Last))
        })
        .sum();
    let bytes = samples * pass.values * crate::cost::element_bytes(recipe.precision);
    let memory_bound = rates.memory_bound_tb_per_s.time(bytes / 1e12);
    let busy = products + attention + memory_bound.value;
    let issue = pass.launches * rows.micros() * rates.launch_us.value * 1e-6;
    let waits = (issue - busy).max(0.0);
    PassTime {
        products: Estimate::new(products, products * rates.products_tflops.spread),
        attention: Estimate::new(attention, attention * curve.spread),
        memory_bound,
        launches: Estimate::new(waits, waits.min(issue * rates.launch_us.spread)),
    }
}

/// Products of the loss with the embeddings of all ranks, and waits of the device for the host.
fn loss(recipe: &Recipe, stage: &Stage, rows: usize, rates: &Rates) -> Estimate {
    let (own, batch, e) = (real(rows), real(stage.batch), real(recipe.model.embed_dim));
    let operations = match recipe.loss.kind {
        // The cross-entropy of tokens is counted with the network that predicts them.
        _ if !recipe.model.predicts_embeddings() => 0.0,
        // Scores of both directions, once for the loss and once for the gradient, and the product
        // of their gradient with the embeddings.
        LossKind::InfoNce => 12.0 * own * batch * e,
        LossKind::Cosine | LossKind::L1 | LossKind::L2 => 0.0,
        // The matrix of covariances, and its product with the rows, for both branches.
        LossKind::VicReg => 8.0 * own * e * e,
        LossKind::SigReg => 8.0 * own * e * real(recipe.loss.sig_reg.directions),
    };
    let products = rates.loss_tflops.time(operations / 1e12);
    products.plus(rates.waits_ms.estimate().times(1e-3))
}

fn optimizer(recipe: &Recipe, group: Group, rates: &Rates) -> Estimate {
    let trained = real(parameters(&recipe.model).trainable);
    let owners = if recipe.optimizer.shard { real(group.ranks().max(1)) } else { 1.0 };
    let bytes = trained * (ADAMW_BYTES / owners + NORM_AND_ZERO_BYTES);
    rates.optimizer_tb_per_s.time(bytes / 1e12)
}

fn communication(
    recipe: &Recipe,
    stage: &Stage,
    group: Group,
    links: &Links,
    segments: &[Segment],
) -> Communication {
    let sent = traffic(recipe, stage.batch, group.ranks());
    // `traffic` counts what a rank sends of a gather: all parts but its own.
    let ranks = real(group.ranks().max(2));
    let whole = |sent: f64| sent * ranks / (ranks - 1.0);
    let gathers = [sent.gathered_embeddings, sent.gathered_statistics];
    let gathers = gathers.map(|bytes| links.gather(whole(bytes)));
    let (sums, _) = links.all_reduce(whole(sent.reduced_statistics) / 2.0);
    let loss_s = gathers[0].plus(gathers[1]).plus(sums);
    let trained: f64 = segments.iter().map(|segment| segment.bytes).sum();
    let bucket = real(recipe.cluster.bucket_mib.max(1) << 20);
    let (of_bucket, algorithm) = links.all_reduce(bucket.min(trained));
    if recipe.optimizer.shard {
        // The sum is scattered after the backward pass, and the updated weights are gathered.
        let once = links.gather(trained);
        let both = Estimate::new(2.0 * once.value, 2.0 * once.deviation);
        let algorithm = Algorithm::Ring;
        return Communication { loss_s, gradients_s: both, exposed_s: both, algorithm };
    }
    let buckets = (trained / bucket).ceil();
    let gradients_s = of_bucket.times(buckets);
    let exposed_s = match recipe.device {
        Device::Cuda => exposed(segments, bucket, |bytes| links.all_reduce(bytes).0),
        // A sum on the host is complete before the backward pass goes on.
        Device::Host => gradients_s,
    };
    Communication { loss_s, gradients_s, exposed_s, algorithm }
}

/// Time by which frames come later than a step of `step` seconds needs them, and whether their
/// upload takes longer than their decoding.
fn late_data(
    recipe: &Recipe,
    stage: &Stage,
    rows: usize,
    rates: &Rates,
    supply: &data::Supply,
    step: Estimate,
) -> (Estimate, bool) {
    let decoded = supply
        .rank_samples_per_s
        .map_or(Estimate::default(), |rate| Estimate::ratio(real(rows), rate));
    match recipe.device {
        // Decoding and computing share the CPUs.
        Device::Host => (decoded, false),
        Device::Cuda => {
            let bytes = real(rows) * pixels(recipe, stage);
            let uploaded = rates.upload_gb_per_s.time(bytes / 1e9);
            let waits_for_upload = uploaded.value > decoded.value;
            let slower = if waits_for_upload { uploaded } else { decoded };
            let late = (slower.value - step.value).max(0.0);
            (Estimate::new(late, late.min(slower.deviation)), waits_for_upload)
        }
    }
}

/// Expected largest of `ranks` numbers with a standard normal distribution (Blom's approximation).
fn slowest_of(ranks: usize) -> f64 {
    if ranks < 2 {
        return 0.0;
    }
    let n = real(ranks);
    normal_quantile((n - 0.375) / (n + 0.25))
}

/// Quantile of the standard normal distribution for a probability above one half: formula 26.2.23
/// of Abramowitz and Stegun, whose error is below 4.5e-4.
fn normal_quantile(p: f64) -> f64 {
    let t = (-2.0 * (1.0 - p).ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    t - above / below
}

#[cfg(test)]
mod tests {
    use super::{normal_quantile, slowest_of};

    #[test]
    fn the_slowest_of_more_ranks_is_slower() {
        // 97.5 % of a normal distribution are below 1.959964.
        assert!((normal_quantile(0.975) - 1.959_964).abs() < 5e-4);
        assert!((normal_quantile(0.999) - 3.090_232).abs() < 5e-4);
        // Expected largest of two: 1/√π. Blom's approximation is good to 2 %.
        let two = slowest_of(2);
        assert!((two - 0.564_190).abs() < 0.03, "{two}");
        let all = [1, 2, 8, 192, 4096].map(slowest_of);
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]) && all[0].abs() < 1e-9, "{all:?}");
    }
}
