//! Tables of a plan that come from rates: time of the stages, budget of a step, data, cost.

use vljepa_recipes::plan::{Algorithm, Estimate, Plan, Rates, StagePlan, Term};

use super::Lines;
use super::tables::row;
use crate::statistics::to_f64;
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
        "needs pictures/s",
        "needs clips/s",
        "decodes samples/s",
        "needs MB/s",
        "host GB",
        "sum of gradients, ms",
        "after backward, ms",
        "algorithm",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(plan.stages.iter().map(|stage| {
        let ranks = to_f64(plan.group.per_node as u64);
        let decoded = stage.data.rank_samples_per_s.map(|rate| digits(rate.value * ranks));
        let sums = stage.communication;
        vec![
            stage.name.clone(),
            digits(stage.node_pictures_per_s),
            digits(stage.node_clips_per_s),
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
    let failures = &plan.failures;
    let days = plan.hours.times(1.0 / 24.0);
    let intervals: Vec<String> = failures.interval_s.iter().map(|s| digits(s / 60.0)).collect();
    let best = digits(failures.best_interval_s / 60.0);
    vec![
        row("training", format!("{} h ({} days)", with_error(plan.hours), with_error(days))),
        row("GPU-hours", with_error(plan.device_hours)),
        row("energy", format!("{} kWh", with_error(plan.kilowatt_hours))),
        row(
            "failures",
            format!(
                "{} expected; they and saving cost {} h, {} % of the time",
                digits(failures.expected_failures),
                digits(failures.lost_hours),
                digits(100.0 * failures.lost_fraction)
            ),
        ),
        row(
            "checkpoints",
            format!(
                "every {} min in the stages; least time is lost with {best} min",
                intervals.join(", ")
            ),
        ),
    ]
}

/// Notes: what does not fit, and where the rates are from.
pub(super) fn notes(plan: &Plan, rates: &Rates) -> Vec<String> {
    let mut notes: Vec<String> =
        plan.stages.iter().filter_map(|stage| too_large(stage, rates)).collect();
    let short = plan.stages.iter().filter(|stage| stage.limit == Some(Term::Data));
    notes.extend(short.map(|stage| waits(plan, stage)));
    if plan.failures.lost_fraction > 1.0 {
        notes.push("with so many failures, more time is lost than trained".to_owned());
    }
    let [measured, all] = rates.measured();
    notes.push(format!(
        "rates of {}: {measured} of {all} were measured, the others are predicted",
        rates.device
    ));
    notes
}

/// Says what a stage waits for that is limited by its data.
fn waits(plan: &Plan, stage: &StagePlan) -> String {
    let name = &stage.name;
    if stage.waits_for_upload {
        return format!("stage {name} waits for the upload of its frames (upload_gb_per_s)");
    }
    let kind = if stage.data.prepared { "prepared" } else { "raw" };
    let decoded = stage.data.rank_samples_per_s.unwrap_or_default();
    format!(
        "stage {name} waits for its {kind} samples: a node's GPUs need {} a second, and {} CPUs \
         for each decode {}",
        digits(stage.node_pictures_per_s + stage.node_clips_per_s),
        digits(stage.data.cpus),
        digits(decoded.value * to_f64(plan.group.per_node as u64)),
    )
}

fn too_large(stage: &StagePlan, rates: &Rates) -> Option<String> {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let memory = &stage.memory_bytes;
    let parts = [
        ("activations", memory.activations),
        ("features of all rows", memory.features),
        ("frames", memory.frames),
        ("optimizer", memory.optimizer),
        ("gradients", memory.gradients),
        ("weights", memory.weights),
        ("embeddings", memory.embeddings),
    ];
    let most = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    (!stage.fits).then(|| {
        format!(
            "stage {} needs up to {:.0} MiB per rank, more than the {:.0} MiB that one {} has; \
             most of it are {}",
            stage.name,
            mib(stage.peak_bytes),
            rates.memory_mib - rates.reserved_mib.value,
            rates.device,
            most.map_or("–", |(name, _)| name),
        )
    })
}

/// A number with about three significant digits.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 1e15 => format!("{value:.2e}"),
        size if size >= 10_000.0 => thousands(whole(value)),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        size if size > 0.0 => format!("{value:.1e}"),
        _ => "0".to_owned(),
    }
}

/// A number with its standard deviation.
pub(crate) fn with_error(estimate: Estimate) -> String {
    format!("{} ± {}", digits(estimate.value), digits(estimate.deviation))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far below 2^53")]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}
