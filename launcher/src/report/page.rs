//! The page of the report: header, key figures and sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use vljepa_recipes::protocol::Metrics;

use super::plot::{compact, to_f64};
use super::{Contents, percent, reliability, sections};
use crate::events::AttemptOutcome;
use crate::terminal;

const STYLE: &str = include_str!("style.css");

/// The whole HTML document.
pub(super) fn page(contents: &Contents) -> Markup {
    let name = &contents.recipe.name;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Captions and paths may contain anything, so the policy forbids loading and
                // running.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:";
                title { (name) " · VL-JEPA" }
                style { (PreEscaped(STYLE)) }
            }
            body {
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
            }
        }
    }
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
    let total: u64 = contents.recipe.stages.iter().map(|stage| stage.steps).sum();
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
            compact(median(metrics.iter().map(|m| m.samples_per_s))),
            "median".to_owned(),
        ),
        (
            "waiting for data",
            percent(mean(metrics.iter().map(|m| m.data_wait_fraction))),
            "of the time".to_owned(),
        ),
    ];
    if let Some(mfu) = last.mfu {
        let typical = median(metrics.iter().filter_map(|line| line.mfu));
        all.push(("MFU", percent(typical), format!("median; {} at the end", percent(mfu))));
    } else if last.tflops.is_some() {
        let typical = median(metrics.iter().filter_map(|line| line.tflops));
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

/// Seconds that rank 0 spent in its phases: the training time without the time between attempts.
pub(super) fn busy_seconds(metrics: &[Metrics]) -> f64 {
    metrics.iter().flat_map(|line| line.phase_s.values()).sum()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.iter().sum::<f64>() / to_f64(values.len() as u64).max(1.0)
}

/// Formats an RFC 3339 time: `2026-11-22T12:00:00.123Z` becomes `2026-11-22 12:00:00 UTC`. Other
/// text stays as it is.
pub(super) fn moment(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(moment) => moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => time.to_owned(),
    }
}

/// Seconds between two RFC 3339 times, or `None` if one of them is invalid.
pub(super) fn between(from: &str, to: &str) -> Option<f64> {
    let (from, to) = (from.parse::<jiff::Timestamp>().ok()?, to.parse::<jiff::Timestamp>().ok()?);
    Some(to.duration_since(from).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{between, moment};

    #[test]
    fn moments_are_shown_in_utc_and_broken_ones_as_they_are() {
        assert_eq!(moment("2026-11-22T12:00:00.123Z"), "2026-11-22 12:00:00 UTC");
        assert_eq!(moment("yesterday"), "yesterday");
        let seconds = between("2026-11-22T12:00:00Z", "2026-11-22T12:01:30.5Z").unwrap();
        assert!((seconds - 90.5).abs() < 1e-9);
        assert!(between("x", "y").is_none());
    }
}
