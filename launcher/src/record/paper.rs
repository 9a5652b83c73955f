//! Tables that runs have computed, means over their seeds, and the paper's claims that hold for
//! them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use vljepa_recipes::claims::{CLAIMS, COMPARABLE, Claim, Evidence};
use vljepa_recipes::paper;
use vljepa_recipes::run_directory::RunDirectory;

use super::table::{OwnPoint, OwnRow, PaperComparison};
use crate::error::LaunchError;
use crate::statistics::{mean, to_f64};

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
    /// Comparisons of the claim whose scores were measured.
    pub comparisons: Vec<Comparison>,
    /// Rows, and columns of measured rows, that were not measured.
    pub missing: BTreeSet<String>,
}

/// Whether a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All measured comparisons hold for every seed.
    Reproduced,
    NotReproduced,
    /// Nothing that the claim compares was measured.
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
    /// Names of the two rows, or the second number's description.
    pub names: [String; 2],
    /// Relation that the claim asserts.
    pub relation: Relation,
    /// Both numbers, one pair per seed.
    pub values: Vec<[f64; 2]>,
    /// Number of seeds for which the relation holds.
    pub holds_in: usize,
}

/// Relation of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Relation {
    Higher,
    /// They differ by at most [`COMPARABLE`] of the larger.
    Comparable,
    AtMost,
}

impl Relation {
    fn holds(self, [a, b]: [f64; 2]) -> bool {
        match self {
            Self::Higher => a > b,
            Self::Comparable => (a - b).abs() <= COMPARABLE * a.max(b),
            Self::AtMost => a <= b,
        }
    }

    /// Sign between both numbers.
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Self::Higher => ">",
            Self::Comparable => "≈",
            Self::AtMost => "≤",
        }
    }
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
    /// If a directory holds no table, or a table without scores.
    pub(crate) fn collect(directories: &[RunDirectory]) -> Result<Self, LaunchError> {
        let mut seeds: BTreeMap<String, Vec<PaperComparison>> = BTreeMap::new();
        for directory in directories {
            let recipe = directory.load_recipe()?.recipe;
            let table = recipe.table.as_ref().map(|table| table.of.clone());
            let compared = PaperComparison::collect(directory, &recipe);
            let (Some(name), Some(compared)) = (table, compared) else {
                return Err(LaunchError::NoTable { run: directory.path().to_owned() });
            };
            seeds.entry(name).or_default().push(compared);
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
        let tables = names.into_iter().filter_map(|name| over_seeds(&seeds[name])).collect();
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
        for found in compared(evidence, seeds) {
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

/// The comparisons of an evidence, or the names of what lacks scores.
fn compared(
    evidence: &Evidence,
    seeds: &[PaperComparison],
) -> Vec<Result<Comparison, Vec<String>>> {
    let name = |row: &str| row_name(evidence.table(), row);
    match evidence {
        Evidence::Higher { columns, row, than, after, .. } => {
            scores(evidence.table(), seeds, columns, [row, than], *after, Relation::Higher)
        }
        Evidence::Comparable { columns, rows: [a, b], after, .. } => {
            scores(evidence.table(), seeds, columns, [a, b], *after, Relation::Comparable)
        }
        Evidence::Above { column, row, value, .. } => {
            let of = column_title(evidence.table(), column);
            let values = |seed: &PaperComparison| Some([score(seed, row, column, 1.0)?, *value]);
            let found = comparison(of, [name(row), String::new()], Relation::Higher, seeds, values);
            vec![found.ok_or_else(|| vec![name(row)])]
        }
        Evidence::Trained { row, of, at_most, .. } => {
            let trained = |seed: &PaperComparison, row: &str| {
                Some(to_f64(own_row(seed, row)?.parameters?.trained))
            };
            let values =
                |seed: &PaperComparison| Some([trained(seed, row)?, at_most * trained(seed, of)?]);
            let share = format!("= {:.0} % of {}", 100.0 * at_most, name(of));
            let title = "Trained parameters".to_owned();
            let found = comparison(title, [name(row), share], Relation::AtMost, seeds, values);
            vec![found.ok_or_else(|| vec![name(row), name(of)])]
        }
    }
}

/// Compares two rows in each of several columns.
fn scores(
    table: &str,
    seeds: &[PaperComparison],
    columns: &[String],
    rows: [&String; 2],
    after: f64,
    relation: Relation,
) -> Vec<Result<Comparison, Vec<String>>> {
    let lacks =
        |row: &str| seeds.is_empty() || seeds.iter().any(|seed| own_row(seed, row).is_none());
    let of_column = |column: &String| {
        let values = |seed: &PaperComparison| {
            let [a, b] = rows.map(|row| score(seed, row, column, after));
            Some([a?, b?])
        };
        let (title, names) = (column_title(table, column), rows.map(|row| row_name(table, row)));
        comparison(title.clone(), names, relation, seeds, values).ok_or_else(|| {
            let absent = rows.iter().filter(|row| lacks(row)).map(|row| row_name(table, row));
            let absent: Vec<String> = absent.collect();
            if absent.is_empty() { vec![title] } else { absent }
        })
    };
    columns.iter().map(of_column).collect()
}

/// Compares the numbers of all seeds. `None` without seeds, or if one of them lacks a number.
fn comparison(
    of: String,
    names: [String; 2],
    relation: Relation,
    seeds: &[PaperComparison],
    values: impl Fn(&PaperComparison) -> Option<[f64; 2]>,
) -> Option<Comparison> {
    let values: Vec<[f64; 2]> = seeds.iter().map(values).collect::<Option<_>>()?;
    let holds_in = values.iter().filter(|pair| relation.holds(**pair)).count();
    (!values.is_empty()).then_some(Comparison { of, names, relation, values, holds_in })
}

fn own_row<'a>(table: &'a PaperComparison, id: &str) -> Option<&'a OwnRow> {
    table.own.iter().find(|row| row.twin.is_some_and(|twin| twin.id == id))
}

/// Score of a row; of a curve, after about the share `after` of its samples.
fn score(table: &PaperComparison, id: &str, column: &str, after: f64) -> Option<f64> {
    let index = table.paper.columns.iter().position(|own| own.id == column)?;
    let points = &own_row(table, id)?.points;
    let samples = |point: &OwnPoint| to_f64(point.samples.unwrap_or(1));
    let wanted = after * points.last().map(samples)?;
    let distance = |point: &OwnPoint| (samples(point) - wanted).abs();
    let nearest = points.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
    nearest.cells.get(index)?.value
}

/// Name of a row in the paper.
fn row_name(table: &str, id: &str) -> String {
    let row = paper::TABLES.get(table).and_then(|paper| paper.row(id));
    row.map_or(id, |row| &row.name).to_owned()
}

fn column_title(table: &str, id: &str) -> String {
    let columns = paper::TABLES.get(table).map_or(&[][..], |paper| &paper.columns);
    columns.iter().find(|column| column.id == id).map_or(id, |column| &column.title).to_owned()
}

/// Means over several seeds of a table, of the scores that all of them have. `None` without any
/// seed.
fn over_seeds(seeds: &[PaperComparison]) -> Option<PaperComparison> {
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
    for (task, curves) in &mut row.decoding {
        for (curve, of_task) in curves.curves.iter_mut().enumerate() {
            for (index, score) in of_task.scores.iter_mut().enumerate() {
                let cider = |row: &OwnRow| {
                    Some(row.decoding.get(task)?.curves.get(curve)?.scores.get(index)?.cider)
                };
                let all: Option<Vec<f64>> = seeds.iter().map(cider).collect();
                score.cider = all.map_or(score.cider, mean);
            }
        }
    }
}
