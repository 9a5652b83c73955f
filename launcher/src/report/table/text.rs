//! Measured rows beside those of the paper, as lines of text.

use vljepa_recipes::paper::Unit;

use crate::record::table::{Cell, OwnRow, PaperComparison};
use crate::terminal;

use super::{number, short, signed};

/// Number of columns of a table above which each of them is a line of the text.
const MANY_COLUMNS: usize = 4;
/// Groups of a value, the paper's and their difference that fit beside each other.
const GROUPS: usize = 2;

/// Tables for the terminal, and a line about each row.
pub(super) fn terminal(compared: &PaperComparison) -> String {
    let mut text = format!("{} ({})", compared.paper.title, compared.paper.place);
    for grid in grids(compared) {
        text += &format!("\n\n{}", terminal::table(&grid));
    }
    for line in notes(compared) {
        text += &format!("\n\n{line}");
    }
    text
}

/// The same as Markdown.
pub(super) fn markdown(compared: &PaperComparison) -> String {
    let mut text = format!("# {}\n\nPaper: {}.\n", compared.paper.title, compared.paper.place);
    for grid in grids(compared) {
        text.push('\n');
        for (index, line) in grid.iter().enumerate() {
            let cells: Vec<String> = line.iter().map(|cell| cell.replace('|', "\\|")).collect();
            text += &format!("| {} |\n", cells.join(" | "));
            if index == 0 {
                let ruler = |column| if column == 0 { "---" } else { "---:" };
                let rulers: Vec<&str> = (0..line.len()).map(ruler).collect();
                text += &format!("| {} |\n", rulers.join(" | "));
            }
        }
    }
    text.push('\n');
    for line in notes(compared) {
        text += &format!("- {line}\n");
    }
    text
}

/// Lines about the rows, and a line about columns that show other metrics than the paper's.
pub(super) fn notes(compared: &PaperComparison) -> Vec<String> {
    compared.own.iter().map(about).chain(replaced(compared)).collect()
}

/// A line about columns that show other metrics than the paper's, if there are any.
pub(super) fn replaced(compared: &PaperComparison) -> Option<String> {
    let title = |id: &String| {
        let column = compared.paper.columns.iter().find(|column| column.id == *id);
        column.map_or(id.clone(), |column| column.title.clone())
    };
    let shows = |(id, metrics): (&String, &Vec<String>)| {
        format!("{} shows {}", title(id), metrics.join(", "))
    };
    let columns: Vec<String> = compared.replaced.iter().map(shows).collect();
    let listed = columns.join("; ");
    (!columns.is_empty()).then(|| format!("Measured on other sets than the paper's: {listed}"))
}

/// Tables of cells, each with its header.
fn grids(compared: &PaperComparison) -> Vec<Vec<Vec<String>>> {
    let default = compared.default_cells();
    let default = default.as_deref();
    let columns = &compared.paper.columns;
    // A line of its own for each point of a row, or for each column.
    let points: Vec<(String, &[Cell])> = compared.own.iter().flat_map(points).collect();
    let of_point = |(name, cells): &(String, &[Cell]), column: usize| {
        (
            name.clone(),
            columns[column].title.clone(),
            group(cells, default, column, columns[column].unit),
        )
    };
    let lines: Vec<Vec<(String, String, [String; 4])>> = if columns.len() > MANY_COLUMNS {
        (0..columns.len())
            .map(|column| {
                let group = |point| {
                    let (row, title, cells) = of_point(point, column);
                    (title, row, cells)
                };
                points.iter().map(group).collect()
            })
            .collect()
    } else {
        let line = |point| (0..columns.len()).map(|column| of_point(point, column)).collect();
        points.iter().map(line).collect()
    };
    let width = lines.first().map_or(0, Vec::len);
    (0..width)
        .step_by(GROUPS)
        .map(|start| {
            let groups = start..width.min(start + GROUPS);
            let mut header = vec![String::new()];
            for (_, name, _) in lines.first().into_iter().flat_map(|line| &line[groups.clone()]) {
                header.extend([name.clone(), "paper".to_owned(), "difference".to_owned()]);
                header.push("95 %".to_owned());
            }
            let line = |line: &Vec<(String, String, [String; 4])>| {
                let cells = line[groups.clone()].iter().flat_map(|(_, _, cells)| cells.clone());
                std::iter::once(line[groups.start].0.clone()).chain(cells).collect()
            };
            std::iter::once(header).chain(lines.iter().map(line)).collect()
        })
        .collect()
}

/// Name and cells of each point of a row.
fn points(row: &OwnRow) -> impl Iterator<Item = (String, &[Cell])> {
    row.points.iter().map(|point| {
        let after = point.samples.map(|samples| format!(", {} samples", short(samples)));
        (row.title.clone() + &after.unwrap_or_default(), &*point.cells)
    })
}

/// Value, value of the paper, difference and interval.
fn group(cells: &[Cell], default: Option<&[Cell]>, column: usize, unit: Unit) -> [String; 4] {
    let cell = cells[column];
    let base = default.map(|cells| cells[column]).unwrap_or_default();
    let text = |value: Option<f64>, base: Option<f64>| match (value, base) {
        (None, _) => "–".to_owned(),
        (Some(value), Some(base)) if value.to_bits() != base.to_bits() => {
            format!("{} ({})", number(value, unit), signed(value - base, unit))
        }
        (Some(value), _) => number(value, unit),
    };
    [
        text(cell.value, base.value),
        text(cell.paper, base.paper),
        cell.difference.map_or_else(|| "–".to_owned(), |value| signed(value, unit)),
        cell.interval.map_or_else(
            || "–".to_owned(),
            |[low, high]| format!("{}–{}", number(low, unit), number(high, unit)),
        ),
    ]
}

/// One line: weights, parameters and samples of a row.
fn about(row: &OwnRow) -> String {
    let mut parts = vec![row.weights.clone()];
    parts.extend(row.note.clone());
    parts.extend(row.step.map(|step| format!("step {}", terminal::thousands(step))));
    parts.extend(row.parameters.map(|count| {
        let (total, trained) = (short(count.total), short(count.trained));
        format!("{total} parameters, {trained} trained")
    }));
    parts.extend(row.samples.map(|samples| format!("{} samples seen", short(samples))));
    if row.metrics.is_empty() {
        parts.push("not measured yet".to_owned());
    }
    let mut text = format!("{}: {}", row.title, parts.join(", "));
    let twin = row.twin.map(|twin| (&twin.parameters, &twin.samples));
    let printed: Vec<String> = match twin {
        Some((parameters, samples)) => {
            let parameters = parameters.iter().map(|count| format!("{count} parameters"));
            parameters.chain(samples.iter().map(|count| format!("{count} samples"))).collect()
        }
        None => Vec::new(),
    };
    if !printed.is_empty() {
        text += &format!(" (paper: {})", printed.join(", "));
    }
    if !row.left_out.is_empty() {
        text += &format!("; left out: {}", row.left_out.join(", "));
    }
    text
}
