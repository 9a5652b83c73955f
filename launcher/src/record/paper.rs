//! Tables that runs have computed, means over their seeds, and the paper's claims that hold for
//! them.

mod evidence;
mod seeds;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use vljepa_recipes::claims::{CLAIMS, Claim, Evidence, Relation};
use vljepa_recipes::paper::Unit;
use vljepa_recipes::run_directory::RunDirectory;

use super::table::PaperComparison;
use crate::error::LaunchError;
use crate::statistics::mean;

/// Tables and figures, each from one or more seeds, and all claims of the paper.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Paper {
    /// Means over the seeds, in the order in which the paper makes claims about the tables.
    pub tables: Vec<PaperComparison>,
    /// Claims in the order of the paper.
    pub claims: Vec<Judged>,
}

/// A claim, and whether it holds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Judged {
    #[serde(flatten)]
    pub claim: &'static Claim,
    pub verdict: Verdict,
    /// Comparisons of the claim whose numbers are known.
    pub comparisons: Vec<Comparison>,
    /// Rows, and columns of measured rows, that were not measured.
    pub missing: BTreeSet<String>,
}

/// Whether a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All known comparisons hold for every seed.
    Reproduced,
    NotReproduced,
    /// No comparison of the claim is known.
    NotComparable,
}

impl Verdict {
    /// The verdict as people read it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::NotReproduced => "not reproduced",
            Self::NotComparable => "not comparable",
        }
    }
}

/// Two numbers that a claim compares.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Comparison {
    /// Title of the column.
    pub of: String,
    /// Whether the column shows other sets than the paper's.
    pub is_replaced: bool,
    /// Names of the two rows, or descriptions of the numbers.
    pub names: [String; 2],
    /// Relation that the claim asserts.
    pub relation: Relation,
    /// Unit of both numbers. `None` if they are counts.
    pub unit: Option<Unit>,
    /// Both numbers, one pair per seed.
    pub values: Vec<[f64; 2]>,
    /// Number of seeds for which the relation holds.
    pub holds_in: usize,
    /// Whether the 95 % intervals of both numbers overlap, if there is one seed.
    pub overlaps: bool,
}

impl Comparison {
    /// Whether the relation holds for every seed.
    pub(crate) fn holds(&self) -> bool {
        self.holds_in == self.values.len()
    }

    /// Means of both numbers over the seeds.
    pub(crate) fn means(&self) -> [f64; 2] {
        [0, 1].map(|side| mean(self.values.iter().map(|pair| pair[side])))
    }
}

impl Paper {
    /// Reads tables from their run directories. Several directories of one table are seeds of it.
    ///
    /// # Errors
    /// If a directory holds no table or a table without scores, or the seeds of a table have other
    /// rows or columns.
    pub(crate) fn collect(directories: &[RunDirectory]) -> Result<Self, LaunchError> {
        let mut seeds: BTreeMap<String, Vec<PaperComparison>> = BTreeMap::new();
        let mut read = BTreeSet::new();
        for directory in directories {
            let run = directory.path().to_owned();
            let recipe = directory.load_recipe()?.recipe;
            let table = recipe.table.as_ref().map(|table| table.of.clone());
            let compared = PaperComparison::collect(directory, &recipe);
            let (Some(name), Some(compared)) = (table, compared) else {
                return Err(LaunchError::NoTable { run });
            };
            if !compared.has_scores() {
                return Err(LaunchError::NothingMeasured { runs: compared.runs() });
            }
            if !read.insert(run.canonicalize().unwrap_or_else(|_| run.clone())) {
                return Err(LaunchError::OtherSeed { run, why: "is named twice".to_owned() });
            }
            let of_table = seeds.entry(name).or_default();
            if let Some(why) =
                of_table.first().and_then(|first| seeds::difference(first, &compared))
            {
                return Err(LaunchError::OtherSeed { run, why });
            }
            of_table.push(compared);
        }
        Ok(Self::of(&seeds))
    }

    /// Judges all claims by the seeds of each table.
    pub(crate) fn of(seeds: &BTreeMap<String, Vec<PaperComparison>>) -> Self {
        let claims = CLAIMS.iter().map(|claim| judged(claim, seeds)).collect();
        let first_claim = |table: &String| {
            let of_table = |evidence: &Evidence| evidence.table() == table;
            CLAIMS.iter().position(|claim| claim.evidence.iter().any(of_table))
        };
        let mut names: Vec<&String> = seeds.keys().collect();
        names.sort_by_key(|name| first_claim(name));
        let tables = names.into_iter().filter_map(|name| seeds::means(&seeds[name])).collect();
        Self { tables, claims }
    }

    /// Number of claims with a verdict.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.claims.iter().filter(|judged| judged.verdict == verdict).count()
    }
}

fn judged(claim: &'static Claim, seeds: &BTreeMap<String, Vec<PaperComparison>>) -> Judged {
    let (mut comparisons, mut missing) = (Vec::new(), BTreeSet::new());
    for evidence in &claim.evidence {
        let seeds = seeds.get(evidence.table()).map_or(&[][..], Vec::as_slice);
        for found in evidence::compared(evidence, seeds) {
            match found {
                Ok(comparison) => comparisons.push(comparison),
                Err(names) => missing.extend(names),
            }
        }
    }
    let verdict = match comparisons.as_slice() {
        [] => Verdict::NotComparable,
        all if all.iter().all(Comparison::holds) => Verdict::Reproduced,
        _ => Verdict::NotReproduced,
    };
    Judged { claim, verdict, comparisons, missing }
}
