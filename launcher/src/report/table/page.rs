//! The page of a table: the paper's rows with the measured ones, curves, bars and examples.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vljepa_recipes::paper::{Column, PaperRow, Unit};
use vljepa_recipes::protocol::{DecodedEmbedding, DecodingCurve, DecodingPoints};
use vljepa_recipes::schema::Recipe;

use super::details;
use super::text::notes;
use super::{number, short, signed};
use crate::record::table::{Cell, OwnRow, PaperComparison};
use crate::report::chart::{Chart, Curve};
use crate::report::page::document;
use crate::statistics::to_f64;

/// Draws the page of one table or figure.
pub(in crate::report) fn page(compared: &PaperComparison, recipe: &Recipe) -> Markup {
    let paper = compared.paper;
    let body = html! {
        header {
            p.kind { (paper.place) }
            h1 { (paper.title) }
            p.facts { "Coloured rows are measured. Small numbers are differences to the paper's row above." }
        }
        main {
            (rows(compared))
            (curves(compared))
            (decoding(compared))
            (differences(compared))
            @for row in &compared.own { (details::labels(row)) }
            @for row in &compared.own { (details::examples(row)) }
            @for row in &compared.own { (details::measured(row)) }
            @if !recipe.evaluation.tasks.is_empty() { (details::tasks(recipe)) }
        }
    };
    document(&recipe.name, "paper", &body)
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
                            (printed(row, &paper.columns))
                            @for own in of(row) { (own_row(own, &paper.columns)) }
                        }
                        @for own in compared.own.iter().filter(|row| row.twin.is_none()) { (own_row(own, &paper.columns)) }
                    }
                }
            }
            ul.notes {
                @for line in notes(compared) { li { (line) } }
                @for (note, names) in printed_notes(compared) { li { "* " (names.join(", ")) ": " (note) } }
            }
        }
    }
}

/// Notes about rows of the paper, each with the names of its rows.
fn printed_notes(compared: &PaperComparison) -> BTreeMap<&str, Vec<&str>> {
    let mut notes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &compared.paper.rows {
        if let Some(note) = &row.note {
            notes.entry(note).or_default().push(&row.name);
        }
    }
    notes
}

/// A row of the paper; one line for each point of a curve.
fn printed(row: &PaperRow, columns: &[Column]) -> Markup {
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
                @for (value, column) in values.iter().zip(columns) {
                    td.figure { (value.map_or_else(|| "–".to_owned(), |value| number(value, column.unit))) }
                }
            }
        }
    }
}

fn own_row(row: &OwnRow, columns: &[Column]) -> Markup {
    let parameters = row.parameters.map_or_else(|| "–".to_owned(), |count| short(count.total));
    html! {
        @for point in &row.points {
            tr.own {
                td {
                    @if row.metrics.is_empty() { "not measured" } @else { "measured" }
                    @if row.twin.is_none() { ": " (row.name) }
                    span.below { (row.weights) }
                }
                td.figure { (parameters) }
                td.figure { (point.samples.or(row.samples).map_or_else(|| "–".to_owned(), short)) }
                @for (cell, column) in point.cells.iter().zip(columns) { (own_cell(cell, column.unit)) }
            }
        }
    }
}

fn own_cell(cell: &Cell, unit: Unit) -> Markup {
    let interval = cell
        .interval
        .map(|[low, high]| format!("95 %: {}–{}", number(low, unit), number(high, unit)));
    html! {
        td.figure title=[interval] {
            @match cell.value {
                None => "–",
                Some(value) => {
                    b { (number(value, unit)) }
                    @if let Some(difference) = cell.difference {
                        span.below.good[difference >= 0.05].bad[difference <= -0.05] { (signed(difference, unit)) }
                    }
                },
            }
        }
    }
}

/// Charts of the columns of a figure over the samples seen.
pub(super) fn curves(compared: &PaperComparison) -> Markup {
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
        let own = compared.own.iter().enumerate().map(|(number_of_row, row)| Curve {
            name: row.title.clone(),
            colour: paper
                .rows
                .iter()
                .position(|twin| Some(&twin.id) == row.twin.map(|twin| &twin.id))
                .unwrap_or(paper.rows.len() + number_of_row),
            is_printed: false,
            points: row
                .points
                .iter()
                .filter_map(|point| Some((to_f64(point.samples?), point.cells[index].value?)))
                .collect(),
        });
        // Scores of other sets than the paper's have other sizes.
        let printed = printed.filter(|_| !compared.replaced.contains_key(&column.id));
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
                        // A factor has no largest value, which a bar could show.
                        @if let Some(value) = cell.value.filter(|_| column.unit == Unit::Hundredth) {
                            div.score.above {
                                span.name { (column.title) }
                                span.bar {
                                    span.fill style=(format!("width:{}", along(value))) {}
                                    @if let Some(paper) = cell.paper {
                                        i.mark.majority style=(format!("left:{}", along(paper))) {}
                                    }
                                }
                                b { (number(value, column.unit)) }
                                span.small {
                                    @if let Some([low, high]) = cell.interval { (number(low, column.unit)) "–" (number(high, column.unit)) " · " }
                                    @match cell.paper {
                                        Some(paper) => { "paper " (number(paper, column.unit)) },
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
pub(super) fn decoding(compared: &PaperComparison) -> Markup {
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
