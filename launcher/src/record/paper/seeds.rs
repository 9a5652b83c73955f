//! Means over several seeds of a table.

use std::collections::BTreeSet;

use vljepa_recipes::protocol::DecodingCurve;

use crate::record::history::Scores;
use crate::record::table::{OwnPoint, OwnRow, PaperComparison};
use crate::statistics::mean;

/// Returns why two tables are not seeds of one table, or `None` if they are.
pub(super) fn difference(first: &PaperComparison, other: &PaperComparison) -> Option<String> {
    let names = |table: &PaperComparison| -> BTreeSet<String> {
        table.own.iter().map(|row| row.name.clone()).collect()
    };
    if names(first) != names(other) {
        return Some("has other rows than the directories of this table before it".to_owned());
    }
    let why = "shows other metrics than the directories of this table before it";
    (first.replaced != other.replaced).then(|| why.to_owned())
}

/// Means over several seeds of a table, of the scores that all of them have. `None` without any
/// seed.
pub(super) fn means(seeds: &[PaperComparison]) -> Option<PaperComparison> {
    let mut merged = seeds.first()?.clone();
    merged.seeds = seeds.len();
    if seeds.len() > 1 {
        for row in &mut merged.own {
            let same =
                |seed: &PaperComparison| seed.own.iter().find(|own| own.name == row.name).cloned();
            let rows: Option<Vec<OwnRow>> = seeds.iter().map(same).collect();
            set_means(row, &rows.unwrap_or_default());
        }
    }
    Some(merged)
}

/// Replaces the scores of a row by their means over the same row of all seeds.
fn set_means(row: &mut OwnRow, seeds: &[OwnRow]) {
    for point in &mut row.points {
        let same =
            |row: &OwnRow| row.points.iter().find(|other| other.samples == point.samples).cloned();
        let points: Option<Vec<OwnPoint>> = seeds.iter().map(same).collect();
        let points = points.unwrap_or_default();
        for (index, cell) in point.cells.iter_mut().enumerate() {
            let values: Option<Vec<f64>> =
                points.iter().map(|point| point.cells.get(index)?.value).collect();
            let values = values.filter(|values| !values.is_empty());
            cell.value = values.as_ref().map(|values| mean(values.iter().copied()));
            cell.interval = values.map(|values| {
                let low = values.iter().copied().fold(f64::INFINITY, f64::min);
                [low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
            });
            let both = cell.value.zip(cell.paper).filter(|_| cell.difference.is_some());
            cell.difference = both.map(|(value, paper)| value - paper);
        }
    }
    row.decoding.retain(|task, curves| {
        let of_seeds = |row: &OwnRow| row.decoding.get(task).map(|of_task| of_task.curves.clone());
        let seeds: Option<Vec<Vec<DecodingCurve>>> = seeds.iter().map(of_seeds).collect();
        seeds.and_then(|seeds| set_mean_curves(&mut curves.curves, &seeds)).is_some()
    });
    // These are of a single seed.
    (row.weights, row.step, row.metrics) = (String::new(), None, Scores::new());
    row.labels.clear();
    row.examples.clear();
    if seeds.iter().any(|seed| seed.samples != row.samples) {
        row.samples = None;
    }
}

/// Replaces scores by their means. `None` if a seed lacks one.
fn set_mean_curves(curves: &mut [DecodingCurve], seeds: &[Vec<DecodingCurve>]) -> Option<()> {
    for (number, curve) in curves.iter_mut().enumerate() {
        for (index, score) in curve.scores.iter_mut().enumerate() {
            let cider =
                |seed: &Vec<DecodingCurve>| Some(seed.get(number)?.scores.get(index)?.cider);
            score.cider = mean(seeds.iter().map(cider).collect::<Option<Vec<f64>>>()?);
        }
    }
    Some(())
}
