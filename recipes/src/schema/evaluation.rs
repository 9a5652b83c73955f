//! Keys under `evaluation`.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Scores measured during and after the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Steps between evaluations; 0 evaluates only after the last step.
    pub every_steps: u64,
    /// What is measured.
    pub tasks: Vec<Task>,
}

/// One score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What metrics in `scores.json` are named after: see [`Task::metrics`].
    pub name: String,
    /// How it is measured.
    pub kind: TaskKind,
    /// Shards of the samples (as a source's `shards`); a JSON file for triplets.
    pub shards: String,
    /// Query given with each sample; unused where samples bring questions.
    #[serde(default)]
    pub query: String,
    /// Frames of a clip; none takes the last stage's.
    #[serde(default)]
    pub frames: Option<usize>,
    /// Most samples used, in the shards' order; none takes all.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Change made to the samples so that the score must fall or flip.
    #[serde(default)]
    pub control: Control,
}

impl Task {
    /// Names in `scores.json`. Retrieval appends `_r1`, `_r5` and `_r10`; classification appends `_top1` and, for more than five labels,
    /// `_top5`; classification with `expect`, question answering and triplets are the name itself.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        let suffixes: &[&str] = match &self.kind {
            TaskKind::Classification { expect: Some(_), .. }
            | TaskKind::QuestionAnswering { .. }
            | TaskKind::Triplets => &[""],
            TaskKind::Classification { expect: None, .. } => &["_top1", "_top5"],
            TaskKind::Retrieval => &["_r1", "_r5", "_r10"],
        };
        suffixes.iter().map(|suffix| format!("{}{suffix}", self.name)).collect()
    }

    /// Whether its samples come with a text for the predictor.
    #[must_use]
    pub fn has_query(&self) -> bool {
        match self.kind {
            TaskKind::QuestionAnswering { .. } => true,
            TaskKind::Classification { .. } | TaskKind::Retrieval => !self.query.is_empty(),
            TaskKind::Triplets => false,
        }
    }
}

/// How a score is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskKind {
    /// Nearest of the label texts' embeddings; the truth is a field of the sample's json.
    Classification {
        /// Field of the sample's json that holds the label.
        field: String,
        /// The labels and their texts.
        candidates: Candidates,
        /// Labels that count as right instead of the truth (`{"moving left": "moving right", …}`): the control of reversed clips.
        #[serde(default)]
        expect: Option<PathBuf>,
    },
    /// Text to visual: recall at 1, 5 and 10, ties ranked pessimistically; the text is the sample's caption.
    Retrieval,
    /// Best of the candidate answers to the sample's questions.
    QuestionAnswering {
        /// Only questions of this kind; none takes all.
        #[serde(default)]
        question_kind: Option<String>,
        /// The answers to choose from.
        candidates: Candidates,
    },
    /// Text hard negatives: p1 and p2 are nearer to each other than either is to n (paper Table 4). `shards` names a JSON file, a
    /// list of `{p1, p2, n}` or `{caption, caption2, negative_caption}`.
    Triplets,
}

/// Labels and the texts that stand for them: a text embedding is the normalised mean of its texts' embeddings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Candidates {
    /// Each label is its own text.
    Labels(Vec<String>),
    /// A JSON file: a list of labels, or a map from label to its texts.
    File(PathBuf),
}

/// By hand, because serde's untagged enums report neither place nor reason.
impl<'de> Deserialize<'de> for Candidates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CandidatesVisitor)
    }
}

struct CandidatesVisitor;

impl<'de> Visitor<'de> for CandidatesVisitor {
    type Value = Candidates;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of labels or the path of a JSON file")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<Candidates, E> {
        Ok(Candidates::File(PathBuf::from(path)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Candidates, A::Error> {
        let mut labels = Vec::new();
        while let Some(label) = list.next_element()? {
            labels.push(label);
        }
        Ok(Candidates::Labels(labels))
    }
}

/// Change made to the samples so that the score must fall or flip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// None: the score itself.
    #[default]
    None,
    /// The middle frame repeated: what a score owes to motion must vanish.
    SingleFrame,
    /// Frames in reverse order.
    Reversed,
    /// All predicted embeddings equal: must score chance, or the metric is wrong.
    Collapsed,
}
