//! What `vljepa-launch plan` finds: the plan, other readings of the recipe, other numbers of GPUs,
//! and changes that save time.

use std::collections::BTreeMap;

use serde::Serialize;
use vljepa_recipes::plan::{Change, Estimate, Limit, Plan, Rates, ScalePoint, Scaling};

use super::time::digits;
use super::{Lines, time};

/// Number of changes that are named in a text.
const NAMED_CHANGES: usize = 3;

/// A plan with its alternatives; `--json` prints it in this form.
#[derive(Debug, Serialize)]
pub(crate) struct PlanReport {
    /// Name of the recipe.
    pub(crate) name: String,
    /// Where the rates are from.
    pub(crate) rates: RatesOrigin,
    /// Plan of the recipe as it is.
    pub(crate) plan: Plan,
    /// Days of training for the recipe as it is, `as_written`, and for each of its `readings`.
    pub(crate) days: BTreeMap<String, Estimate>,
    /// Changes that save time, the largest gain first.
    pub(crate) changes: Vec<Change>,
    /// Other numbers of GPUs, if they were asked for.
    pub(crate) scaling: Option<Scaling>,
}

/// Where rates are from.
#[derive(Debug, Serialize)]
pub(crate) struct RatesOrigin {
    /// Device whose rates they are.
    pub(crate) device: String,
    /// Number of rates that were measured.
    pub(crate) measured: usize,
    /// Number of all rates.
    pub(crate) all: usize,
}

impl RatesOrigin {
    pub(crate) fn of(rates: &Rates) -> Self {
        let [measured, all] = rates.measured();
        Self { device: rates.device.clone(), measured, all }
    }
}

impl PlanReport {
    /// Tables of time, step, data and cost.
    pub(crate) fn plan_tables(&self) -> Vec<Lines> {
        time::tables(&self.plan)
    }

    /// Tables of the alternatives.
    pub(crate) fn tables(&self) -> Vec<Lines> {
        let mut tables = Vec::new();
        if self.days.len() > 1 {
            let header = ["reading", "days", "±"].map(str::to_owned).to_vec();
            let rows = self.days.iter().map(|(name, days)| {
                vec![name.clone(), format!("{:.2}", days.value), format!("{:.2}", days.deviation)]
            });
            tables.push([header].into_iter().chain(rows).collect());
        }
        tables.extend(self.scaling.as_ref().map(|scaling| {
            let header = [
                "GPUs",
                "hours",
                "GPU-hours",
                "efficiency, %",
                "fits",
                "most of the time",
                "weak efficiency, %",
            ];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(scaling.points.iter().map(point));
            rows
        }));
        tables
    }

    /// Sentences about the alternatives.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        if let Some(Scaling { strong_limit, weak_limit, points }) = &self.scaling {
            let most = points.last().map_or(0, |point| point.devices);
            let possible = points.iter().any(|point| point.hours.is_some());
            if possible {
                notes.push(limit("with the recipe's batches", *strong_limit, most));
            } else {
                notes.push("no batch of the recipe has a sample for each of these GPUs".to_owned());
            }
            let twice = points.iter().filter(|point| point.embeds_twice).map(|point| point.devices);
            notes.extend(twice.max().map(|most| {
                format!(
                    "up to {most} GPUs, each embeds its share of a batch in parts of \
                     `micro_batch`, which takes a second forward pass"
                )
            }));
            notes.push(limit("with the same share of the batch on each GPU", *weak_limit, most));
        }
        notes.extend(self.changes.iter().take(NAMED_CHANGES).map(change));
        if self.changes.is_empty() && self.plan.stages.iter().all(|stage| stage.fits) {
            notes.push("no key that the plan tries saves more than half a percent".to_owned());
        } else if self.changes.is_empty() {
            notes.push("no `micro_batch` and no `recompute` makes every stage fit".to_owned());
        }
        notes
    }
}

fn point(point: &ScalePoint) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let most = point.shares.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    vec![
        point.devices.to_string(),
        or_dash(point.hours.map(digits)),
        or_dash(point.device_hours.map(digits)),
        or_dash(point.efficiency.map(|share| format!("{:.0}", 100.0 * share))),
        if point.hours.is_none() {
            "–"
        } else if point.fits {
            "yes"
        } else {
            "no"
        }
        .to_owned(),
        or_dash(most.map(|(term, share)| format!("{} {:.0} %", term.name(), 100.0 * share))),
        format!("{:.0}", 100.0 * point.weak_efficiency),
    ]
}

fn limit(how: &str, limit: Option<Limit>, most: usize) -> String {
    match limit {
        None => format!("{how}, each step up to {most} GPUs gains at least half of what it adds"),
        Some(Limit { devices, because }) => match because {
            Some(term) => {
                format!("{how}, scaling ends at {devices} GPUs: the share of {} grows", term.name())
            }
            None => format!("{how}, scaling ends at {devices} GPUs: a batch has no more samples"),
        },
    }
}

fn change(change: &Change) -> String {
    let sets: Vec<String> = change.sets.iter().map(|set| format!("--set {set}")).collect();
    let needs =
        if change.needs.is_empty() { String::new() } else { format!(" ({})", change.needs) };
    let before = digits(change.hours + change.saves_hours);
    if change.saves_hours < 0.0 {
        return format!("{} fits, and takes {} h{needs}", sets.join(" "), digits(change.hours));
    }
    format!("{} saves {} h of {before} h{needs}", sets.join(" "), digits(change.saves_hours))
}
