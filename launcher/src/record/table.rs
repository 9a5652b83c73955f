//! Rows of a table beside those of the paper, collected from run directories.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vljepa_recipes::cost::parameters;
use vljepa_recipes::paper::{self, Column, PaperRow, PaperTable, SAME_SAMPLES, Unit};
use vljepa_recipes::protocol::{LabelCounts, RowRecord, SelectiveCurves};
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::{Init, Recipe, Row, RowWeights, Table};

use super::history::{Sample, Scores, evaluations, samples, scores_of};
use super::provenance::RunRecord;
use crate::statistics::to_f64;

/// Largest number of runs of which each starts from the next.
const MAX_CHAIN: usize = 16;

/// A table with the rows of its recipe, in the order of the paper.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PaperComparison {
    /// Table of the paper.
    #[serde(flatten)]
    pub paper: &'static PaperTable,
    /// Metrics that a column shows in the place of those of the paper's sets.
    pub replaced: BTreeMap<String, Vec<String>>,
    /// Number of seeds whose scores are averaged. With several, intervals are from the lowest to
    /// the highest score instead of 95 % intervals.
    pub seeds: usize,
    /// Rows of the recipe. Those that the paper has too come first, in its order.
    pub own: Vec<OwnRow>,
}

/// A row of the recipe.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OwnRow {
    /// Name of the row in the recipe.
    pub name: String,
    /// Row of the paper that it is compared with.
    #[serde(skip)]
    pub twin: Option<&'static PaperRow>,
    /// Name of that row, or of this one if there is none.
    pub title: String,
    /// Describes the row's model if it differs from the paper's.
    pub note: Option<String>,
    /// Run, export or model whose weights were measured.
    pub weights: String,
    /// Step of the checkpoint.
    pub step: Option<u64>,
    /// Parameters of the model, if its recipe is known.
    pub parameters: Option<Count>,
    /// Samples seen by the run and by those that it started from, or `None` if that is unknown.
    pub samples: Option<u64>,
    /// Names of the tasks that were left out, because their sets were not on the disk.
    pub left_out: Vec<String>,
    /// Scores: one point for a row of a table, and one for each evaluation for a curve.
    pub points: Vec<OwnPoint>,
    /// Scores of all metrics.
    pub metrics: Scores,
    /// Tasks as they were measured.
    #[serde(skip)]
    pub recipe: Option<Recipe>,
    /// Right answers by label.
    #[serde(skip)]
    pub labels: LabelCounts,
    /// Curves of selective decoding.
    pub decoding: SelectiveCurves,
    /// Samples with the model's answers.
    #[serde(skip)]
    pub examples: Vec<Sample>,
}

/// Numbers of parameters of a model.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Count {
    pub trained: u64,
    pub total: u64,
}

/// Scores after a number of samples.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OwnPoint {
    /// Samples that the run itself had trained on, for a curve.
    pub samples: Option<u64>,
    /// Cells in the order of the columns.
    pub cells: Vec<Cell>,
}

/// A score and that of the paper, both in the unit of the column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Cell {
    pub value: Option<f64>,
    /// Ends of the 95 % interval. `None` for a score without one, such as a saving.
    pub interval: Option<[f64; 2]>,
    pub paper: Option<f64>,
    /// `value` − `paper`. `None` if the value is of other sets than the paper's.
    pub difference: Option<f64>,
}

impl PaperComparison {
    /// Collects the rows of a table whose run directory is `directory`. `None` if the recipe has no
    /// table.
    pub(crate) fn collect(directory: &RunDirectory, recipe: &Recipe) -> Option<Self> {
        let table = recipe.table.as_ref()?;
        let paper = paper::TABLES.get(&table.of)?;
        let is_measured = !recipe.evaluation.tasks.is_empty();
        let mut own: Vec<OwnRow> = table
            .rows
            .iter()
            .map(|(name, row)| {
                let source = Source { paper, table, name, row };
                if is_measured { source.measured(directory) } else { source.recorded() }
            })
            .collect();
        let place = |row: &OwnRow| {
            let twin = row.twin.map(|twin| &twin.id);
            paper.rows.iter().position(|row| Some(&row.id) == twin).unwrap_or(usize::MAX)
        };
        own.sort_by_key(place);
        Some(Self { paper, replaced: table.columns.clone(), seeds: 1, own })
    }

    /// Weights of all rows, for messages.
    pub(crate) fn runs(&self) -> String {
        self.own.iter().map(|row| &*row.weights).collect::<Vec<_>>().join(", ")
    }

    /// Whether any score is known.
    pub(crate) fn has_scores(&self) -> bool {
        self.own.iter().any(|row| !row.metrics.is_empty())
    }

    /// Scores of the row that the paper subtracts from the others, if the table has one. The
    /// measured ones are missing if the recipe does not have this row.
    pub(crate) fn default_cells(&self) -> Option<Vec<Cell>> {
        let default = self.paper.row(self.paper.default.as_ref()?)?;
        let is_default = |row: &&OwnRow| row.twin.is_some_and(|twin| twin.id == default.id);
        let own = self.own.iter().find(is_default).and_then(|row| row.points.first());
        let printed = |(index, paper): (usize, &Option<f64>)| Cell {
            paper: *paper,
            value: own.and_then(|own| own.cells.get(index)?.value),
            ..Cell::default()
        };
        Some(default.values.iter().enumerate().map(printed).collect())
    }
}

impl OwnRow {
    /// Reads what a run directory holds of the evaluation of a step beside its scores.
    fn add_details(&mut self, directory: &RunDirectory, step: u64) {
        self.labels = read(&directory.labels(step)).unwrap_or_default();
        self.decoding = read(&directory.selective(step)).unwrap_or_default();
    }
}

/// Reads a JSON file. `None` if it does not exist or is damaged.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// A row of the recipe, and the paper's table.
struct Source<'a> {
    paper: &'static PaperTable,
    table: &'a Table,
    name: &'a str,
    row: &'a Row,
}

impl Source<'_> {
    /// A row that the run of the table has measured.
    fn measured(&self, directory: &RunDirectory) -> OwnRow {
        let directory = directory.row(self.name);
        let Some(record) = read::<RowRecord>(&directory.row_json()) else {
            return self.empty(None, None);
        };
        let recipe = directory.load_recipe().ok().map(|loaded| loaded.recipe);
        let scores = scores_of(&directory.scores());
        let mut row = self.empty(recipe, record.step);
        row.points = vec![OwnPoint { samples: None, cells: self.cells(&scores, None) }];
        row.add_details(&directory, record.step.unwrap_or(0));
        row.examples = samples(&directory);
        (row.metrics, row.left_out) = (scores, record.left_out);
        row
    }

    /// A row whose run has measured the scores itself.
    fn recorded(&self) -> OwnRow {
        let RowWeights::Run(path, step) =
            self.row.weights().unwrap_or(RowWeights::Run(Path::new(""), None))
        else {
            return self.empty(None, None);
        };
        let Ok(directory) = RunDirectory::open(path) else { return self.empty(None, step) };
        let recipe = directory.load_recipe().ok().map(|loaded| loaded.recipe);
        let mut all = evaluations(&directory);
        all.retain(|(own, _)| step.is_none_or(|step| *own == step));
        let newest = all.last().cloned();
        let is_curve = self.paper.rows.iter().any(|row| !row.points.is_empty());
        let points = if is_curve { self.curve(&all, recipe.as_ref()) } else { Vec::new() };
        let mut row = self.empty(recipe, newest.as_ref().map(|newest| newest.0));
        if let Some((newest, _)) = newest {
            row.add_details(&directory, newest);
        }
        // A run's samples are those of its last evaluation.
        if step.is_none() {
            row.examples = samples(&directory);
        }
        row.metrics = newest.map(|newest| newest.1).unwrap_or_default();
        row.points = if is_curve {
            points
        } else {
            vec![OwnPoint { samples: None, cells: self.cells(&row.metrics, None) }]
        };
        row
    }

    /// Points of a curve. A point of the paper is compared with an evaluation after as many
    /// samples, or up to [`SAME_SAMPLES`] more.
    fn curve(&self, all: &[(u64, Scores)], recipe: Option<&Recipe>) -> Vec<OwnPoint> {
        let Some(recipe) = recipe else { return Vec::new() };
        let seen: Vec<u64> = all.iter().map(|(step, _)| recipe.samples_after(*step)).collect();
        let twins = self.twin().map_or(&[][..], |twin| &twin.points);
        let point = |((_, scores), seen): (&(u64, Scores), u64)| {
            let twin = twins.iter().rev().find(|twin| twin.samples <= seen);
            let twin = twin
                .filter(|twin| to_f64(seen - twin.samples) <= SAME_SAMPLES * to_f64(twin.samples));
            let cells = self.cells(scores, twin.map(|twin| &*twin.values));
            OwnPoint { samples: Some(seen), cells }
        };
        all.iter().zip(seen).map(point).collect()
    }

    fn twin(&self) -> Option<&'static PaperRow> {
        self.paper.row(self.row.in_paper(self.name))
    }

    /// The row without scores.
    fn empty(&self, recipe: Option<Recipe>, step: Option<u64>) -> OwnRow {
        let twin = self.twin();
        let (weights, samples) = match self.row.weights() {
            Some(RowWeights::Run(run, _)) => {
                let seen = step.and_then(|step| samples_seen(run, step, MAX_CHAIN));
                (run.display().to_string(), seen)
            }
            Some(RowWeights::Export(folder)) => (folder.display().to_string(), None),
            Some(RowWeights::Model(model)) => {
                let file = model.x_encoder.weights().map(|path| path.display().to_string());
                (file.unwrap_or_default(), None)
            }
            None => (String::new(), None),
        };
        let count = |recipe: &Recipe| {
            let count = parameters(&recipe.model);
            Count { trained: count.trainable as u64, total: count.total() as u64 }
        };
        OwnRow {
            name: self.name.to_owned(),
            twin,
            title: twin.map_or(self.name, |twin| &twin.name).to_owned(),
            note: self.row.note.clone(),
            weights,
            step,
            parameters: recipe.as_ref().map(count),
            samples,
            left_out: Vec::new(),
            points: vec![OwnPoint { samples: None, cells: self.cells(&Scores::new(), None) }],
            metrics: Scores::new(),
            recipe,
            labels: LabelCounts::new(),
            decoding: SelectiveCurves::new(),
            examples: Vec::new(),
        }
    }

    /// Cells of all columns, compared with `paper`, or without it with the values of the paper's
    /// row.
    fn cells(&self, scores: &Scores, paper: Option<&[Option<f64>]>) -> Vec<Cell> {
        let printed = paper.or_else(|| Some(&*self.twin()?.values)).unwrap_or_default();
        let cell = |(index, column): (usize, &Column)| {
            let (value, interval) = score(self.table.metrics(column), column.unit, scores);
            let paper = printed.get(index).copied().flatten();
            let is_same = !self.table.columns.contains_key(&column.id);
            let difference = value.zip(paper.filter(|_| is_same));
            let difference = difference.map(|(value, paper)| value - paper);
            Cell { value, interval, paper, difference }
        };
        self.paper.columns.iter().enumerate().map(cell).collect()
    }
}

/// Value and interval of a column, `None` if one of its metrics was not measured. The interval of a
/// mean of independent scores is MOVER's: its distance from the mean is the root of the sum of the
/// squared distances of the scores' own ends, divided by their number.
fn score(metrics: &[String], unit: Unit, scores: &Scores) -> (Option<f64>, Option<[f64; 2]>) {
    let all: Option<Vec<_>> = metrics.iter().map(|metric| scores.get(metric)).collect();
    let Some(all) = all else { return (None, None) };
    let count = to_f64(all.len() as u64);
    let mean = all.iter().map(|score| score.value).sum::<f64>() / count;
    let distance = |end: usize| {
        let squares = all.iter().map(|score| Some((score.interval?[end] - score.value).powi(2)));
        Some(squares.sum::<Option<f64>>()?.sqrt() / count)
    };
    let interval = distance(0).zip(distance(1)).map(|(low, high)| [mean - low, mean + high]);
    (Some(unit.of(mean)), interval.map(|ends| ends.map(|end| unit.of(end))))
}

/// Samples that a run has seen after `step` steps, with those of the runs that it started from.
/// `None` if that is not recorded, as behind an export.
fn samples_seen(run: &Path, step: u64, chain: usize) -> Option<u64> {
    let directory = RunDirectory::open(run).ok()?;
    let recipe = directory.load_recipe().ok()?.recipe;
    let own = recipe.samples_after(step);
    match &recipe.init {
        None | Some(Init::Weights(_)) => Some(own),
        Some(Init::Export(_)) => None,
        Some(init @ Init::Run(before)) => {
            let files = RunRecord::read(&directory)?.files;
            // The manifest lies in the folder of the checkpoint.
            let folder = files.get(init.key())?.path.parent()?.file_name()?.to_str()?.to_owned();
            let step = folder.strip_prefix("step-")?.parse().ok()?;
            Some(own + samples_seen(before, step, chain.checked_sub(1)?)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::history::Score;

    fn scores(values: &[(&str, f64, [f64; 2])]) -> Scores {
        let score = |&(name, value, interval): &(&str, f64, [f64; 2])| {
            (name.to_owned(), Score { value, interval: Some(interval), ..Score::default() })
        };
        values.iter().map(score).collect()
    }

    #[test]
    fn a_point_of_the_paper_is_compared_only_after_about_as_many_samples() {
        let paper = &paper::TABLES["figure3"];
        let recipe = format!("{}/../recipes/quickstart.yaml", env!("CARGO_MANIFEST_DIR"));
        // 125 samples a step: 4,000 steps are 500K samples, 40,000 are 5M, 120,000 are 15M.
        let sets = ["stages.0.batch=125", "stages.0.steps=200000"].map(str::to_owned);
        let recipe = vljepa_recipes::load(recipe.as_ref(), &sets).unwrap().recipe;
        let table = Table {
            of: "figure3".to_owned(),
            rows: BTreeMap::new(),
            columns: BTreeMap::new(),
            skip_absent_sets: false,
        };
        let row = Row { run: Some("runs/a".into()), ..Row::default() };
        let source = Source { paper, table: &table, name: "vl_jepa", row: &row };
        let steps = [100, 4000, 4100, 30_000, 120_500, 150_000];
        let all: Vec<(u64, Scores)> = steps.map(|step| (step, Scores::new())).into();
        let points = source.curve(&all, Some(&recipe));
        let printed: Vec<Option<f64>> = points.iter().map(|point| point.cells[0].paper).collect();
        assert_eq!(printed, [None, Some(1.23), Some(1.23), None, Some(14.8), None]);
    }

    #[test]
    fn a_column_is_the_mean_of_all_its_metrics_or_nothing() {
        let known = scores(&[("a", 0.5, [0.47, 0.54]), ("b", 0.7, [0.66, 0.73])]);
        let of = |metrics: &[&str], unit| {
            let metrics: Vec<String> = metrics.iter().map(|&metric| metric.to_owned()).collect();
            score(&metrics, unit, &known)
        };
        let (value, interval) = of(&["a", "b"], Unit::Hundredth);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        // Distances of 3 and 4, then of 4 and 3, hundredths: √(9 + 16) / 2 each.
        let [low, high] = interval.unwrap();
        assert!(close(value.unwrap(), 60.0) && close(low, 57.5) && close(high, 62.5));
        assert!(close(of(&["a"], Unit::Factor).0.unwrap(), 0.5));
        assert_eq!(of(&["a", "c"], Unit::Hundredth), (None, None));
    }
}
