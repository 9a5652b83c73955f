//! The page of a table: the paper's rows with the measured ones, curves, bars and examples.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use vljepa_recipes::paper::{Column, PaperRow, Unit};
use vljepa_recipes::protocol::{DecodedEmbedding, DecodingCurve, DecodingPoints, LabelCount};
use vljepa_recipes::schema::{Recipe, SampleSource, Task};

use super::chart::{Chart, Curve};
use super::text::notes;
use super::{number, short, signed};
use crate::record::table::{Cell, OwnRow, PaperComparison};
use crate::report::page::{POLICY, STYLE};
use crate::report::{Scale, range, sections};
use crate::statistics::to_f64;
use crate::terminal;

/// Number of labels that are shown of the best and of the worst ones.
const LABELS: usize = 12;
/// Largest number of examples of a row.
const EXAMPLES: usize = 6;

/// The whole HTML document.
pub(in crate::report) fn page(compared: &PaperComparison, recipe: &Recipe) -> Markup {
    let paper = compared.paper;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (recipe.name) " · VL-JEPA" }
                style { (PreEscaped(STYLE)) }
            }
            body.paper {
                header {
                    p.kind { (paper.place) }
                    h1 { (paper.title) }
                    p.facts { "Measured rows stand in colour below the paper's, with their difference to it." }
                }
                main {
                    (rows(compared))
                    (curves(compared))
                    (decoding(compared))
                    (differences(compared))
                    @for row in &compared.own { (labels(row)) }
                    @for row in &compared.own { (examples(row)) }
                    @for row in &compared.own { (measured(row)) }
                    @if !recipe.evaluation.tasks.is_empty() { (tasks(recipe)) }
                }
            }
        }
    }
}

/// The table: rows of the paper in its order, each with the measured rows that belong to it.
fn rows(compared: &PaperComparison) -> Markup {
    let paper = compared.paper;
    let of = |twin: &PaperRow| {
        let id = twin.id.clone();
        compared.own.iter().filter(move |row| row.twin.is_some_and(|twin| twin.id == id))
    };
    html! {
        section {
            div.scroll {
                table.rows {
                    thead {
                        tr {
                            th { "row" } th.figure { "parameters" } th.figure { "samples" }
                            @for column in &paper.columns { th.figure { (column.title) } }
                        }
                    }
                    tbody {
                        @for row in &paper.rows {
                            (printed(row))
                            @for own in of(row) { (own_row(own)) }
                        }
                        @for own in compared.own.iter().filter(|row| row.twin.is_none()) { (own_row(own)) }
                    }
                }
            }
            ul.notes {
                @for line in notes(compared) { li { (line) } }
            }
        }
    }
}

/// A row of the paper; one line for each point of a curve.
fn printed(row: &PaperRow) -> Markup {
    let points: Vec<(Option<u64>, &[Option<f64>])> = if row.points.is_empty() {
        vec![(None, &row.values)]
    } else {
        row.points.iter().map(|point| (Some(point.samples), &*point.values)).collect()
    };
    html! {
        @for (samples, values) in points {
            tr {
                td title=[row.note.as_deref()] { (row.name) @if row.note.is_some() { " *" } }
                td.figure { (row.parameters.as_deref().unwrap_or("–")) }
                td.figure {
                    @match samples {
                        Some(samples) => (short(samples)),
                        None => (row.samples.as_deref().unwrap_or("–")),
                    }
                }
                @for value in values { td.figure { (value.map_or_else(|| "–".to_owned(), number)) } }
            }
        }
    }
}

fn own_row(row: &OwnRow) -> Markup {
    let parameters = row.parameters.map_or_else(|| "–".to_owned(), |count| short(count.total));
    html! {
        @for point in &row.points {
            tr.own {
                td {
                    "measured" @if row.twin.is_none() { ": " (row.name) }
                    span.below { (row.weights) }
                }
                td.figure { (parameters) }
                td.figure { (point.samples.or(row.samples).map_or_else(|| "–".to_owned(), short)) }
                @for cell in &point.cells { (own_cell(cell)) }
            }
        }
    }
}

fn own_cell(cell: &Cell) -> Markup {
    let interval = cell.interval.map(|[low, high]| format!("95 %: {low:.1}–{high:.1}"));
    html! {
        td.figure title=[interval] {
            @match cell.value {
                None => "–",
                Some(value) => {
                    b { (number(value)) }
                    @if let Some(difference) = cell.difference {
                        span.below.good[difference >= 0.05].bad[difference <= -0.05] { (signed(difference)) }
                    }
                },
            }
        }
    }
}

/// Charts of the columns of a figure over the samples seen.
fn curves(compared: &PaperComparison) -> Markup {
    let paper = compared.paper;
    if paper.rows.iter().all(|row| row.points.is_empty()) {
        return html! {};
    }
    let chart = |(index, column): (usize, &Column)| {
        let printed = paper.rows.iter().enumerate().map(|(colour, row)| Curve {
            name: row.name.clone(),
            colour,
            is_printed: true,
            points: row
                .points
                .iter()
                .filter_map(|point| Some((to_f64(point.samples), point.values[index]?)))
                .collect(),
        });
        let own = compared.own.iter().map(|row| Curve {
            name: row.title.clone(),
            colour: paper
                .rows
                .iter()
                .position(|twin| Some(&twin.id) == row.twin.map(|twin| &twin.id))
                .unwrap_or(paper.rows.len()),
            is_printed: false,
            points: row
                .points
                .iter()
                .filter_map(|point| Some((to_f64(point.samples?), point.cells[index].value?)))
                .collect(),
        });
        let curves = own.chain(printed).filter(|curve| !curve.points.is_empty()).collect();
        Chart { title: &column.title, along: "samples seen", curves, is_logarithmic: false }.draw()
    };
    html! {
        section {
            h2 { "Over samples seen" }
            div.plots { @for column in paper.columns.iter().enumerate() { (chart(column)) } }
        }
    }
}

/// Bars of the measured values with the paper's values as marks.
fn differences(compared: &PaperComparison) -> Markup {
    let compared_rows = compared.own.iter().filter(|row| {
        row.points.len() == 1 && row.points[0].cells.iter().any(|cell| cell.difference.is_some())
    });
    let along = |value: f64| format!("{:.2}%", value.clamp(0.0, 100.0));
    html! {
        @for row in compared_rows {
            section {
                h2 { (row.title) ", measured and printed" }
                div.scores {
                    @for (column, cell) in compared.paper.columns.iter().zip(&row.points[0].cells) {
                        @if let Some(value) = cell.value {
                            div.score.above {
                                span.name { (column.title) }
                                span.bar {
                                    span.fill style=(format!("width:{}", along(value))) {}
                                    @if let Some(paper) = cell.paper {
                                        i.mark.majority style=(format!("left:{}", along(paper))) {}
                                    }
                                }
                                b { (number(value)) }
                                span.small {
                                    @if let Some([low, high]) = cell.interval { (number(low)) "–" (number(high)) " · " }
                                    @match cell.paper {
                                        Some(paper) => { "paper " (number(paper)) },
                                        None => "the paper prints no value",
                                    }
                                }
                            }
                        }
                    }
                }
                p.note { i.mark.majority {} " printed by the paper. A range is the 95 % interval for other samples of the sets." }
            }
        }
    }
}

/// Charts of selective decoding: CIDEr over the number of decodes.
fn decoding(compared: &PaperComparison) -> Markup {
    let charts = compared.own.iter().flat_map(|row| {
        row.decoding.iter().map(move |(task, of_task)| {
            let curve = |(colour, curve): (usize, &DecodingCurve)| {
                let points = match curve.points {
                    DecodingPoints::Uniform => "uniform",
                    DecodingPoints::Adaptive => "adaptive",
                };
                let embedding = match curve.embedding {
                    DecodedEmbedding::Exact => "exact",
                    DecodedEmbedding::Mean => "mean",
                };
                let mut points_of: Vec<(f64, f64)> = curve
                    .scores
                    .iter()
                    .map(|score| (score.decodes_per_s, Unit::Hundredth.of(score.cider)))
                    .collect();
                points_of.sort_by(|a, b| a.0.total_cmp(&b.0));
                let name = format!("{points} points, {embedding} embedding");
                Curve { name, colour, is_printed: false, points: points_of }
            };
            let title = format!("{}: {task}, CIDEr", row.title);
            let curves = of_task.curves.iter().enumerate().map(curve).collect();
            Chart {
                title: &title,
                along: "decodes per second (logarithmic)",
                curves,
                is_logarithmic: true,
            }
            .draw()
        })
    });
    let charts: Vec<Markup> = charts.collect();
    html! {
        @if !charts.is_empty() {
            section {
                h2 { "CIDEr by decodes per second" }
                div.plots { @for chart in charts { (chart) } }
            }
        }
    }
}

/// Bars of the labels that a row knows best and worst.
fn labels(row: &OwnRow) -> Markup {
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
        @for (task, counts) in &row.labels {
            section {
                details {
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
                                b { (number(100.0 * share(count))) }
                                span.small { (terminal::thousands(count.right)) " of " (terminal::thousands(count.n)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Samples with the model's answers.
fn examples(row: &OwnRow) -> Markup {
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
fn measured(row: &OwnRow) -> Markup {
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
fn tasks(recipe: &Recipe) -> Markup {
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
