//! `report.html`: one self-contained file with the curves, scores, samples, timings and faults of a
//! run.

mod chart;
mod curves;
mod data;
mod page;
mod plan;
mod plot;
mod reliability;
mod sections;
mod stream;
mod table;
mod time;

use std::path::PathBuf;

use vljepa_recipes::Loaded;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::{Control, MetricUnit, Recipe};

pub(crate) use self::stream::StreamPage;
use crate::error::LaunchError;
use crate::plan::PlanReport;
use crate::record::comparison::Comparison;
use crate::record::history::Scores;
use crate::record::paper::Paper;
use crate::record::provenance::RunRecord;
use crate::record::rates::{Activity, Rates, Recent, Summary};
use crate::record::stragglers::RankTable;
use crate::record::table::PaperComparison;
use crate::record::{completion, history};
use crate::terminal;

/// Data of a report.
pub(crate) struct Contents {
    pub(crate) recipe: Recipe,
    pub(crate) yaml: String,
    pub(crate) recipe_hash: String,
    pub(crate) complete: bool,
    pub(crate) record: Option<RunRecord>,
    pub(crate) metrics: Vec<vljepa_recipes::protocol::Metrics>,
    pub(crate) rates: Summary,
    /// Medians of the newest intervals.
    pub(crate) recent: Recent,
    pub(crate) events: Vec<crate::record::events::Line>,
    pub(crate) scores: Vec<NamedScore>,
    /// Scores of every evaluation with its step, in the order of steps.
    pub(crate) evaluations: Vec<(u64, Scores)>,
    pub(crate) samples: Vec<history::Sample>,
    pub(crate) ranks: Option<RankTable>,
    pub(crate) reproduction: Option<Comparison>,
}

impl Contents {
    /// Contents of a run that has not started.
    pub(crate) fn empty(loaded: Loaded) -> Self {
        Self {
            recipe: loaded.recipe,
            yaml: loaded.yaml,
            recipe_hash: loaded.hash,
            complete: false,
            record: None,
            metrics: Vec::new(),
            rates: Summary::default(),
            recent: Recent::default(),
            events: Vec::new(),
            scores: Vec::new(),
            evaluations: Vec::new(),
            samples: Vec::new(),
            ranks: None,
            reproduction: None,
        }
    }
}

/// A score with its name and scale, and its kind of control if it is one.
pub(crate) struct NamedScore {
    pub(crate) name: String,
    pub(crate) score: history::Score,
    pub(crate) scale: Scale,
    pub(crate) control: Option<Control>,
}

/// Scale on which the values of a score are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Fractions, shown as percentages.
    Fraction,
    /// Numbers from 0 to 10, as coco-caption prints CIDEr. Papers print them times 100.
    Cider,
    /// How many times one number is another.
    Ratio,
}

impl Scale {
    /// Scale of a metric.
    fn of(unit: MetricUnit) -> Self {
        match unit {
            MetricUnit::Fraction => Self::Fraction,
            MetricUnit::Cider => Self::Cider,
            MetricUnit::Ratio => Self::Ratio,
        }
    }

    /// Value as text.
    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Self::Fraction => percent(value),
            Self::Cider => format!("{value:.3}"),
            Self::Ratio => format!("{value:.2}×"),
        }
    }

    /// Largest value that a bar shows.
    fn maximum(self) -> f64 {
        match self {
            Self::Fraction => 1.0,
            Self::Cider | Self::Ratio => 10.0,
        }
    }
}

/// Writes the report of a run and returns its path. That of a table of the paper also has the files
/// `table.json` and `table.md`.
pub(crate) fn write(directory: &RunDirectory) -> Result<PathBuf, LaunchError> {
    let loaded = directory.load_recipe()?;
    let path = directory.report();
    if let Some(compared) = PaperComparison::collect(directory, &loaded.recipe) {
        table::write_files(directory, &compared)?;
        let page = table::page(&compared, &loaded.recipe).into_string();
        atomic_write(&path, page.as_bytes())?;
        return Ok(path);
    }
    let (events, metrics) = (history::events(directory), history::metrics(directory));
    let activity = if directory.is_in_use() { Activity::Lock } else { Activity::Nothing };
    let rates = Rates::of(&loaded.recipe, &events, &metrics);
    let contents = Contents {
        rates: rates.now(activity),
        recent: rates.recent().clone(),
        complete: completion::check(directory, &loaded.recipe).is_ok(),
        scores: scores(history::scores_of(&directory.scores()), &loaded.recipe),
        evaluations: history::evaluations(directory),
        record: RunRecord::read(directory),
        metrics,
        events,
        samples: history::samples(directory),
        ranks: history::ranks(directory),
        reproduction: history::reproduction(directory),
        ..Contents::empty(loaded)
    };
    atomic_write(&path, page::page(&contents).into_string().as_bytes())?;
    Ok(path)
}

/// The page of the command `plan`.
pub(crate) fn plan_page(found: &PlanReport, rates: &vljepa_recipes::plan::Rates) -> String {
    plan::page(found, rates).into_string()
}

/// The page of the command `paper`.
pub(crate) fn paper_page(paper: &Paper) -> String {
    table::whole_page(paper).into_string()
}

/// Scores of a run as a table for the terminal, or `None` if there are none. The run of a table of
/// the paper has the scores of its rows.
pub(crate) fn scores_table(directory: &RunDirectory, scores: Scores) -> Option<String> {
    let recipe = directory.load_recipe().ok()?.recipe;
    if recipe.table.is_some() {
        return table::terminal_text(directory, &recipe);
    }
    let rows = score_rows(scores, &recipe);
    if rows.is_empty() {
        return None;
    }
    let header = ["score", "value", "95 %", "chance", "majority", "n", ""];
    let table: Vec<_> = std::iter::once(header.map(str::to_owned).to_vec())
        .chain(rows.into_iter().map(Vec::from))
        .collect();
    Some(terminal::table(&table))
}

/// Cells of the table of scores: name, value, 95 % interval, chance, majority, number of samples,
/// kind of control and number of samples that could not be read.
pub(crate) fn score_rows(all: Scores, recipe: &Recipe) -> Vec<[String; 7]> {
    let row = |NamedScore { name, score, scale, control }: NamedScore| {
        let text = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| scale.text(v));
        let control = control.map(|control| format!("control: {}", control_name(control)));
        let unreadable = (score.unreadable > 0).then(|| unreadable(score.unreadable));
        let remarks: Vec<String> = control.into_iter().chain(unreadable).collect();
        [
            name,
            text(Some(score.value)),
            score.interval.map_or_else(|| "–".to_owned(), range),
            text(score.chance),
            text(score.baseline),
            terminal::thousands(score.n),
            remarks.join("; "),
        ]
    };
    scores(all, recipe).into_iter().map(row).collect()
}

/// All scores: first those of the recipe's tasks in the recipe's order, then scores of no task,
/// then controls.
fn scores(mut all: Scores, recipe: &Recipe) -> Vec<NamedScore> {
    let mut found = Vec::new();
    for task in &recipe.evaluation.tasks {
        let belongs = |name: &String| {
            name.strip_prefix(&task.name).is_some_and(|rest| {
                rest.is_empty()
                    || rest.starts_with("_r")
                    || rest.starts_with("_top")
                    || rest == "_flipped"
            }) || task.metrics().contains(name)
        };
        let mut names: Vec<String> = all.keys().filter(|name| belongs(name)).cloned().collect();
        // Shorter names first, so that r1, r5, r10 are in the order of their numbers.
        names.sort_by_key(|name| (name.len(), name.clone()));
        let control = Some(task.control).filter(|control| *control != Control::None);
        for name in names {
            if let Some(score) = all.remove(&name) {
                let scale = Scale::of(task.unit(&name));
                found.push(NamedScore { name, score, scale, control });
            }
        }
    }
    let scale = Scale::Fraction;
    found.extend(all.into_iter().map(|(name, score)| NamedScore {
        name,
        score,
        scale,
        control: None,
    }));
    found.sort_by_key(|score| score.control.is_some());
    found
}

/// An interval in percent: `92.0–96.1`.
fn range([low, high]: [f64; 2]) -> String {
    format!("{:.1}–{:.1}", 100.0 * low, 100.0 * high)
}

fn unreadable(count: u64) -> String {
    format!("{} unreadable, counted as wrong", terminal::thousands(count))
}

fn percent(value: f64) -> String {
    format!("{:.1}%", 100.0 * value)
}

fn control_name(control: Control) -> &'static str {
    match control {
        Control::None => "none",
        Control::SingleFrame => "one frame repeated",
        Control::Reversed => "frames reversed",
        Control::Collapsed => "all embeddings equal",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::score_rows;
    use crate::record::history::{Score, Scores};

    #[test]
    fn cider_and_savings_are_shown_as_numbers_and_other_scores_as_percentages() {
        let recipe =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart_decoder.yaml");
        let recipe = vljepa_recipes::load(&recipe, &[]).unwrap().recipe;
        let score = |value| Score {
            value,
            chance: Some(0.0),
            baseline: Some(0.25),
            n: 1,
            ..Score::default()
        };
        let names = [
            "captions_cider",
            "captions_named",
            "captions_rouge_l",
            "stream_saving",
            "other_cider",
        ];
        let scores: Scores = names.map(|name| (name.to_owned(), score(1.242_192))).into();
        let rows = score_rows(scores, &recipe);
        let shown: Vec<[&str; 3]> = rows.iter().map(|row| [&*row[0], &*row[1], &*row[4]]).collect();
        let expected = [
            ["captions_cider", "1.242", "0.250"],
            ["captions_named", "124.2%", "25.0%"],
            ["captions_rouge_l", "124.2%", "25.0%"],
            ["stream_saving", "1.24×", "0.25×"],
            ["other_cider", "124.2%", "25.0%"],
        ];
        assert_eq!(shown, expected);
    }
}
