//! One page of all tables and figures, and the paper's claims that hold for them.

use maud::{Markup, html};
use vljepa_recipes::paper::Unit;

use super::text::replaced;
use super::{number, page, short};
use crate::record::paper::{Comparison, Judged, Paper, Verdict};
use crate::record::table::{Cell, OwnPoint, OwnRow, PaperComparison};
use crate::report::page::document;
use crate::statistics::to_f64;

/// Marks columns that show other sets than the paper's.
const REPLACED: &str = "\u{a0}†";

/// Draws the page of all tables and of the claims.
pub(in crate::report) fn whole_page(paper: &Paper) -> Markup {
    let seeds = paper.tables.iter().map(|table| table.seeds).max().unwrap_or(1);
    let body = html! {
        header {
            p.kind { "VL-JEPA, arXiv 2512.10942" }
            h1 { "Tables, figures and claims of the paper" }
            p.facts {
                (paper.tables.len()) " tables and figures, "
                @if seeds == 1 { "one seed. " } @else { "up to " (seeds) " seeds. " }
                "A claim is reproduced if all of its comparisons hold for every seed."
            }
        }
        main {
            (counts(paper))
            (claims(paper))
            @for table in &paper.tables { (section(table)) }
        }
    };
    document("Paper", "paper", &body)
}

fn counts(paper: &Paper) -> Markup {
    let all = [
        (Verdict::Reproduced, "for every seed"),
        (Verdict::NotReproduced, "for at least one comparison and seed"),
        (Verdict::NotComparable, "because their rows were not measured"),
    ];
    html! {
        section.figures {
            @for (verdict, below) in all {
                div { span { (verdict.name()) } b { (paper.count(verdict)) } span { (below) } }
            }
        }
    }
}

fn claims(paper: &Paper) -> Markup {
    let class = |verdict| match verdict {
        Verdict::Reproduced => "good",
        Verdict::NotReproduced => "bad",
        Verdict::NotComparable => "plain",
    };
    let has_replaced = paper.tables.iter().any(|table| !table.replaced.is_empty());
    html! {
        section {
            h2 { "Claims" }
            p.note {
                "Comparisons are those that the claim makes. ✗ marks one that does not hold here."
                @if has_replaced { " " (REPLACED.trim()) " marks scores of other sets than the paper's, which each table names." }
            }
            table.claims {
                thead { tr { th { "claim" } th { "in the paper" } th { "verdict" } th { "comparisons" } } }
                tbody {
                    @for judged in &paper.claims {
                        tr {
                            td { (judged.claim.claim) }
                            td { (judged.claim.place) @if !judged.claim.stated { span.below { "numbers only" } } }
                            td { span.state.(class(judged.verdict)) { (judged.verdict.name()) } }
                            td { (evidence(judged)) }
                        }
                    }
                }
            }
        }
    }
}

fn evidence(judged: &Judged) -> Markup {
    html! {
        ul.evidence {
            @for comparison in &judged.comparisons {
                li {
                    @if comparison.holds() { span.tick { "✓" } } @else { span.cross { "✗" } }
                    (comparison.text())
                }
            }
            @if !judged.missing.is_empty() {
                li.small { "not measured: " (judged.missing.iter().cloned().collect::<Vec<_>>().join(", ")) }
            }
        }
    }
}

impl Comparison {
    /// Both numbers with their names, and in how many seeds the relation holds.
    fn text(&self) -> String {
        let show = |value: f64| match self.unit {
            Some(unit) => number(value, unit),
            None if value.fract() == 0.0 => format!("{value:.0}"),
            None => format!("{value:.1}"),
        };
        let [first, second] = &self.names;
        let [a, b] = self.means().map(show);
        let mark = if self.is_replaced { REPLACED } else { "" };
        let mut text =
            format!("{}{mark}: {first} {a} {} {b} {second}", self.of, self.relation.sign());
        text.truncate(text.trim_end().len());
        if self.values.len() > 1 {
            text += &format!(", in {} of {} seeds", self.holds_in, self.values.len());
        } else if self.overlaps {
            text += ", intervals overlap";
        }
        text
    }
}

/// A table or figure: the measured columns of the rows that were measured.
fn section(table: &PaperComparison) -> Markup {
    let is_measured = |index: &usize| {
        let cells = table.own.iter().flat_map(|row| &row.points).map(|point| point.cells[*index]);
        cells.into_iter().any(|cell| cell.value.is_some())
    };
    let columns: Vec<usize> = (0..table.paper.columns.len()).filter(is_measured).collect();
    html! {
        section {
            h2 { (table.paper.title) }
            p.note { (table.paper.place)
                @if table.seeds > 1 { " · means of " (table.seeds) " seeds, with the lowest and the highest" }
                @else { " · with 95 % intervals" }
            }
            div.scroll {
                table.rows.fit {
                    thead {
                        tr {
                            th rowspan="2" { "row" } th.figure rowspan="2" { "parameters" } th.figure rowspan="2" { "samples" }
                            @for &column in &columns { th.figure.group colspan="2" { (title(table, column)) } }
                        }
                        tr { @for _ in &columns { th.figure.group { "paper" } th.figure { "here" } } }
                    }
                    tbody {
                        @for row in &table.own { @for point in &row.points { (line(row, point, table, &columns)) } }
                    }
                }
            }
            @if let Some(line) = replaced(table) { ul.notes { li { (line) } } }
        }
        (page::curves(table))
        (page::decoding(table))
    }
}

/// Title of a column, marked if it shows other sets than the paper's.
fn title(table: &PaperComparison, column: usize) -> String {
    let column = &table.paper.columns[column];
    let mark = if table.replaced.contains_key(&column.id) { REPLACED } else { "" };
    column.title.clone() + mark
}

fn line(row: &OwnRow, point: &OwnPoint, table: &PaperComparison, columns: &[usize]) -> Markup {
    html! {
        tr {
            td { (row.title) @if let Some(note) = &row.note { span.below { (note) } } }
            td.figure { (row.parameters.map_or_else(|| "–".to_owned(), |count| short(count.total))) }
            td.figure { (point.samples.or(row.samples).map_or_else(|| "–".to_owned(), short)) }
            @for &column in columns {
                @let unit = table.paper.columns[column].unit;
                @let printed = printed(row, point, table, column);
                td.figure.group { (printed.map_or_else(|| "–".to_owned(), |value| number(value, unit))) }
                td.figure { (here(point.cells[column], unit)) }
            }
        }
    }
}

fn here(cell: Cell, unit: Unit) -> Markup {
    html! {
        @match cell.value {
            None => "–",
            Some(value) => {
                b { (number(value, unit)) }
                @if let Some([low, high]) = cell.interval { span.below { (number(low, unit)) "–" (number(high, unit)) } }
            }
        }
    }
}

/// Value of the paper beside a measured one. A curve of other sets is shorter than the paper's: it
/// has the paper's values after the same share of the samples.
fn printed(row: &OwnRow, point: &OwnPoint, table: &PaperComparison, column: usize) -> Option<f64> {
    let is_replaced = table.replaced.contains_key(&table.paper.columns[column].id);
    let last = row.points.last().and_then(|point| point.samples);
    match (point.samples, last) {
        (Some(samples), Some(last)) if is_replaced => {
            row.twin?.after(to_f64(samples) / to_f64(last))?.get(column).copied().flatten()
        }
        _ => point.cells[column].paper,
    }
}
