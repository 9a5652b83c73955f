//! The same recipe on other numbers of devices: where scaling ends, and why.

use serde::Serialize;

use super::rates::Rates;
use super::step::Term;
use super::{Plan, plan};
use crate::cost::real;
use crate::schema::Recipe;

/// Share of the devices that are added which must become speed for scaling to go on.
const WORTH: f64 = 0.5;

/// A recipe on some number of devices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScalePoint {
    /// Number of devices.
    pub devices: usize,
    /// Hours with the recipe's batches (strong scaling); `None` if a batch has fewer samples than
    /// there are devices.
    pub hours: Option<f64>,
    /// Hours of all devices together.
    pub device_hours: Option<f64>,
    /// Speed per device, relative to the fewest devices of the list that have the memory.
    pub efficiency: Option<f64>,
    /// Terms of the time of all steps, as shares.
    pub shares: Vec<(Term, f64)>,
    /// Whether each stage fits the memory of a device.
    pub fits: bool,
    /// Whether a device embeds its share of a batch in parts, which takes a second forward pass.
    pub embeds_twice: bool,
    /// Speed per device relative to the recipe's own number of devices, if each device keeps its
    /// share of the batch (weak scaling).
    pub weak_efficiency: f64,
}

/// End of scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Largest number of devices that is worth its addition.
    pub devices: usize,
    /// Term whose share grows most after it; `None` if a batch has fewer samples than the next
    /// number of devices.
    pub because: Option<Term>,
}

/// A recipe on several numbers of devices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scaling {
    /// Increasing numbers of devices.
    pub points: Vec<ScalePoint>,
    /// Where more devices no longer bring at least half of their speed with the same batches, or
    /// `None` if they do up to the end of the list.
    pub strong_limit: Option<Limit>,
    /// The same if each device keeps its share of the batch.
    pub weak_limit: Option<Limit>,
}

/// The recipe on `devices` devices: whole nodes, or a part of one. `None` if they are no whole
/// number of nodes.
#[must_use]
pub fn with_devices(recipe: &Recipe, devices: usize) -> Option<Recipe> {
    let mut changed = recipe.clone();
    let per_node = recipe.cluster.ranks_per_node.max(1);
    if devices < per_node {
        (changed.cluster.nodes, changed.cluster.ranks_per_node) = (1, devices);
    } else if devices.is_multiple_of(per_node) {
        changed.cluster.nodes = devices / per_node;
    } else {
        return None;
    }
    (devices > 0).then_some(changed)
}

/// Whether each device has a sample of each batch.
fn has_enough_samples(recipe: &Recipe) -> bool {
    recipe.stages.iter().all(|stage| stage.batch >= recipe.cluster.world_size())
}

/// The recipe on `devices` devices, each with the share of the batch that it has in the recipe.
fn with_shares(recipe: &Recipe, devices: usize) -> Option<Recipe> {
    let mut changed = with_devices(recipe, devices)?;
    let own = recipe.cluster.world_size().max(1);
    for stage in &mut changed.stages {
        stage.batch = stage.batch.div_ceil(own) * devices;
    }
    Some(changed)
}

/// Plans the recipe on each number of devices. Numbers that are no whole number of nodes are left
/// out.
#[must_use]
pub fn scaling(recipe: &Recipe, rates: &Rates, devices: &[usize]) -> Scaling {
    let own = rate_per_device(&plan(recipe, rates), recipe);
    let mut points: Vec<ScalePoint> = Vec::new();
    let (mut strong, mut weak) = (Vec::new(), Vec::new());
    for &devices in devices {
        let (Some(same), Some(shares)) =
            (with_devices(recipe, devices), with_shares(recipe, devices))
        else {
            continue;
        };
        let fixed = has_enough_samples(&same).then(|| plan(&same, rates));
        let fits = fixed.as_ref().is_some_and(|plan| plan.stages.iter().all(|stage| stage.fits));
        let grown = plan(&shares, rates);
        let hours = fixed.as_ref().map(|plan| plan.hours.value);
        let first = points.iter().filter(|point| point.fits).find_map(|point| point.device_hours);
        let device_hours = hours.map(|hours| hours * real(devices));
        points.push(ScalePoint {
            devices,
            hours,
            device_hours,
            efficiency: device_hours.map(|now| first.unwrap_or(now) / now),
            shares: fixed.as_ref().map(shares_of).unwrap_or_default(),
            fits,
            embeds_twice: same.stages.iter().any(|stage| {
                stage.micro_batch.is_some_and(|most| most < stage.batch.div_ceil(devices))
            }),
            weak_efficiency: rate_per_device(&grown, &shares) / own,
        });
        strong.push(fixed.map(|plan| (plan.hours.value, shares_of(&plan))));
        let per_device = rate_per_device(&grown, &shares);
        weak.push(Some((1.0 / (per_device * real(devices)), shares_of(&grown))));
    }
    let counts: Vec<usize> = points.iter().map(|point| point.devices).collect();
    let strong_limit = limit(&counts, &strong);
    let weak_limit = limit(&counts, &weak);
    Scaling { points, strong_limit, weak_limit }
}

/// Samples per second and device over all stages.
fn rate_per_device(plan: &Plan, recipe: &Recipe) -> f64 {
    let samples: f64 =
        recipe.stages.iter().map(|stage| real(stage.steps) * real(stage.batch)).sum();
    samples / (plan.hours.value * real(plan.group.ranks())).max(f64::MIN_POSITIVE)
}

/// Terms of the time of all steps, as shares.
fn shares_of(plan: &Plan) -> Vec<(Term, f64)> {
    let of = |term: Term| {
        let stages = plan.stages.iter();
        stages.map(|stage| stage.budget.of(term).value * real(stage.steps)).sum::<f64>()
    };
    let all: f64 = Term::ALL.into_iter().map(of).sum();
    Term::ALL.into_iter().map(|term| (term, of(term) / all.max(f64::MIN_POSITIVE))).collect()
}

/// Time for the same work and shares of terms at a number of devices, or `None` if it is
/// impossible.
type Timed = Option<(f64, Vec<(Term, f64)>)>;

/// The last number of devices before the speed grows by less than [`WORTH`] of what is added.
fn limit(counts: &[usize], times: &[Timed]) -> Option<Limit> {
    for (devices, pair) in counts.windows(2).zip(times.windows(2)) {
        let Some((before, shares)) = &pair[0] else { continue };
        let added = real(devices[1]) / real(devices[0]) - 1.0;
        let Some((after, then)) = &pair[1] else {
            return Some(Limit { devices: devices[0], because: None });
        };
        if before / after - 1.0 < WORTH * added {
            let growth = |(term, share): &(Term, f64)| {
                let was = shares.iter().find(|(of, _)| of == term).map_or(0.0, |(_, share)| *share);
                (*term, share - was)
            };
            let most = then.iter().map(growth).max_by(|a, b| a.1.total_cmp(&b.1));
            let because = most.map(|(because, _)| because);
            return Some(Limit { devices: devices[0], because });
        }
    }
    None
}
