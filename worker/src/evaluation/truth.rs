//! What an evaluation task asks about its samples, and the right answers. Needs no model, so a
//! recipe is also checked with it before a run starts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Deserializer, Serialize};
use vljepa_data::sets::{OpenSet, SetSample};
use vljepa_data::texts::Texts;
use vljepa_recipes::file_kind::FileKind;
use vljepa_recipes::schema::{Candidates, EvaluationSet, LABEL, SampleSource, Task, TaskKind};

/// A task with the files that it names.
#[derive(Debug)]
pub(crate) struct Truth<'a> {
    task: &'a Task,
    /// Labels, each with the texts that represent it. Empty for retrieval.
    pub(crate) labels: BTreeMap<String, Vec<String>>,
    /// The right label instead of the sample's label, for labels that have one.
    expect: BTreeMap<String, String>,
}

impl<'a> Truth<'a> {
    /// Reads the label files of `task`, which has samples.
    ///
    /// # Errors
    /// Fails if a file cannot be read, there are fewer than two labels, or a label has no text.
    pub(crate) fn load(task: &'a Task) -> anyhow::Result<Self> {
        let mut truth = Self { task, labels: BTreeMap::new(), expect: BTreeMap::new() };
        let (candidates, expect) = match &task.kind {
            TaskKind::Classification { candidates, expect, .. } => (candidates, expect.as_deref()),
            TaskKind::QuestionAnswering { candidates, .. } => (candidates, None),
            TaskKind::Retrieval
            | TaskKind::Triplets
            | TaskKind::WorldPrediction
            | TaskKind::Captioning { .. }
            | TaskKind::SelectiveDecoding(_) => return Ok(truth),
        };
        truth.labels = label_texts(&task.kind, candidates, task.set.as_ref())?;
        anyhow::ensure!(truth.labels.len() > 1, "the task needs at least two candidates");
        if let Some(path) = expect {
            let map: BTreeMap<String, Label> = read_json(path)?;
            truth.expect = map.into_iter().map(|(label, right)| (label, right.0)).collect();
            for right in truth.expect.values() {
                truth.check_label(right).with_context(|| path.display().to_string())?;
            }
        }
        Ok(truth)
    }

    /// What the task asks about a sample with these texts.
    ///
    /// # Errors
    /// Fails if the sample lacks the text that the task needs, an answer is not among the labels,
    /// or a question belongs to no part of the task.
    pub(crate) fn of(&self, texts: &Texts) -> anyhow::Result<Vec<Question>> {
        let one = |truth| Ok(vec![Question { query: self.task.query.clone(), truth, part: None }]);
        match &self.task.kind {
            TaskKind::Classification { field, .. } => {
                let label = texts.field(field).map_err(anyhow::Error::msg)?;
                let label = label.with_context(|| format!("its json has no field `{field}`"))?;
                let right = self.expect.get(label).map_or(label, String::as_str);
                self.check_label(right)?;
                one(right.to_owned())
            }
            TaskKind::Retrieval => {
                let captions = texts.captions().map_err(anyhow::Error::msg)?;
                anyhow::ensure!(!captions.is_empty(), "it has no caption");
                one(serde_json::to_string(&captions)?)
            }
            TaskKind::QuestionAnswering { question_kind: kind, .. } => {
                let asked = texts.questions().map_err(anyhow::Error::msg)?.iter();
                let asked = asked.filter(|q| kind.as_ref().is_none_or(|kind| q.kind == *kind));
                let question = |q: &vljepa_data::Question| {
                    self.check_label(&q.answer)?;
                    let part = part(self.task, &q.kind)?;
                    Ok(Question { query: q.question.clone(), truth: q.answer.clone(), part })
                };
                asked.map(question).collect()
            }
            TaskKind::Captioning { names, references: fields } => {
                let value = |field: &String| {
                    let value = texts.field(field).map_err(anyhow::Error::msg)?;
                    let value =
                        value.with_context(|| format!("its json has no field `{field}`"))?;
                    Ok(value.to_owned())
                };
                let names = names.iter().map(value).collect::<anyhow::Result<Vec<_>>>()?;
                let mut references = Vec::new();
                for field in fields {
                    let texts = texts.list(field).map_err(anyhow::Error::msg)?;
                    references.extend(texts.into_iter().map(str::to_owned));
                }
                anyhow::ensure!(
                    fields.is_empty() || !references.is_empty(),
                    "it has no text in {}",
                    fields.join(" or ")
                );
                let truth = CaptionTruth { names, references };
                one(serde_json::to_string(&truth)?)
            }
            TaskKind::SelectiveDecoding(_) => {
                let annotations = texts.annotations().map_err(anyhow::Error::msg)?;
                anyhow::ensure!(!annotations.is_empty(), "its json has no `annotations`");
                one(serde_json::to_string(annotations)?)
            }
            TaskKind::WorldPrediction => one(serde_json::to_string(&ActionTruth::of(texts)?)?),
            TaskKind::Triplets => Ok(Vec::new()),
        }
    }

    /// Message for a set in which no sample has a question for the task.
    pub(crate) fn no_question(&self) -> String {
        let kind = match &self.task.kind {
            TaskKind::QuestionAnswering { question_kind: Some(kind), .. } => {
                format!(" of kind `{kind}`")
            }
            _ => String::new(),
        };
        format!("no sample of {} has a question{kind}", self.task.source())
    }

    fn check_label(&self, label: &str) -> anyhow::Result<()> {
        let count = self.labels.len();
        anyhow::ensure!(
            self.labels.contains_key(label) || self.task.has_open_answers(),
            "`{label}` is not among the {count} candidates"
        );
        Ok(())
    }
}

/// Question about a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Question {
    /// Query for the predictor.
    pub(crate) query: String,
    /// Right answer. That of retrieval is a list of the sample's captions as JSON, that of
    /// captioning [`CaptionTruth`], that of selective decoding a list of its annotations.
    pub(crate) truth: String,
    /// Number of the part of the task that the question belongs to. `None` in a task without parts.
    pub(crate) part: Option<usize>,
}

/// Number of the part of a task with this name. `None` in a task without parts.
fn part(task: &Task, name: &str) -> anyhow::Result<Option<usize>> {
    if task.parts.is_empty() {
        return Ok(None);
    }
    let number = task.parts.iter().position(|part| part == name);
    let parts = task.parts.join(", ");
    Ok(Some(number.with_context(|| format!("`{name}` is none of the task's parts: {parts}"))?))
}

/// What the caption of a sample is compared with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaptionTruth {
    /// Texts that the caption must name.
    pub(crate) names: Vec<String>,
    /// Right captions.
    pub(crate) references: Vec<String>,
}

/// Role of a sample of WorldPrediction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActionTruth {
    /// Id of the question that the sample belongs to.
    pub(crate) item: String,
    /// Number of the action that the sample shows. `None` for the two pictures.
    pub(crate) action: Option<usize>,
    /// Number of the right action, beside the two pictures.
    pub(crate) right: Option<usize>,
}

impl ActionTruth {
    fn of(texts: &Texts) -> anyhow::Result<Self> {
        let field = |name: &str| texts.field(name).map_err(anyhow::Error::msg);
        let number = |text: &str| text.parse().context("the number of an action is no number");
        let item = field("item")?.context("its json has no field `item`")?.to_owned();
        let action = field("action")?.map(number).transpose()?;
        let questions = texts.questions().map_err(anyhow::Error::msg)?;
        let right = questions.first().map(|question| number(&question.answer)).transpose()?;
        anyhow::ensure!(
            action.is_some() != right.is_some(),
            "it must have either `action` or one question"
        );
        Ok(Self { item, action, right })
    }
}

/// Reads the labels of a task, each with the texts that represent it, in the task's templates.
/// `set` is the set of the task, if it has one.
///
/// # Errors
/// Fails if the file or the set cannot be read, or a label has no text.
pub(crate) fn label_texts(
    kind: &TaskKind,
    candidates: &Candidates,
    set: Option<&EvaluationSet>,
) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<Label>),
        Map(BTreeMap<String, Vec<Label>>),
    }
    let own = |label: String| (label.clone(), vec![label]);
    let (labels, place): (BTreeMap<String, Vec<String>>, _) = match candidates {
        Candidates::OfSet => {
            let set = set.context("the task has neither candidates nor a set that has some")?;
            (OpenSet::open(set)?.labels, format!("{}: ", set.name))
        }
        Candidates::Labels(labels) => (labels.iter().cloned().map(own).collect(), String::new()),
        Candidates::File(path) => {
            let labels = match read_json(path)? {
                Form::List(labels) => labels.into_iter().map(|label| own(label.0)).collect(),
                Form::Map(map) => {
                    let texts = |texts: Vec<Label>| texts.into_iter().map(|text| text.0).collect();
                    map.into_iter().map(|(label, of_label)| (label, texts(of_label))).collect()
                }
            };
            (labels, format!("{}: ", path.display()))
        }
    };
    for (label, texts) in &labels {
        let blank = texts.is_empty() || texts.iter().any(|text| text.trim().is_empty());
        anyhow::ensure!(!blank, "{place}the candidate `{label}` has no text, or an empty one");
    }
    let TaskKind::Classification { templates, .. } = kind else { return Ok(labels) };
    let in_templates = |text: String| templates.iter().map(move |t| t.replace(LABEL, &text));
    Ok(labels
        .into_iter()
        .map(|(label, texts)| (label, texts.into_iter().flat_map(in_templates).collect()))
        .collect())
}

/// Text of a label in a JSON file. A number is its text, as in the samples.
struct Label(String);

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            serde_json::Value::Number(number) => Ok(Self(number.to_string())),
            serde_json::Value::Bool(truth) => Ok(Self(truth.to_string())),
            _ => Err(serde::de::Error::custom("a label must be a text or a number")),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Triplet {
    #[serde(alias = "caption")]
    pub(crate) p1: String,
    #[serde(alias = "caption2")]
    pub(crate) p2: String,
    #[serde(alias = "negative_caption")]
    pub(crate) n: String,
    /// Part of the task.
    #[serde(default)]
    split: String,
}

/// Reads the triplets of a task, at most as many as its limit.
///
/// # Errors
/// Fails if the file cannot be read or holds no triplet.
pub(crate) fn triplets(task: &Task) -> anyhow::Result<Vec<Triplet>> {
    let mut triplets: Vec<Triplet> = match task.source() {
        SampleSource::Shards { shards, .. } => read_json(Path::new(shards))?,
        SampleSource::Set(set) => {
            let samples = OpenSet::open(set)?.samples;
            samples.iter().map(Triplet::of).collect::<anyhow::Result<_>>()?
        }
    };
    triplets.truncate(task.limit.unwrap_or(usize::MAX));
    anyhow::ensure!(!triplets.is_empty(), "{} holds no triplets", task.source());
    Ok(triplets)
}

impl Triplet {
    /// The triplet of a sample of a set.
    fn of(sample: &SetSample) -> anyhow::Result<Self> {
        let text = |name: &str| {
            let text = sample.texts.field(name).map_err(anyhow::Error::msg)?;
            let text = text.with_context(|| format!("`{}` has no text `{name}`", sample.key))?;
            anyhow::Ok(text.to_owned())
        };
        let split = sample.texts.field("split").map_err(anyhow::Error::msg)?;
        let split = split.unwrap_or_default().to_owned();
        Ok(Self { p1: text("p1")?, p2: text("p2")?, n: text("n")?, split })
    }

    /// Number of the part of the task that the triplet belongs to. `None` in a task without parts.
    ///
    /// # Errors
    /// Fails if it belongs to none.
    pub(crate) fn part(&self, task: &Task) -> anyhow::Result<Option<usize>> {
        part(task, &self.split).with_context(|| format!("the triplet of `{}`", self.p1))
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let text = contents(path)?;
    serde_json::from_slice(&text).with_context(|| format!("{} does not parse", path.display()))
}

/// Reads a text file, without a byte order mark.
///
/// # Errors
/// Fails if the file cannot be read, is empty, or is known to hold something else than text.
pub(crate) fn contents(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(FileKind { what, advice }) = FileKind::of(&text) {
        anyhow::bail!("{} {what}; {advice}", path.display());
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::schema::{Candidates, TaskKind};

    use super::label_texts;

    #[test]
    fn every_text_of_a_label_is_put_into_every_template() {
        let candidates = Candidates::Labels(vec!["cat".to_owned(), "dog".to_owned()]);
        let texts = |templates: &[&str]| {
            let templates = templates.iter().map(|&t| t.to_owned()).collect();
            let (field, candidates) = ("label".to_owned(), candidates.clone());
            let of_kind = candidates.clone();
            let kind = TaskKind::Classification { field, candidates, templates, expect: None };
            label_texts(&kind, &of_kind, None).unwrap()
        };
        assert_eq!(texts(&["{}"])["cat"], ["cat"]);
        assert_eq!(texts(&["a {}.", "the {}"])["dog"], ["a dog.", "the dog"]);
    }
}
