//! Tables and figures of the VL-JEPA paper, arXiv 2512.10942: which scores they hold, and the
//! values that the paper prints. The data is in `recipes/evaluate/paper.json`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

const JSON: &str = include_str!("../evaluate/paper.json");

/// All tables and figures by their names, such as `table1`.
pub static TABLES: LazyLock<BTreeMap<String, PaperTable>> =
    LazyLock::new(|| serde_json::from_str(JSON).expect("the file is a part of this program"));

/// A table or figure of the paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperTable {
    /// What the table compares.
    pub title: String,
    /// Version and place in the paper.
    pub place: String,
    /// Row that the paper subtracts from the others. `None` if it prints no differences.
    #[serde(default)]
    pub default: Option<String>,
    /// Scores of a row, in the order of the paper.
    pub columns: Vec<Column>,
    /// Rows in the order of the paper.
    pub rows: Vec<PaperRow>,
}

impl PaperTable {
    /// Returns the row of this name, or `None` if the paper has none.
    #[must_use]
    pub fn row(&self, id: &str) -> Option<&PaperRow> {
        self.rows.iter().find(|row| row.id == id)
    }
}

/// A score that a table prints for each row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Name of the column in JSON.
    pub id: String,
    /// Title of the column.
    pub title: String,
    /// Metrics in `scores.json` that make the score.
    #[serde(flatten)]
    pub measure: Measure,
    /// Unit of the printed values.
    #[serde(default)]
    pub unit: Unit,
}

/// Metrics that make the score of a column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// A single metric.
    Metric(String),
    /// The mean of several metrics.
    MeanOf(Vec<String>),
}

impl Measure {
    /// Names of the metrics.
    #[must_use]
    pub fn metrics(&self) -> &[String] {
        match self {
            Self::Metric(metric) => std::slice::from_ref(metric),
            Self::MeanOf(metrics) => metrics,
        }
    }
}

/// Unit of the values of a column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A hundredth: of a share, or of CIDEr as coco-caption computes it.
    #[default]
    Hundredth,
    /// A factor, such as that of saved decodings.
    Factor,
}

impl Unit {
    /// Value in this unit of a metric in `scores.json`.
    #[must_use]
    pub fn of(self, metric: f64) -> f64 {
        match self {
            Self::Hundredth => 100.0 * metric,
            Self::Factor => metric,
        }
    }
}

/// A row of a table, or a curve of a figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperRow {
    /// Name of the row in recipes.
    pub id: String,
    /// Name of the row in the paper.
    pub name: String,
    /// Number of parameters, as printed.
    #[serde(default)]
    pub parameters: Option<String>,
    /// Number of samples seen in training, as printed.
    #[serde(default)]
    pub samples: Option<String>,
    /// Values in the order of the columns, `None` where the paper prints none. Empty for a curve.
    #[serde(default)]
    pub values: Vec<Option<f64>>,
    /// Points of a curve, in the order of their numbers of samples. Empty for a row of a table.
    #[serde(default)]
    pub points: Vec<Point>,
    /// Where the values are from, if the paper did not measure them in the same way.
    #[serde(default)]
    pub note: Option<String>,
}

/// Largest difference of two numbers of samples that count as equal, as a share of the larger: runs
/// are measured after whole batches.
pub const SAME_SAMPLES: f64 = 0.05;

impl PaperRow {
    /// Values of a row of a table, or of a curve after a share of its samples. `None` if the curve
    /// has no such point.
    #[must_use]
    pub fn after(&self, share: f64) -> Option<&[Option<f64>]> {
        let Some(last) = self.points.last() else { return Some(&self.values) };
        #[expect(clippy::cast_precision_loss, reason = "samples are far fewer than 2^53")]
        let is_there = |point: &&Point| {
            let wanted = share * last.samples as f64;
            (point.samples as f64 - wanted).abs() <= SAME_SAMPLES * wanted
        };
        self.points.iter().find(is_there).map(|point| &*point.values)
    }
}

/// Values of a curve after a number of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Number of samples seen in training.
    pub samples: u64,
    /// Values in the order of the columns, `None` where the paper states none.
    pub values: Vec<Option<f64>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of a printed mean, which is rounded to 0.1. It is the mean of the printed
    /// terms.
    const ROUNDED: f64 = 0.05 + 1e-9;

    /// Printed values of a row that a printed mean is made of.
    fn terms(table: &PaperTable, row: &PaperRow, means: &[String]) -> Option<Vec<f64>> {
        let of = |metric: &String| {
            let column = table.columns.iter().position(
                |column| matches!(&column.measure, Measure::Metric(own) if own == metric),
            )?;
            row.values[column]
        };
        means.iter().map(of).collect()
    }

    #[test]
    fn every_row_has_a_value_for_each_column() {
        for (name, table) in &*TABLES {
            let mut ids: Vec<&str> = table.rows.iter().map(|row| &*row.id).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), table.rows.len(), "{name}: names of rows are unique");
            for row in &table.rows {
                let at = format!("{name}, {}", row.id);
                assert_ne!(row.values.is_empty(), row.points.is_empty(), "{at}");
                let points = row.points.iter().map(|point| &point.values);
                for values in points.chain((!row.values.is_empty()).then_some(&row.values)) {
                    assert_eq!(values.len(), table.columns.len(), "{at}");
                    let in_range = |value: &f64| (0.0..=100.0).contains(value);
                    assert!(values.iter().flatten().all(in_range), "{at}");
                }
            }
            let default = table.default.as_deref();
            assert!(default.is_none_or(|default| table.row(default).is_some()), "{name}");
        }
    }

    #[test]
    fn the_means_that_the_paper_prints_are_those_of_its_rows() {
        let mut checked = 0;
        for (name, table) in &*TABLES {
            for (index, column) in table.columns.iter().enumerate() {
                let Measure::MeanOf(metrics) = &column.measure else { continue };
                for row in table.rows.iter().filter(|row| !row.values.is_empty()) {
                    let Some(printed) = row.values[index] else { continue };
                    let Some(terms) = terms(table, row, metrics) else { continue };
                    #[expect(clippy::cast_precision_loss, reason = "a mean has few terms")]
                    let mean = terms.iter().sum::<f64>() / terms.len() as f64;
                    assert!((mean - printed).abs() < ROUNDED, "{name}, {}: {mean}", row.id);
                    // A row in which one figure is wrong by 1 does not pass.
                    #[expect(clippy::cast_precision_loss, reason = "a mean has few terms")]
                    let wrong = mean + (mean - printed).signum() / terms.len() as f64;
                    assert!((wrong - printed).abs() > ROUNDED);
                    checked += 1;
                }
            }
        }
        // Table 1 has 11 rows with 2 means, Table 4 5 rows with 2.
        assert_eq!(checked, 32);
    }
}
