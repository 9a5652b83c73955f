//! Details of the measured rows of a table: labels, examples, all metrics and tasks.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vljepa_recipes::paper::Unit;
use vljepa_recipes::protocol::LabelCount;
use vljepa_recipes::schema::{Recipe, SampleSource, Task};

use super::number;
use crate::record::table::OwnRow;
use crate::report::{Scale, range, sections};
use crate::statistics::to_f64;
use crate::terminal;

/// Number of labels that are shown of the best and of the worst ones.
const LABELS: usize = 12;
/// Largest number of examples of a row.
const EXAMPLES: usize = 6;

/// Bars of the labels that a row knows best and worst.
pub(super) fn labels(row: &OwnRow) -> Markup {
    let share = |count: &LabelCount| to_f64(count.right) / to_f64(count.n.max(1));
    let sorted = |counts: &BTreeMap<String, LabelCount>| {
        let mut all: Vec<(String, LabelCount)> = counts.clone().into_iter().collect();
        all.sort_by(|a, b| share(&b.1).total_cmp(&share(&a.1)));
        let left_out = all.len().saturating_sub(2 * LABELS);
        if left_out > 0 {
            all.drain(LABELS..LABELS + left_out);
        }
        (all, left_out)
    };
    html! {
        @if !row.labels.is_empty() {
            section {
                @for (task, counts) in &row.labels { details {
                    summary { (row.title) ": labels of " (task) }
                    @let (shown, left_out) = sorted(counts);
                    div.scores {
                        @for (index, (label, count)) in shown.iter().enumerate() {
                            @if left_out > 0 && index == LABELS {
                                p.divider { (left_out) " labels between these are not shown" }
                            }
                            div.score.above {
                                span.name { (label) }
                                span.bar { span.fill style=(format!("width:{:.2}%", 100.0 * share(count))) {} }
                                b { (number(100.0 * share(count), Unit::Hundredth)) }
                                span.small { (terminal::thousands(count.right)) " of " (terminal::thousands(count.n)) }
                            }
                        }
                    }
                } }
            }
        }
    }
}

/// Samples with the model's answers.
pub(super) fn examples(row: &OwnRow) -> Markup {
    let examples = &row.examples[..row.examples.len().min(EXAMPLES)];
    html! {
        @if !examples.is_empty() {
            section {
                h2 { "Examples: " (row.title) }
                (sections::cards(examples))
            }
        }
    }
}

/// All metrics of a row with what identifies their measurement.
pub(super) fn measured(row: &OwnRow) -> Markup {
    if row.metrics.is_empty() {
        return html! {};
    }
    let scale = |metric: &String| {
        let mut tasks = row.recipe.iter().flat_map(|recipe| &recipe.evaluation.tasks);
        let task = tasks.find(|task| task.metrics().contains(metric));
        task.map_or(Scale::Fraction, |task| Scale::of(task.unit(metric)))
    };
    html! {
        section {
            details {
                summary { "All metrics of " (row.title) }
                div.scroll { table {
                    thead { tr { th { "metric" } th { "value" } th { "95 %" } th { "chance" } th { "n" } th { "unreadable" } th { "measured" } } }
                    tbody {
                        @for (name, score) in &row.metrics {
                            tr {
                                td { (name) }
                                td { (scale(name).text(score.value)) }
                                td { (score.interval.map_or_else(|| "–".to_owned(), range)) }
                                td { (score.chance.map_or_else(|| "–".to_owned(), |value| scale(name).text(value))) }
                                td { (terminal::thousands(score.n)) }
                                td { (terminal::thousands(score.unreadable)) }
                                td { code { (score.measured) } }
                            }
                        }
                    }
                } }
            }
        }
    }
}

/// What the tasks ask, and of which samples.
pub(super) fn tasks(recipe: &Recipe) -> Markup {
    let frames = |task: &Task| match task.frames {
        Some(frames) => frames.to_string(),
        None => "of the last stage".to_owned(),
    };
    let published = |task: &Task| match task.source() {
        SampleSource::Set(set) => set.source.clone(),
        SampleSource::Shards { shards, .. } => shards.to_owned(),
    };
    html! {
        section {
            details {
                summary { "Tasks, frames and prompts" }
                div.scroll { table {
                    thead { tr { th { "task" } th { "frames" } th { "prompt" } th { "samples" } } }
                    tbody {
                        @for task in &recipe.evaluation.tasks {
                            tr {
                                td { (task.name) } td { (frames(task)) }
                                td { @if task.query.is_empty() { "none" } @else { (task.query) } }
                                td { (published(task)) }
                            }
                        }
                    }
                } }
            }
        }
    }
}
