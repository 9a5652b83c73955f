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
    /// Whether the text of the paper states the claim. Otherwise only its numbers show it.
    #[serde(default = "yes")]
    pub stated: bool,
    /// The claim in our words.
    pub claim: String,
    /// Comparisons that must all hold.
    pub evidence: Vec<Evidence>,
}

/// What a claim compares. Names of tables, rows and columns are those of the data in
/// [`crate::paper`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// Scores of two rows are in a relation, in each of several columns.
    Scores {
        /// Name of the table or figure.
        table: String,
        /// Columns that are compared.
        columns: Vec<String>,
        /// Row of the first score.
        row: String,
        /// Relation of the first score to the second.
        relation: Relation,
        /// Row of the second score.
        than: String,
        /// Share of a curve's samples after which scores are compared.
        #[serde(default = "all_samples")]
        after: f64,
    },
    /// A model trains about a share of the parameters of another, up to [`ABOUT`].
    Trained {
        /// Name of the table or figure.
        table: String,
        /// Row with fewer trained parameters.
        row: String,
        /// Row with more.
        of: String,
        /// Ratio of the first number to the second.
        share: f64,
    },
    /// Something holds for the curves of selective decoding.
    Decoding {
        /// Name of the figure.
        table: String,
        /// Row of the model.
        row: String,
        /// What holds.
        claim: DecodingClaim,
    },
}

/// A claim about the curves of selective decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodingClaim {
    /// Adaptive points need fewer decodes than uniform points for the same score.
    Saving,
    /// Adaptive points have higher scores than uniform points at each number of decodes.
    AdaptivePoints,
    /// Mean embeddings have higher scores than single ones at each number of decodes.
    MeanEmbeddings,
}

/// Relation of two numbers that a claim asserts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// The first is higher.
    Higher,
    /// The first is higher or comparable.
    NotLower,
    /// They differ by at most [`COMPARABLE`] of the larger.
    Comparable,
    /// They differ by at most [`ABOUT`].
    About,
    /// They are equal: a claim holds in all of so many cases.
    All,
}

/// Largest difference of comparable scores, as a share of the larger. The paper calls CIDEr of 1.23
/// and 1.35 (9 %) and accuracies of 14.9 and 14.0 (6 %) comparable (§4.4).
pub const COMPARABLE: f64 = 0.1;

/// Largest difference of shares that are about equal. Our choice: the paper rounds to tens ("50 %
/// fewer trainable parameters").
pub const ABOUT: f64 = 0.1;

impl Relation {
    /// Whether the relation holds for two numbers.
    #[must_use]
    pub fn holds(self, [a, b]: [f64; 2]) -> bool {
        let are_comparable = (a - b).abs() <= COMPARABLE * a.max(b);
        match self {
            Self::Higher => a > b,
            Self::NotLower => a > b || are_comparable,
            Self::Comparable => are_comparable,
            Self::About => (a - b).abs() <= ABOUT,
            Self::All => a >= b,
        }
    }

    /// Sign between the two numbers.
    #[must_use]
    pub fn sign(self) -> &'static str {
        match self {
            Self::Higher => ">",
            Self::NotLower => "≳",
            Self::Comparable | Self::About => "≈",
            Self::All => "of",
        }
    }
}

impl Evidence {
    /// Name of the table or figure.
    #[must_use]
    pub fn table(&self) -> &str {
        match self {
            Self::Scores { table, .. }
            | Self::Trained { table, .. }
            | Self::Decoding { table, .. } => table,
        }
    }
}

fn yes() -> bool {
    true
}

fn all_samples() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::TABLES;

    #[test]
    fn every_claim_holds_for_the_values_that_the_paper_prints_and_not_for_others() {
        let (mut compared, mut unprinted) = (0, 0);
        for claim in &*CLAIMS {
            assert!(!claim.evidence.is_empty(), "{}", claim.id);
            for evidence in &claim.evidence {
                let table = &TABLES[evidence.table()];
                let Evidence::Scores { columns, row, relation, than, after, .. } = evidence else {
                    continue;
                };
                for column in columns {
                    let index = table.columns.iter().position(|own| own.id == *column);
                    let index = index.unwrap_or_else(|| panic!("{}: {column}", claim.id));
                    let printed = [row, than].map(|row| {
                        let row = table.row(row).unwrap_or_else(|| panic!("{}: {row}", claim.id));
                        row.after(*after)?[index]
                    });
                    let [Some(a), Some(b)] = printed else {
                        unprinted += 1;
                        continue;
                    };
                    assert!(relation.holds([a, b]), "{}: {evidence:?}: {a} and {b}", claim.id);
                    assert!(!relation.holds([a / 2.0, b * 2.0]), "{}", claim.id);
                    compared += 1;
                }
            }
        }
        // The VLM's scores after a third of the samples are only drawn.
        assert_eq!((compared, unprinted), (92, 2));
    }

    #[test]
    fn what_is_no_score_names_a_row_of_the_paper() {
        for evidence in CLAIMS.iter().flat_map(|claim| &claim.evidence) {
            let table = &TABLES[evidence.table()];
            match evidence {
                Evidence::Trained { row, of, share, .. } => {
                    assert!(table.row(row).is_some() && table.row(of).is_some() && *share < 1.0);
                }
                Evidence::Decoding { row, .. } => assert!(table.row(row).is_some()),
                Evidence::Scores { .. } => {}
            }
        }
    }

    #[test]
    fn names_of_claims_are_unique() {
        let mut names: Vec<&str> = CLAIMS.iter().map(|claim| &*claim.id).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CLAIMS.len());
    }
}
