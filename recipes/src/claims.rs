//! Claims of the VL-JEPA paper, arXiv 2512.10942, and the comparisons of scores that each of them
//! is made of. The data is in `recipes/evaluate/claims.json`.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

const JSON: &str = include_str!("../evaluate/claims.json");

/// All claims in the order of the paper.
pub static CLAIMS: LazyLock<Vec<Claim>> =
    LazyLock::new(|| serde_json::from_str(JSON).expect("the file is a part of this program"));

/// A sentence of the paper about its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Name of the claim.
    pub id: String,
    /// Section, and table or figure.
    pub place: String,
    /// The claim in our words.
    pub claim: String,
    /// What must hold for the claim to hold.
    pub evidence: Vec<Evidence>,
}

/// A comparison of rows of a table, for each of its columns. Names of tables, rows and columns are
/// those of [`crate::paper::TABLES`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// A row has a higher score than another.
    Higher {
        /// Name of the table or figure.
        table: String,
        /// Columns that are compared.
        columns: Vec<String>,
        /// Row with the higher score.
        row: String,
        /// Row with the lower score.
        than: String,
        /// Share of the curve's last number of samples after which scores are compared.
        #[serde(default = "all_samples")]
        after: f64,
    },
    /// Scores of two rows differ by at most [`COMPARABLE`] of the larger.
    Comparable {
        /// Name of the table or figure.
        table: String,
        /// Columns that are compared.
        columns: Vec<String>,
        /// Names of the rows.
        rows: [String; 2],
        /// Share of the curve's last number of samples after which scores are compared.
        #[serde(default = "all_samples")]
        after: f64,
    },
    /// A score is above a value.
    Above {
        /// Name of the table or figure.
        table: String,
        /// Column of the score.
        column: String,
        /// Row of the score.
        row: String,
        /// The value, in the unit of the column.
        value: f64,
    },
    /// A model trains at most a share of the parameters of another.
    Trained {
        /// Name of the table or figure.
        table: String,
        /// Row with fewer trained parameters.
        row: String,
        /// Row with more.
        of: String,
        /// Largest ratio of the first number to the second.
        at_most: f64,
    },
}

/// Largest difference of comparable scores, as a share of the larger. The paper calls CIDEr of 1.23
/// and 1.35 (9 %) and accuracies of 14.9 and 14.0 (6 %) comparable (§4.4).
pub const COMPARABLE: f64 = 0.1;

impl Evidence {
    /// Name of the table or figure.
    #[must_use]
    pub fn table(&self) -> &str {
        match self {
            Self::Higher { table, .. }
            | Self::Comparable { table, .. }
            | Self::Above { table, .. }
            | Self::Trained { table, .. } => table,
        }
    }
}

fn all_samples() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::{PaperRow, PaperTable, TABLES};

    fn row<'a>(table: &'a PaperTable, id: &str) -> &'a PaperRow {
        table.row(id).unwrap_or_else(|| panic!("{} has no row {id}", table.title))
    }

    /// The printed value, `None` if the paper prints none.
    fn printed(table: &PaperTable, id: &str, column: &str, after: f64) -> Option<f64> {
        let of = |column: &str| table.columns.iter().position(|own| own.id == column);
        let index = of(column).unwrap_or_else(|| panic!("{} has no column {column}", table.title));
        let row = row(table, id);
        let Some(last) = row.points.last() else { return row.values[index] };
        #[expect(clippy::cast_precision_loss, reason = "the paper has few samples")]
        let share = |samples: u64| samples as f64 / last.samples as f64;
        let point = row.points.iter().find(|point| (share(point.samples) - after).abs() < 0.01);
        point.unwrap().values[index]
    }

    #[test]
    fn every_claim_holds_for_the_values_that_the_paper_prints() {
        let (mut compared, mut unprinted) = (0, 0);
        for claim in &*CLAIMS {
            assert!(!claim.evidence.is_empty(), "{}", claim.id);
            for evidence in &claim.evidence {
                let table = &TABLES[evidence.table()];
                let mut check = |pair: (Option<f64>, Option<f64>), holds: fn(f64, f64) -> bool| {
                    let (Some(a), Some(b)) = pair else {
                        unprinted += 1;
                        return;
                    };
                    assert!(holds(a, b), "{}: {evidence:?}: {a} and {b}", claim.id);
                    compared += 1;
                };
                match evidence {
                    Evidence::Higher { columns, row, than, after, .. } => {
                        for column in columns {
                            let of = |row| printed(table, row, column, *after);
                            check((of(row), of(than)), |a, b| a > b);
                        }
                    }
                    Evidence::Comparable { columns, rows: [a, b], after, .. } => {
                        for column in columns {
                            let of = |row| printed(table, row, column, *after);
                            check((of(a), of(b)), |a, b| (a - b).abs() <= COMPARABLE * a.max(b));
                        }
                    }
                    Evidence::Above { column, row, value, .. } => {
                        check((printed(table, row, column, 1.0), Some(*value)), |a, b| a > b);
                    }
                    // The paper states "50 % fewer" in its abstract, and draws a bar.
                    Evidence::Trained { row: id, of, at_most, .. } => {
                        assert!(row(table, id).id != row(table, of).id && *at_most < 1.0);
                    }
                }
            }
        }
        // The VLM's scores after a third of the samples are only drawn.
        assert_eq!((compared, unprinted), (70, 2));
    }

    #[test]
    fn names_of_claims_are_unique() {
        let mut names: Vec<&str> = CLAIMS.iter().map(|claim| &*claim.id).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CLAIMS.len());
    }
}
