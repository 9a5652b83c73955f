//! Time of evaluation tasks: passes of the networks over the samples and texts of their sets, or
//! the decoding of their pictures and clips if that takes longer.

use serde::Serialize;

use super::rates::{Beyond, Rates};
use super::step::{PassTime, Rows, pass_time};
use super::{Estimate, SECONDS_OF_HOUR, data};
use crate::cost::{
    ASSUMED_QUERY_TOKENS, ASSUMED_TARGET_TOKENS, Network, NetworkName, Tokens, networks, real,
};
use crate::schema::{Candidates, ModelKind, Recipe, Recompute, SetFormat, Task, TaskKind, Visual};

/// Rows that an evaluation embeds at once.
const ROWS: usize = 64;

/// Time of the tasks of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EvaluationPlan {
    /// Hours of the tasks whose numbers of samples are known.
    pub hours: Estimate,
    /// Tasks whose numbers of samples are unknown before their files are read, and tasks that write
    /// texts. They are not in the hours, which are then a lower bound.
    pub unknown: Vec<String>,
}

impl EvaluationPlan {
    /// Sum with the plan of other tasks. The same rates are wrong for both alike.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self.hours = self.hours.plus_alike(other.hours);
        self.unknown.extend(other.unknown);
        self
    }
}

/// Plans one measurement of all tasks of a recipe with the recipe's model on its devices.
#[must_use]
pub fn evaluation(recipe: &Recipe, rates: &Rates) -> EvaluationPlan {
    let mut plan = EvaluationPlan::default();
    for task in &recipe.evaluation.tasks {
        match Work::of(recipe, task) {
            Some(work) => {
                let hours = work.seconds(recipe, rates).times(1.0 / SECONDS_OF_HOUR);
                plan.hours = plan.hours.plus_alike(hours);
            }
            None => plan.unknown.push(task.name.clone()),
        }
    }
    plan
}

/// How often a run measures its tasks.
#[must_use]
pub fn measurements(recipe: &Recipe) -> u64 {
    if recipe.evaluation.tasks.is_empty() {
        return 0;
    }
    let (steps, every) = (recipe.total_steps(), recipe.evaluation.every_steps);
    // That after the last step is always measured.
    let between = steps.saturating_sub(1).checked_div(every).unwrap_or(0);
    let mut samples: u64 = 0;
    for stage in &recipe.stages {
        samples = samples.saturating_add(stage.steps.saturating_mul(stage.batch as u64));
    }
    let at = recipe.evaluation.at_samples.iter().filter(|at| **at < samples).count();
    1 + between + at as u64
}

/// What a task asks of the model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Work {
    /// Pictures or clips that are decoded and embedded.
    visuals: usize,
    /// Texts that the Y-encoder embeds.
    texts: usize,
    /// Frames of each picture or clip.
    frames: usize,
    /// Tokens of the query of each picture or clip.
    query: usize,
    /// Whether the samples are pictures.
    pictures: bool,
}

impl Work {
    /// `None` if it is unknown.
    fn of(recipe: &Recipe, task: &Task) -> Option<Self> {
        let expect = task.set.as_ref().map(|set| &set.expect);
        let limit = |count: usize| task.limit.map_or(count, |limit| count.min(limit));
        let samples = expect.and_then(|expect| expect.samples).map(limit);
        let questions = expect.and_then(|expect| expect.questions).map(limit);
        let labels = |candidates: &Candidates| match candidates {
            Candidates::Labels(labels) => Some(labels.len()),
            Candidates::OfSet => expect.and_then(|expect| expect.labels),
            Candidates::File(_) => None,
        };
        let has_embeddings = match recipe.model.kind {
            ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::DualEncoder => true,
            ModelKind::Vlm => false,
        };
        let (visuals, texts) = match &task.kind {
            _ if !has_embeddings => return None,
            TaskKind::Classification { candidates, templates, .. } => {
                (samples?, labels(candidates)? * templates.len())
            }
            TaskKind::Retrieval => (samples?, samples?),
            TaskKind::QuestionAnswering { candidates, .. } => (questions?, labels(candidates)?),
            // The first and the second description, and the changed one.
            TaskKind::Triplets => (0, 3 * samples?),
            // The change, and four actions to choose from.
            TaskKind::WorldPrediction => (5 * questions?, 0),
            TaskKind::Captioning { .. } | TaskKind::SelectiveDecoding(_) => return None,
        };
        let format = task.set.as_ref().map(|set| &set.format);
        Some(Self {
            visuals,
            texts,
            frames: task.frames.unwrap_or_else(|| recipe.default_frames()),
            query: if task.has_query() { ASSUMED_QUERY_TOKENS } else { 0 },
            pictures: format.is_some_and(has_pictures),
        })
    }

    /// Seconds on all ranks, each of which takes an equal part.
    fn seconds(self, recipe: &Recipe, rates: &Rates) -> Estimate {
        let ranks = recipe.cluster.world_size().max(1);
        let seen = Tokens::of(&recipe.model, self.frames, self.query, 0);
        let read = Tokens { target: ASSUMED_TARGET_TOKENS, ..Tokens::default() };
        let computed = [(self.visuals, seen, false), (self.texts, read, true)].map(
            |(count, tokens, is_text)| {
                let all = networks(&recipe.model, tokens, false, Recompute::None);
                let rows = count.div_ceil(ranks);
                let rows = Rows { rows, micro_batch: ROWS.min(rows).max(1) };
                let of = |network: &&Network| (network.name == NetworkName::YEncoder) == is_text;
                all.iter().filter(of).fold(PassTime::default(), |sum, network| {
                    let pass = pass_time(recipe, rates, network, &network.forward, rows, false);
                    if count == 0 { sum } else { sum.plus(pass, 1.0) }
                })
            },
        );
        let [visuals, texts] = computed.map(PassTime::estimate);
        let decoded = self.decoding(recipe, rates, self.visuals.div_ceil(ranks));
        let slower = if decoded.value > visuals.value { decoded } else { visuals };
        slower.plus_alike(texts)
    }

    /// Seconds in which the CPUs of a rank decode so many pictures or clips, as published.
    fn decoding(self, recipe: &Recipe, rates: &Rates, count: usize) -> Estimate {
        let visual = if self.pictures { Visual::Image } else { Visual::Video };
        let curve = &rates.form(visual, false).samples_per_cpu_s;
        let of_cpu = curve.at(self.frames, Beyond::Line);
        let seconds = real(count) / (of_cpu * data::cpus(recipe, rates));
        Estimate::new(seconds, seconds * curve.spread)
    }
}

/// Whether the samples of a set are pictures.
fn has_pictures(format: &SetFormat) -> bool {
    match format {
        SetFormat::ImageFolders { .. }
        | SetFormat::Gqa { .. }
        | SetFormat::TallyQa { .. }
        | SetFormat::Pope { .. }
        | SetFormat::PopeV2 { .. }
        | SetFormat::Clevr { .. } => true,
        SetFormat::SomethingSomething { .. }
        | SetFormat::Kinetics { .. }
        | SetFormat::EpicKitchens { .. }
        | SetFormat::EgoExo4dKeysteps { .. }
        | SetFormat::EgoExo4dDescriptions { .. }
        | SetFormat::Coin { .. }
        | SetFormat::CrossTask { .. }
        | SetFormat::CaptionTable { .. }
        | SetFormat::Didemo { .. }
        | SetFormat::ActivityNetCaptions { .. }
        | SetFormat::Dream1k { .. }
        | SetFormat::Vdc { .. }
        | SetFormat::WorldPrediction { .. }
        | SetFormat::SugarCrepePp { .. }
        | SetFormat::Visla { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{EvaluationPlan, Recipe, Work, evaluation, measurements};
    use crate::plan::Rates;

    /// The paper's pretraining with tasks, on one node.
    fn recipe(tasks: &str) -> Recipe {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
        let sets = ["cluster.nodes=1".to_owned(), format!("evaluation.tasks=[{tasks}]")];
        crate::load(&path, &sets).unwrap().recipe
    }

    fn set(name: &str, more: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("evaluate/sets");
        format!("{{set: {}{more}}}", folder.join(name).with_extension("yaml").display())
    }

    fn work(recipe: &Recipe) -> Vec<Option<Work>> {
        recipe.evaluation.tasks.iter().map(|task| Work::of(recipe, task)).collect()
    }

    #[test]
    fn work_is_counted_as_the_sets_say() {
        let tasks = ["ssv2", "msrvtt", "gqa", "visla", "worldprediction", "clevr", "k400"];
        let found = work(&recipe(&tasks.map(|name| set(name, "")).join(", ")));
        let counts = |work: &Option<Work>| work.map(|work| [work.visuals, work.texts, work.frames]);
        let expected = [
            Some([24_777, 174, 32]),
            Some([1000, 1000, 32]),
            Some([12_578, 1842, 2]),
            Some([0, 3 * 1625, 32]),
            Some([5 * 825, 0, 32]),
            None,
            None,
        ];
        assert_eq!(found.iter().map(counts).collect::<Vec<_>>(), expected);
        assert!(found[2].is_some_and(|work| work.pictures && work.query > 0));
        let limited = recipe(&set("ssv2", ", limit: 100, frames: 8"));
        assert_eq!(counts(&work(&limited)[0]), Some([100, 174, 8]));
    }

    /// 24,777 clips of 8 frames need 0.725 TFLOP in the X-encoder and 1.069 in the predictor
    /// (`cost/operations.rs`); at the highest rate of products that was ever measured, 8 GPUs take
    /// no less than 7 s. Their 96 CPUs decode for longer.
    #[test]
    fn an_evaluation_takes_as_long_as_the_slower_of_computing_and_decoding() {
        let rates = Rates::h200();
        let recipe = recipe(&set("ssv2", ", frames: 8"));
        let found = evaluation(&recipe, rates);
        let seconds = 3600.0 * found.hours.value;
        let least = 24_777.0 * 1.794 / (8.0 * rates.ceiling_tflops);
        let decoding = 24_777.0 / 96.0 / 9.5;
        assert!(seconds > least && seconds >= 0.9 * decoding, "{seconds} {least} {decoding}");
        assert!(seconds < 20.0 * decoding.max(least), "{seconds} {least} {decoding}");
        let mut fast = rates.clone();
        fast.clips.raw.samples_per_cpu_s.values.iter_mut().for_each(|(_, rate)| *rate *= 1e6);
        let computed = 3600.0 * evaluation(&recipe, &fast).hours.value;
        assert!(computed > least && computed < seconds, "{computed} {seconds}");
        // Twice the nodes need half the time.
        let mut twice = recipe.clone();
        twice.cluster.nodes = 2;
        let half = evaluation(&twice, rates).hours.value / found.hours.value;
        assert!((half - 0.5).abs() < 0.01, "{half}");
    }

    #[test]
    fn unknown_tasks_are_named_and_sums_keep_them() {
        let rates = Rates::h200();
        let [known, all] = [set("ssv2", ""), [set("ssv2", ""), set("clevr", "")].join(", ")]
            .map(|tasks| evaluation(&recipe(&tasks), rates));
        assert_eq!(all, EvaluationPlan { unknown: vec!["clevr".to_owned()], ..known.clone() });
        let sum = known.clone().plus(all);
        assert_eq!(sum.unknown, ["clevr"]);
        assert!((sum.hours.value / known.hours.value - 2.0).abs() < 1e-12);
    }

    #[test]
    fn tasks_are_measured_at_steps_and_samples_and_at_the_end() {
        let mut recipe = recipe(&set("ssv2", ""));
        assert_eq!(measurements(&recipe), 1);
        // 170,000 steps: after 50,000, 100,000 and 150,000, and at the end.
        recipe.evaluation.every_steps = 50_000;
        assert_eq!(measurements(&recipe), 4);
        recipe.evaluation.every_steps = 170_000;
        assert_eq!(measurements(&recipe), 1);
        recipe.evaluation.at_samples = vec![1000, u64::MAX];
        assert_eq!(measurements(&recipe), 2);
        recipe.evaluation.tasks.clear();
        assert_eq!(measurements(&recipe), 0);
    }
}
