//! Recipe keys under `evaluation`.

mod candidates;
mod selective;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::candidates::Candidates;
pub use self::selective::{SHORTEST_STRIDE_S, SelectiveDecoding};
use super::set::EvaluationSet;

/// Scores measured during and after the run. Which sets are measured, and when, is up to the
/// recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Number of steps between evaluations; 0 evaluates only at `at_samples` and after the last
    /// step. Our default: 0.
    pub every_steps: u64,
    /// Increasing numbers of samples over all stages. The tasks are also measured after the first
    /// step at which the run has trained on at least so many. The paper compares runs after 0.5, 5
    /// and 15 million samples (§4.4). Default: none.
    pub at_samples: Vec<u64>,
    /// Tasks measured at each evaluation. Default: none.
    pub tasks: Vec<Task>,
}

/// One evaluation task: a set of samples and how they are scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name of the task: up to 100 letters, digits, `-` and `_`. [`Task::metrics`] derives the
    /// names in `scores.json` from it. Default: the name of the `set`.
    pub name: String,
    /// Scoring method. No default.
    pub kind: TaskKind,
    /// Shards of the samples, written as a source's `shards`; for triplets, a JSON file. Default:
    /// `null`; either `shards` or `set` must be given.
    #[serde(default)]
    pub shards: Option<String>,
    /// Path of the file of an evaluation set, such as `evaluate/sets/gqa.yaml`, relative to the
    /// recipe. Its key `task` holds defaults of the keys of this task, which the recipe may change.
    /// In a resolved recipe, the keys of the set stand here. Default: `null`.
    #[serde(default)]
    pub set: Option<EvaluationSet>,
    /// Folder of the catalogue of the shards, as a source's `catalogue`. Default: `null`.
    #[serde(default)]
    pub catalogue: Option<PathBuf>,
    /// Query given with each sample. It must be empty for question answering, whose samples hold
    /// their questions, and for triplets. Unstated by the paper; default: empty.
    #[serde(default)]
    pub query: String,
    /// Number of frames per sample, a multiple of the tubelet size, or 1 with V-JEPA 2.1. Default:
    /// `frames` of the last stage; 8 in a recipe without stages, as Perception Encoder's
    /// evaluations take.
    #[serde(default)]
    pub frames: Option<usize>,
    /// Maximum number of samples, taken in the order of the shards. Default: all samples.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Parts of the set that also get scores of their own: kinds of questions, or values of `split`
    /// of triplets. The metric of a part is `<name>_<part>`, and that of the mean over the parts
    /// `<name>_macro`. Every question and triplet must belong to one. Default: none.
    #[serde(default)]
    pub parts: Vec<String>,
    /// Change to the samples that must lower or flip the score, to prove that the score measures
    /// what it claims. Default: `none`.
    #[serde(default)]
    pub control: Control,
}

/// Where the samples of a task are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SampleSource<'a> {
    /// In shards, or, for triplets, in a JSON file.
    Shards {
        /// Value of `shards`, which is empty in a recipe that was not checked and lacks it.
        shards: &'a str,
        /// Folder of the catalogue.
        catalogue: Option<&'a Path>,
    },
    /// In the published files of a set.
    Set(&'a EvaluationSet),
}

impl fmt::Display for SampleSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shards { shards, .. } => f.write_str(shards),
            Self::Set(set) => write!(f, "the set `{}`", set.name),
        }
    }
}

impl Task {
    /// Where the samples of the task are.
    #[must_use]
    pub fn source(&self) -> SampleSource<'_> {
        match &self.set {
            Some(set) => SampleSource::Set(set),
            None => SampleSource::Shards {
                shards: self.shards.as_deref().unwrap_or_default(),
                catalogue: self.catalogue.as_deref(),
            },
        }
    }

    /// Whether a right answer may lie outside of the candidates, because both come from the authors
    /// of the set. It counts as wrong.
    #[must_use]
    pub fn has_open_answers(&self) -> bool {
        let TaskKind::QuestionAnswering { candidates, .. } = &self.kind else { return false };
        self.set.is_some() && *candidates == Candidates::OfSet
    }

    /// Names of the task's metrics in `scores.json`.
    ///
    /// Retrieval appends `_r1`, `_r5` and `_r10` to the name; classification appends `_top1` and,
    /// for more than five labels, `_top5`; captioning appends `_named` if it has `names`, and
    /// `_cider`, `_bleu4` and `_rouge_l` if it has `references`; selective decoding appends
    /// `_uniform_cider`, `_adaptive_cider` and `_saving`, of which the last is missing if there is
    /// no saving. Classification with `expect`, question answering, triplets and WorldPrediction
    /// use the name alone, and then with `parts` append `_macro` and `_<part>`.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        let of_captions = CaptionMetric::ALL.map(CaptionMetric::suffix);
        let suffixes: &[&str] = match &self.kind {
            TaskKind::Classification { expect: Some(_), .. }
            | TaskKind::QuestionAnswering { .. }
            | TaskKind::Triplets
            | TaskKind::WorldPrediction => &[""],
            TaskKind::Classification { candidates: Candidates::Labels(labels), .. }
                if labels.len() <= 5 =>
            {
                &["_top1"]
            }
            TaskKind::Classification { .. } => &["_top1", "_top5"],
            TaskKind::Retrieval => &["_r1", "_r5", "_r10"],
            TaskKind::SelectiveDecoding(_) => &SELECTIVE,
            TaskKind::Captioning { names, references } => {
                match (names.is_empty(), references.is_empty()) {
                    (false, true) => &[NAMED],
                    (true, false) => &of_captions,
                    (false, false) => &[&[NAMED], &of_captions[..]].concat(),
                    (true, true) => &[],
                }
            }
        };
        let mut names: Vec<String> =
            suffixes.iter().map(|suffix| format!("{}{suffix}", self.name)).collect();
        if !self.parts.is_empty() {
            names.push(format!("{}_macro", self.name));
            names.extend(self.parts.iter().map(|part| format!("{}_{part}", self.name)));
        }
        names
    }

    /// What a metric of the task is: a fraction or another number.
    #[must_use]
    pub fn unit(&self, metric: &str) -> MetricUnit {
        let Some(suffix) = metric.strip_prefix(&self.name) else { return MetricUnit::Fraction };
        match &self.kind {
            TaskKind::SelectiveDecoding(_) if suffix == SELECTIVE[2] => MetricUnit::Ratio,
            TaskKind::SelectiveDecoding(_) => MetricUnit::Cider,
            TaskKind::Captioning { references, .. }
                if !references.is_empty() && suffix == CaptionMetric::Cider.suffix() =>
            {
                MetricUnit::Cider
            }
            TaskKind::Captioning { .. }
            | TaskKind::Classification { .. }
            | TaskKind::QuestionAnswering { .. }
            | TaskKind::Retrieval
            | TaskKind::Triplets
            | TaskKind::WorldPrediction => MetricUnit::Fraction,
        }
    }

    /// Whether the predictor gets a query with each sample of the task.
    #[must_use]
    pub fn has_query(&self) -> bool {
        match self.kind {
            TaskKind::QuestionAnswering { .. } => true,
            TaskKind::Classification { .. }
            | TaskKind::Retrieval
            | TaskKind::Captioning { .. }
            | TaskKind::SelectiveDecoding(_)
            | TaskKind::WorldPrediction => !self.query.is_empty(),
            TaskKind::Triplets => false,
        }
    }
}

/// What the value of a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricUnit {
    /// From 0 to 1.
    Fraction,
    /// CIDEr, from 0 to 10.
    Cider,
    /// How many times one number is another.
    Ratio,
}

/// Ends of the names of the metrics of selective decoding.
const SELECTIVE: [&str; 3] = ["_uniform_cider", "_adaptive_cider", "_saving"];

/// Scoring method of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskKind {
    /// Classification (paper §4.1): the label whose text embedding is nearest to the predicted
    /// embedding must be the sample's label. A VLM takes the label whose text has the lowest
    /// perplexity as its answer to the query (§4.4).
    Classification {
        /// Field of the sample's json that holds the label, a text or a number. Dots lead through
        /// nested objects, as in a rule's `field`. Those of a set have `label`. No default.
        field: String,
        /// Labels and their texts. Default: those of the set; shards have no default.
        #[serde(default)]
        candidates: Candidates,
        /// Sentences around the texts of the labels, such as `a video of {}.`, each with one `{}`.
        /// Every text is put into every sentence. Unstated by the paper; default: `{}`, the text
        /// alone.
        #[serde(default = "bare_label")]
        templates: Vec<String>,
        /// JSON file that maps each label to the label that counts as right instead
        /// (`{"moving left": "moving right", …}`), for clips played in reverse. Default: none, so
        /// the sample's own label is right.
        #[serde(default)]
        expect: Option<PathBuf>,
    },
    /// Text-to-visual retrieval (paper §4.1): recall at 1, 5 and 10 of the sample whose caption is
    /// the text. A sample whose json has a list `captions` is asked for with each of them. Ties
    /// count against the sample.
    Retrieval,
    /// Discriminative question answering (paper §4.2): the answer whose embedding is nearest to the
    /// predicted one, or which has the lowest perplexity for a VLM, must be the right answer.
    QuestionAnswering {
        /// Takes only questions of this kind. Default: all questions.
        #[serde(default)]
        question_kind: Option<String>,
        /// Answers to choose from. Default: those of the set; shards have no default.
        #[serde(default)]
        candidates: Candidates,
    },
    /// Hard-negative triplets of texts (paper §4.6, Table 4): p1 and p2 must be nearer to each
    /// other than either is to n. `shards` names a JSON file with a list of `{p1, p2, n}` or
    /// `{caption, caption2, negative_caption}`.
    Triplets,
    /// WorldPrediction-WM (paper §4.3, Table 3): of several candidate actions, the clip whose
    /// embedding is nearest to that of the change, a clip of which the first half shows the initial
    /// picture and the second half the final one. Ties count against the right action, and so does
    /// a picture or clip of the question that cannot be read. Only a set has such samples.
    WorldPrediction,
    /// Captioning (paper §4.4): the text that a Y-decoder writes for the predicted embedding, or a
    /// VLM as its answer. It must contain the values of all `names`, as whole words in any case, or
    /// is compared with `references`, as [`CaptionMetric`] says. A sample that cannot be read
    /// counts as 0.
    // Empty lists are left out: inside a variant, the YAML writer breaks the line before `[]`.
    Captioning {
        /// Fields of the sample's json whose values the caption must name. Dots lead through nested
        /// objects, as in a rule's `field`. Default: none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        names: Vec<String>,
        /// Fields of the sample's json that hold right captions, a text or a list of texts each,
        /// found as those of `names`. `caption` is the sample's `txt`, or the field `caption` if
        /// the sample has no `txt`. Default: none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        references: Vec<String>,
    },
    /// Selective decoding of long videos (paper §4.5, Figure 4): texts that a Y-decoder writes at
    /// uniform points of a video, or in the middle of segments of similar embeddings, against the
    /// sample's annotations, `annotations: [{t, text}]` in its json with `t` in seconds. Each
    /// annotation is compared with the text whose point is the nearest in time, by CIDEr over all
    /// videos. The metrics decode mean embeddings, which are better in the paper. Annotations of a
    /// video that cannot be read count as 0.
    SelectiveDecoding(SelectiveDecoding),
}

/// Metric that compares captions with reference captions, as coco-caption computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionMetric {
    /// CIDEr-D, which coco-caption calls CIDEr: from 0 to 10. Papers print it times 100.
    Cider,
    /// BLEU-4 over the whole set, a fraction.
    Bleu4,
    /// ROUGE-L, a fraction.
    RougeL,
}

impl CaptionMetric {
    /// All metrics, in the order of [`Task::metrics`].
    pub const ALL: [Self; 3] = [Self::Cider, Self::Bleu4, Self::RougeL];

    /// End of the metric's name in `scores.json`.
    fn suffix(self) -> &'static str {
        match self {
            Self::Cider => "_cider",
            Self::Bleu4 => "_bleu4",
            Self::RougeL => "_rouge_l",
        }
    }
}

/// End of the name of the share of captions that name everything.
const NAMED: &str = "_named";

fn bare_label() -> Vec<String> {
    vec![LABEL.to_owned()]
}

/// Part of a template that stands for the text of a label.
pub const LABEL: &str = "{}";

/// Change to the samples that must lower or flip the score. All are ours, not the paper's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Unchanged samples: measures the score itself.
    #[default]
    None,
    /// Repeats the middle frame: a score that depends on motion must fall to chance.
    SingleFrame,
    /// Reverses the order of the frames: motions must be classified as their opposites.
    Reversed,
    /// Gives all samples the same predicted embedding: the score must be chance, or the metric is
    /// wrong.
    Collapsed,
}
