//! Sections of the report. A section without data is left out or says that there is none.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vljepa_recipes::protocol::{Metrics, Phase};

use super::plot::{Axis, Plot, compact};
use super::time::{between, busy_seconds, moment};
use super::{Contents, NamedScore, control_name, percent, range, unreadable};
use crate::record::events::Event;
use crate::record::history::{Prediction, Sample};
use crate::record::provenance::AttemptOutcome;
use crate::record::rates::working_rate;
use crate::statistics::{median, to_f64};
use crate::terminal;

/// Largest number of incidents that are shown; the oldest ones are only in `events.jsonl`.
const MAX_INCIDENTS: usize = 40;

/// Section with curves over steps: loss, learning rate, throughput and others.
pub(super) fn learning(contents: &Contents) -> Markup {
    let metrics = &contents.metrics;
    let mut stages: Vec<(u64, String)> = Vec::new();
    let mut first = 0;
    for stage in &contents.recipe.stages {
        stages.push((first, stage.name.clone()));
        first += stage.steps;
    }
    let restarts: Vec<u64> = contents
        .record
        .iter()
        .flat_map(|record| record.attempts.iter().skip(1))
        .filter_map(|attempt| attempt.first_step)
        .collect();
    let recent = &contents.recent;
    let newest = &metrics[metrics.len().saturating_sub(recent.intervals())..];
    let bytes = |m: &Metrics| Some(m.data.as_ref()?.bytes_per_s() / 1e6);
    let points = |value: fn(&Metrics) -> Option<f64>| -> Vec<(u64, f64)> {
        metrics.iter().filter_map(|line| Some((line.step, value(line)?))).collect()
    };
    let plot = |title, newest, points: Vec<(u64, f64)>, axis, smooth, wide| {
        let (stages, restarts) = (&stages, &restarts);
        Plot { title, newest, points: &points, total: first, axis, smooth, stages, restarts, wide }
            .draw()
    };
    let draw = |title, axis, smooth, wide, value| {
        let points = points(value);
        let newest = points.last().map(|point| compact(point.1)).unwrap_or_default();
        plot(title, newest, points, axis, smooth, wide)
    };
    // One interval alone can be an outlier, so the title of a rate shows a median.
    let rate = |title, typical: Option<f64>, value: fn(&Metrics) -> Option<f64>| {
        let typical = typical.map(compact).unwrap_or_default();
        let newest = match recent.intervals() {
            0 | 1 => typical,
            count => format!("{typical} (median of {count})"),
        };
        plot(title, newest, points(value), Axis::FromZero, true, false)
    };
    html! {
        section {
            h2 { "Learning" }
            div.plots {
                (draw("loss", Axis::Fitted, true, true, |m| Some(m.loss)))
                (draw("learning rate", Axis::FromZero, false, false, |m| Some(m.learning_rate)))
                (rate("samples/s", recent.samples_per_s(), |m| Some(working_rate(m.samples_per_s, &m.phase_s))))
                (draw("gradient norm", Axis::Logarithmic, true, false, |m| Some(m.gradient_norm)))
                @if metrics.iter().any(|m| m.scale.is_some()) {
                    (draw("similarity scale α", Axis::Fitted, false, false, |m| m.scale))
                }
                @if metrics.iter().any(|m| m.gauges.is_some()) {
                    (draw("effective rank of predictions", Axis::FromZero, false, false, |m| Some(m.gauges?.predicted.effective_rank)))
                    (draw("effective rank of targets", Axis::FromZero, false, false, |m| Some(m.gauges?.target.effective_rank)))
                    (draw("uniformity of predictions", Axis::Fitted, false, false, |m| Some(m.gauges?.predicted.uniformity)))
                    (draw("uniformity of targets", Axis::Fitted, false, false, |m| Some(m.gauges?.target.uniformity)))
                    (draw("alignment", Axis::FromZero, false, false, |m| Some(m.gauges?.alignment)))
                }
                @if metrics.iter().any(|m| m.mfu.is_some()) {
                    (rate("MFU, share of the peak", recent.mfu(), |m| m.mfu))
                } @else if metrics.iter().any(|m| m.tflops.is_some()) {
                    (rate("TFLOP/s per rank", recent.tflops(), |m| m.tflops))
                }
                (rate("waiting for data, share", recent.data_wait_fraction(), |m| Some(m.data_wait_fraction)))
                @if metrics.iter().any(|m| m.data.is_some()) {
                    (draw("batches ready", Axis::FromZero, false, false, |m| Some(to_f64(m.data.as_ref()?.ready_batches as u64))))
                    (rate("data read, MB/s per rank", median(newest.iter().filter_map(bytes)), bytes))
                }
            }
            @if !restarts.is_empty() { p.note { b { "▲" } " the run was restarted here" } }
        }
    }
}

/// Section with the scores, compared with chance and with the most frequent answer.
pub(super) fn scores(contents: &Contents) -> Markup {
    let (controls, plain): (Vec<_>, Vec<_>) =
        contents.scores.iter().partition(|score| score.control.is_some());
    html! {
        section {
            h2 { "Scores" }
            @if contents.scores.is_empty() {
                p.note { "No scores have been measured yet." }
            } @else {
                div.scores {
                    @for score in plain { (score_row(score)) }
                    @if !controls.is_empty() {
                        p.divider {
                            "Controls: the samples are changed so that the score must fall to chance or follow the change"
                        }
                        @for score in controls { (score_row(score)) }
                    }
                }
                p.note {
                    i.mark.chance {} " chance: score of guessing"
                    i.mark.majority {} " majority: score of always giving the most frequent answer. A range is the 95 % interval (Wilson) for other samples."
                }
                (super::curves::section(contents))
            }
        }
    }
}

fn score_row(named: &NamedScore) -> Markup {
    let NamedScore { name, score, scale, control } = named;
    let along = |value: f64| 100.0 * (value / scale.maximum()).clamp(0.0, 1.0);
    let place = |value: f64| format!("left:{:.2}%", along(value));
    let guess = score.chance.unwrap_or(0.0).max(score.baseline.unwrap_or(0.0));
    let above = score.value > guess;
    html! {
        div.score.control[control.is_some()].above[above] {
            span.name {
                (name)
                @if let Some(control) = control { em { (control_name(*control)) } }
            }
            span.bar {
                span.fill style=(format!("width:{:.2}%", along(score.value))) {}
                @if let Some(baseline) = score.baseline { i.mark.majority style=(place(baseline)) {} }
                @if let Some(chance) = score.chance { i.mark.chance style=(place(chance)) {} }
            }
            b { (scale.text(score.value)) }
            span.small title=(format!("measured: {}", score.measured)) {
                @if let Some(interval) = score.interval { (range(interval)) " · " }
                @if let Some(chance) = score.chance { "chance " (scale.text(chance)) }
                @if let Some(baseline) = score.baseline.filter(|b| Some(*b) > score.chance) {
                    " · majority " (scale.text(baseline))
                }
                " · n " (terminal::thousands(score.n))
                @if score.unreadable > 0 { " · " (unreadable(score.unreadable)) }
            }
        }
    }
}

/// Section with real samples and the model's predictions.
pub(super) fn samples(contents: &Contents) -> Markup {
    if contents.samples.is_empty() {
        return html! {};
    }
    let known = contents.samples.iter().filter(|sample| sample.correct.is_some()).count();
    let right = contents.samples.iter().filter(|sample| sample.correct == Some(true)).count();
    html! {
        section {
            h2 { "What the model sees" }
            p.note {
                "Evaluation samples with the true text and the texts whose embeddings are nearest to the predicted embedding."
                @if known > 0 { " The nearest text is the true one for " (right) " of " (known) " samples." }
            }
            (cards(&contents.samples))
        }
    }
}

/// Samples with the model's predictions.
pub(super) fn cards(samples: &[Sample]) -> Markup {
    html! { div.samples { @for sample in samples { (card(sample)) } } }
}

fn card(sample: &Sample) -> Markup {
    let highest = sample.predictions.iter().map(|p| p.score).fold(0.05, f64::max);
    let width =
        |p: &Prediction| format!("width:{:.1}%", 100.0 * (p.score / highest).clamp(0.0, 1.0));
    html! {
        article.wrong[sample.correct == Some(false)] {
            div.frames { @for frame in &sample.frames { img src=(frame) alt=""; } }
            @if let Some(query) = sample.query.as_ref().filter(|query| !query.is_empty()) {
                p.query { (query) }
            }
            p.truth {
                @match sample.correct {
                    Some(true) => span.tick title="the nearest text is the true one" { "✓" },
                    Some(false) => span.cross title="the nearest text is not the true one" { "✗" },
                    None => {},
                }
                (sample.caption)
            }
            @if let Some(written) = &sample.written {
                p.written title="text that the model writes" { "✎ " (written) }
            }
            ol {
                @for prediction in &sample.predictions {
                    li.same[prediction.text == sample.caption] {
                        span { (prediction.text) }
                        b { (format!("{:.2}", prediction.score)) }
                        i style=(width(prediction)) {}
                    }
                }
            }
        }
    }
}

/// Section with the share of time in each phase, and the rates of each stage.
pub(super) fn time(contents: &Contents) -> Markup {
    let mut phases: BTreeMap<Phase, f64> = BTreeMap::new();
    for line in &contents.metrics {
        for (phase, seconds) in &line.phase_s {
            *phases.entry(*phase).or_default() += seconds;
        }
    }
    let total = busy_seconds(&contents.metrics);
    if total <= 0.0 {
        return html! {};
    }
    let share = |seconds: f64| seconds / total;
    html! {
        section {
            h2 { "Time" }
            div.phases {
                @for (phase, seconds) in &phases {
                    span class=(phase.name()) title=(phase.name()) style=(format!("flex-grow:{:.4}", share(*seconds))) {}
                }
            }
            ul.legend {
                @for (phase, seconds) in &phases {
                    li { i class=(phase.name()) {} (phase.name()) " " b { (percent(share(*seconds))) } " " (terminal::duration(*seconds)) }
                }
            }
            p.note { "Phases of rank 0 in all logged intervals, " (terminal::duration(total)) " in total." }
            (spent(contents))
            (super::reliability::stages(contents))
            (super::data::section(contents))
        }
    }
}

/// Table with the parts of the time since the start.
fn spent(Contents { rates, .. }: &Contents) -> Markup {
    html! {
        @if rates.elapsed_s > 0.0 {
            div.scroll { table {
                thead { tr { th { "since the start" } th { (terminal::duration(rates.elapsed_s)) } th { "share" } } }
                tbody {
                    @for (name, seconds) in rates.rows() {
                        tr {
                            td { (name) }
                            td { (terminal::duration(seconds)) }
                            td { (percent(seconds / rates.elapsed_s)) }
                        }
                    }
                }
            } }
        }
    }
}

/// Section with a table of all attempts.
pub(super) fn attempts(contents: &Contents) -> Markup {
    let attempts = contents.record.as_ref().map_or(&[][..], |record| &record.attempts);
    if attempts.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "Attempts" }
            div.scroll { table {
                thead { tr { th { "#" } th { "started" } th { "lasted" } th { "steps" } th { "ranks" } th { "end" } } }
                tbody {
                    @for attempt in attempts {
                        tr {
                            td { (attempt.number) }
                            td { (moment(&attempt.started)) }
                            td { (lasted(&attempt.started, attempt.ended.as_deref())) }
                            td {
                                @match attempt.first_step {
                                    Some(first) => { (terminal::thousands(first)) " → " (terminal::thousands(attempt.last_step)) },
                                    None => "–",
                                }
                            }
                            td {
                                (attempt.world_size)
                                @if !attempt.hosts.is_empty() { " on " (machines(&attempt.hosts)) }
                                @if let Some(job) = &attempt.job_id { ", job " (job) }
                            }
                            td {
                                span.state.(class(attempt.outcome)) { (attempt.outcome.name()) }
                                @if let Some(fault) = &attempt.fault { " " (fault) }
                            }
                        }
                    }
                }
            } }
        }
    }
}

/// The names of up to four machines, or the number of machines.
fn machines(hosts: &[String]) -> String {
    if hosts.len() > 4 { format!("{} machines", hosts.len()) } else { hosts.join(", ") }
}

fn lasted(started: &str, ended: Option<&str>) -> String {
    let seconds = ended.and_then(|ended| between(started, ended));
    seconds.map_or_else(|| "–".to_owned(), terminal::duration)
}

fn class(outcome: AttemptOutcome) -> &'static str {
    match outcome {
        AttemptOutcome::Unfinished => "plain",
        AttemptOutcome::Completed => "good",
        AttemptOutcome::Stopped | AttemptOutcome::Killed => "fair",
        AttemptOutcome::Failed => "bad",
    }
}

/// Section with faults, restarts, warnings and the number of bad samples.
pub(super) fn incidents(contents: &Contents) -> Markup {
    let mut shown: Vec<(String, &'static str, String)> = Vec::new();
    for line in &contents.events {
        let (kind, text) = match &line.event {
            Event::Fault(fault) => ("fault", format!("{fault} (log: {})", fault.log)),
            Event::Restart { delay_s } => ("restart", format!("restarted after {delay_s:.0} s")),
            Event::Refused { peer, reason } => {
                ("refused", format!("a connection from {peer}: {reason}"))
            }
            Event::Warning { rank, text } => ("warning", format!("rank {rank}: {text}")),
            Event::NodeLeftOut { node, reason } => ("node", format!("{node} left out: {reason}")),
            Event::ShardsChanged(changed) => ("data", changed.to_string()),
            Event::SupervisorLost { job, silent_s } => {
                ("fault", format!("the supervisor of job {job} was silent for {silent_s} s"))
            }
            Event::StopRequested { signal } => ("stop", format!("requested by {signal}")),
            Event::Saved { .. }
            | Event::Initialised { .. }
            | Event::Resumed(_)
            | Event::Submitted { .. }
            | Event::Straggler(_)
            | Event::AttemptStarted { .. }
            | Event::Started(_)
            | Event::RankJoined { .. }
            | Event::Scores { .. }
            | Event::AttemptEnded { .. } => continue,
        };
        shown.push((line.time.clone(), kind, text));
    }
    let left_out = shown.len().saturating_sub(MAX_INCIDENTS);
    let bad = contents.metrics.last().map_or(0, |line| line.bad_samples);
    html! {
        section {
            h2 { "Incidents" }
            p.note {
                @if shown.is_empty() { "None. " }
                (terminal::thousands(bad)) " bad samples were left out."
            }
            @if left_out > 0 { p.note { "The oldest " (left_out) " are only in events.jsonl." } }
            @if !shown.is_empty() {
                ul.incidents {
                    @for (time, kind, text) in shown.iter().skip(left_out) {
                        li { time { (moment(time)) } span.state.(incident_class(kind)) { (kind) } " " (text) }
                    }
                }
            }
        }
    }
}

fn incident_class(kind: &str) -> &'static str {
    match kind {
        "fault" => "bad",
        "warning" | "refused" | "data" | "node" => "fair",
        _ => "plain",
    }
}

/// Section with the recipe, versions, sources and data of the run.
pub(super) fn origin(contents: &Contents) -> Markup {
    html! {
        section {
            h2 { "Origin" }
            @if let Some(record) = &contents.record {
                dl {
                    dt { "command" } dd { code { (record.command.join(" ")) } }
                    @if let Some(git) = &record.git {
                        dt { "commit" }
                        dd {
                            code { (git.commit) }
                            @if let Some(diff) = &git.diff_hash { " with changes (diff " code { (short(diff)) } ")" }
                        }
                    }
                    @if let Some(of) = &record.reproduces {
                        dt { "reproduces" }
                        dd {
                            code { (of.display()) }
                            @if let Some(comparison) = &contents.reproduction { ": " (comparison) }
                        }
                    }
                    @for (name, file) in &record.files {
                        dt { (name) }
                        dd { code { (file.path.display()) } ", " (format!("{:.1}", to_f64(file.bytes) / 1e6)) " MB, " code { (short(&file.hash)) } }
                    }
                    @for (name, version) in &record.versions { dt { (name) } dd { (version) } }
                    @for (name, hash) in &record.binaries { dt { (name) } dd { code { (short(hash)) } } }
                    dt { "machine" }
                    dd { (record.host.name) ", Linux " (record.host.kernel) ", " (terminal::thousands(record.host.memory_mib)) " MiB" }
                    @for (name, list) in &record.shards {
                        dt { "shards of " (name) }
                        dd {
                            (terminal::thousands(list.count as u64)) " files, "
                            (format!("{:.1}", to_f64(list.bytes) / 1e6)) " MB, " code { (short(&list.hash)) }
                        }
                    }
                }
            }
            details {
                summary { "Resolved recipe " code { (short(&contents.recipe_hash)) } }
                pre { (contents.yaml) }
            }
        }
    }
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}
