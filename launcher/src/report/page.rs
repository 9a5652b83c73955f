//! The page of the report: header, key figures and sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot::compact;
use super::time::{busy_seconds, moment};
use super::{Contents, percent, reliability, sections};
use crate::record::provenance::AttemptOutcome;
use crate::statistics::{mean, median};
use crate::terminal;

/// Style of all pages.
const STYLE: &str = include_str!("style.css");

/// Captions and paths may contain anything, so the policy forbids loading and running.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// An HTML document whose body has the class `class`. It loads and runs nothing.
pub(super) fn document(name: &str, class: &str, body: &Markup) -> Markup {
    document_with(POLICY, name, class, body)
}

/// An HTML document with a content security policy.
pub(super) fn document_with(policy: &str, name: &str, class: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(policy);
                title { (name) " · VL-JEPA" }
                style { (PreEscaped(STYLE)) }
            }
            body.(class) { (body) }
        }
    }
}

/// Draws the report of a training run.
pub(super) fn page(contents: &Contents) -> Markup {
    let body = html! {
        (header(contents))
        main {
            (figures(contents))
            (sections::learning(contents))
            (sections::scores(contents))
            (sections::samples(contents))
            (sections::time(contents))
            (sections::attempts(contents))
            (reliability::section(contents))
            (sections::incidents(contents))
            (sections::origin(contents))
        }
    };
    document(&contents.recipe.name, "run", &body)
}

fn header(contents: &Contents) -> Markup {
    let (state, word) = state(contents);
    let record = contents.record.as_ref();
    let started = record.and_then(|record| Some(record.attempts.first()?.started.clone()));
    let ranks = contents.recipe.cluster.world_size();
    html! {
        header {
            p.kind { "VL-JEPA training run" }
            h1 { (contents.recipe.name) " " span.state.(state) { (word) } }
            p.facts {
                (ranks) @if ranks == 1 { " rank" } @else { " ranks" }
                @if let Some(record) = record {
                    " on " (record.host.name)
                    @if !record.host.cpu.is_empty() { " · " (record.host.cpu) }
                    " · " (record.host.cores) " cores"
                }
                @if let Some(started) = started { " · started " (moment(&started)) }
            }
        }
    }
}

/// CSS class and name of the run's state.
fn state(contents: &Contents) -> (&'static str, &'static str) {
    if contents.complete {
        return ("good", "completed");
    }
    let attempts = contents.record.as_ref().map(|record| record.attempts.as_slice());
    match attempts.and_then(<[_]>::last).map(|attempt| attempt.outcome) {
        None => ("plain", "not started"),
        Some(AttemptOutcome::Unfinished) => ("plain", "unfinished"),
        Some(AttemptOutcome::Completed) => ("bad", "no valid record"),
        Some(AttemptOutcome::Stopped) => ("fair", "stopped"),
        Some(AttemptOutcome::Killed) => ("fair", "stopped at once"),
        Some(AttemptOutcome::Failed) => ("bad", "failed"),
    }
}

/// The key figures of the run.
fn figures(contents: &Contents) -> Markup {
    let metrics = &contents.metrics;
    let Some(last) = metrics.last() else { return html! {} };
    let total = contents.recipe.total_steps();
    let mut all = vec![
        (
            "steps",
            terminal::thousands(last.step),
            format!(
                "of {} in {} stage{}",
                terminal::thousands(total),
                contents.recipe.stages.len(),
                plural(contents.recipe.stages.len())
            ),
        ),
        (
            "training time",
            terminal::duration(busy_seconds(metrics)),
            format!("{} samples", terminal::thousands(last.samples)),
        ),
        ("loss", format!("{:.3}", last.loss), format!("from {:.3}", metrics[0].loss)),
        (
            "samples/s",
            contents.rates.recent_samples_per_s.map_or_else(|| "–".to_owned(), compact),
            format!(
                "{}; {} in the whole run",
                contents.rates.window(),
                contents.rates.whole_run_samples_per_s.map_or_else(|| "–".to_owned(), compact)
            ),
        ),
        (
            "waiting for data",
            percent(mean(metrics.iter().map(|m| m.data_wait_fraction))),
            "of the time".to_owned(),
        ),
    ];
    if last.mfu.is_some() {
        let typical = median(metrics.iter().filter_map(|line| line.mfu)).unwrap_or_default();
        all.push(("MFU", percent(typical), "median".to_owned()));
    } else if last.tflops.is_some() {
        let typical = median(metrics.iter().filter_map(|line| line.tflops)).unwrap_or_default();
        all.push(("TFLOP/s per rank", compact(typical), "median".to_owned()));
    }
    all.push((
        "bad samples",
        terminal::thousands(last.bad_samples),
        if last.bad_samples == 0 {
            "none left out".to_owned()
        } else {
            "replaced by others".to_owned()
        },
    ));
    html! {
        section.figures {
            @for (name, value, below) in all {
                div { span { (name) } b { (value) } span { (below) } }
            }
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
