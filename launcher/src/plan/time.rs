//! Tables of a plan that come from rates: time of the stages, budget of a step, data, cost.

use vljepa_recipes::plan::{Algorithm, Estimate, Failures, Plan, Rates, StagePlan, Term};

use super::Lines;
use super::tables::row;
use crate::terminal::thousands;

/// Tables of time, step, data and cost.
pub(super) fn tables(plan: &Plan) -> Vec<Lines> {
    vec![stages(plan), budget(plan), data(plan), cost(plan)]
}

/// Time of the stages.
fn stages(plan: &Plan) -> Lines {
    let header =
        ["time", "samples/s per GPU", "MFU, %", "hours", "±", "at least", "most of a step"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(plan.stages.iter().map(|stage| {
        vec![
            stage.name.clone(),
            digits(stage.samples_per_s.value),
            format!("{:.1}", 100.0 * stage.mfu),
            format!("{:.2}", stage.hours.value),
            format!("{:.2}", stage.hours.deviation),
            format!("{:.2}", stage.least_hours),
            stage.limit.map_or("–", Term::name).to_owned(),
        ]
    }));
    rows
}

/// Milliseconds of a step by term.
fn budget(plan: &Plan) -> Lines {
    let mut header = vec!["ms of a step".to_owned()];
    header.extend(Term::ALL.map(|term| term.name().to_owned()));
    header.extend(["all", "±"].map(str::to_owned));
    let mut rows = vec![header];
    rows.extend(plan.stages.iter().map(|stage| {
        let mut row = vec![stage.name.clone()];
        row.extend(Term::ALL.map(|term| digits(1e3 * stage.budget.of(term).value)));
        row.extend([stage.step_s.value, stage.step_s.deviation].map(|time| digits(1e3 * time)));
        row
    }));
    rows
}

/// What a node has to read and decode, and what ranks send.
fn data(plan: &Plan) -> Lines {
    let header = [
        "each node",
        "needs samples/s",
        "decodes samples/s",
        "reads MB/s",
        "host GB",
        "sum of gradients, ms",
        "after backward, ms",
        "algorithm",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(plan.stages.iter().map(|stage| {
        let ranks = as_f64(plan.group.per_node);
        let decoded = stage.data.rank_per_s.map(|rate| digits(rate.value * ranks));
        let sums = stage.communication;
        vec![
            stage.name.clone(),
            digits(stage.node_samples_per_s),
            decoded.unwrap_or_else(|| "–".to_owned()),
            digits(stage.node_bytes_per_s / 1e6),
            digits(stage.node_host_bytes / 1e9),
            digits(1e3 * sums.gradients_s.value),
            digits(1e3 * sums.exposed_s.value),
            if plan.group.ranks() > 1 { algorithm(sums.algorithm) } else { "–" }.to_owned(),
        ]
    }));
    rows
}

fn algorithm(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Ring => "ring",
        Algorithm::Tree => "tree",
        Algorithm::Hierarchical => "hierarchical",
    }
}

fn cost(plan: &Plan) -> Lines {
    let Failures { expected, interval_s, best_interval_s, lost_fraction, .. } = plan.failures;
    let days = plan.hours.times(1.0 / 24.0);
    let energy = plan.kilowatt_hours.times(1e-3);
    let saves = format!(
        "every {}; least time is lost with {}",
        minutes(interval_s),
        minutes(best_interval_s)
    );
    vec![
        row("training", format!("{} h ({} days)", with_error(plan.hours), with_error(days))),
        row(
            "GPU-hours",
            format!("{} ± {}", whole(plan.device_hours.value), whole(plan.device_hours.deviation)),
        ),
        row("energy", format!("{} MWh", with_error(energy))),
        row(
            "failures",
            format!(
                "{expected:.1} expected; they and saving cost {:.2} % of the time",
                100.0 * lost_fraction
            ),
        ),
        row("checkpoints", saves),
    ]
}

/// Notes: what does not fit, and where the rates are from.
pub(super) fn notes(plan: &Plan, rates: &Rates) -> Vec<String> {
    let mut notes: Vec<String> = plan
        .stages
        .iter()
        .enumerate()
        .filter_map(|(index, stage)| too_large(index, stage, rates))
        .collect();
    let short = plan.stages.iter().filter(|stage| stage.limit == Some(Term::Data));
    notes.extend(short.map(|stage| {
        let kind = if stage.data.prepared { "prepared" } else { "raw" };
        format!(
            "stage {} waits for its {kind} samples: its GPUs need {} a second on each node, and {:.0} CPUs per GPU decode {}",
            stage.name,
            digits(stage.node_samples_per_s),
            stage.data.cpus,
            digits(stage.data.rank_per_s.unwrap_or_default().value * as_f64(plan.group.per_node)),
        )
    }));
    let [measured, all] = rates.measured();
    notes.push(format!(
        "rates of {}: {measured} of {all} were measured, the others are predicted",
        rates.device
    ));
    notes
}

fn too_large(index: usize, stage: &StagePlan, rates: &Rates) -> Option<String> {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    (!stage.fits).then(|| {
        format!(
            "stage {} needs up to {:.0} MiB per rank, more than the {:.0} MiB that one {} has: set stages.{index}.recompute or stages.{index}.micro_batch",
            stage.name,
            mib(stage.memory_bytes),
            rates.memory_mib - rates.reserved_mib.value,
            rates.device,
        )
    })
}

/// A number with about three significant digits.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => whole(value),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size > 0.0 => format!("{value:.2}"),
        _ => "0".to_owned(),
    }
}

/// A number with its standard deviation.
pub(crate) fn with_error(estimate: Estimate) -> String {
    let places = if estimate.value >= 10.0 { 1 } else { 2 };
    format!("{:.places$} ± {:.places$}", estimate.value, estimate.deviation)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far below 2^53")]
fn whole(value: f64) -> String {
    thousands(value.max(0.0).round() as u64)
}

fn minutes(seconds: f64) -> String {
    format!("{} min", digits(seconds / 60.0))
}

#[expect(clippy::cast_precision_loss, reason = "ranks are few")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
