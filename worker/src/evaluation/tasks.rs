//! Measures the four kinds of evaluation task.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use vljepa_data::reader::{LoadedSample, SampleReader};
use vljepa_recipes::schema::{Candidates, Control, Task, TaskKind};

use super::Scores;
use super::metrics::{
    Score, dot, majority, mean_direction, pessimistic_rank, ranked, recall, share,
};
use crate::collectives::{Collectives, Shares};
use crate::evaluation::embed::{Embedder, apply_control};

/// Rows that are decoded before they are embedded, which bounds the pixels in memory.
const DECODE_ROWS: usize = 256;

/// Measures one task on all ranks. The only collective call comes first and also carries errors, so
/// every rank gets the same result or the same error and continues with the next task.
pub(super) fn measure(
    task: &Task,
    embedder: &Embedder<'_>,
    collectives: &Collectives,
    embed_dim: usize,
) -> anyhow::Result<Scores> {
    let scope = Scope { task, embedder, collectives, embed_dim };
    match &task.kind {
        TaskKind::Classification { field, candidates, expect } => {
            scope.classification(field, candidates, expect.as_deref())
        }
        TaskKind::Retrieval => scope.retrieval(),
        TaskKind::QuestionAnswering { question_kind, candidates } => {
            scope.question_answering(question_kind.as_deref(), candidates)
        }
        TaskKind::Triplets => scope.triplets(),
    }
}

struct Scope<'a> {
    task: &'a Task,
    embedder: &'a Embedder<'a>,
    collectives: &'a Collectives,
    embed_dim: usize,
}

/// Predicted embedding and true answer of one row. `None` for a sample that could not be read,
/// which counts as wrong.
type Row = Option<(Vec<f32>, String)>;

impl Scope<'_> {
    fn classification(
        &self,
        field: &str,
        candidates: &Candidates,
        expect: Option<&Path>,
    ) -> anyhow::Result<Scores> {
        let labels = Labels::load(candidates, self.embedder)?;
        let expect: BTreeMap<String, String> =
            expect.map_or_else(|| Ok(BTreeMap::new()), read_json)?;
        let rows = self.rows(|sample| {
            let value = sample.fields.get(field).and_then(serde_json::Value::as_str);
            let value = value.with_context(|| {
                format!("sample {} of {} has no field `{field}`", sample.key, sample.shard)
            })?;
            let truth = expect.get(value).map_or(value, String::as_str);
            Ok(vec![(self.task.query.clone(), truth.to_owned())])
        })?;
        labels.scores(&rows, self.task)
    }

    fn question_answering(
        &self,
        kind: Option<&str>,
        candidates: &Candidates,
    ) -> anyhow::Result<Scores> {
        let rows = self.rows(|sample| {
            let asked = sample.questions.iter();
            let asked = asked.filter(|q| kind.is_none_or(|kind| q.kind == kind));
            Ok(asked.map(|q| (q.question.clone(), q.answer.clone())).collect())
        })?;
        anyhow::ensure!(
            !rows.is_empty(),
            "no sample of {} has a question of the task's kind",
            self.task.shards
        );
        let labels = Labels::load(candidates, self.embedder)?;
        labels.scores(&rows, self.task)
    }

    fn retrieval(&self) -> anyhow::Result<Scores> {
        let rows = self.rows(|sample| {
            let caption = sample.caption.clone().with_context(|| {
                format!("sample {} of {} has no caption", sample.key, sample.shard)
            })?;
            Ok(vec![(self.task.query.clone(), caption)])
        })?;
        let n = rows.len();
        let known: Vec<&(Vec<f32>, String)> = rows.iter().flatten().collect();
        let captions: Vec<&str> = known.iter().map(|(_, caption)| caption.as_str()).collect();
        let texts = self.embedder.texts(&captions)?;
        let mut ranks: Vec<usize> = Vec::with_capacity(n);
        for (i, text) in texts.iter().enumerate() {
            let scores: Vec<f64> = known.iter().map(|(visual, _)| dot(text, visual)).collect();
            let rank = pessimistic_rank(&scores, |j| captions[j] == captions[i]);
            ranks.push(rank.unwrap_or(usize::MAX));
        }
        // A sample that could not be read counts as never found.
        ranks.resize(n, usize::MAX);
        let recalls = [1, 5, 10].map(|k| recall(&ranks, k, n));
        Ok(self.task.metrics().into_iter().zip(recalls).collect())
    }

    fn triplets(&self) -> anyhow::Result<Scores> {
        let mut triplets: Vec<Triplet> = read_json(Path::new(&self.task.shards))?;
        triplets.truncate(self.task.limit.unwrap_or(usize::MAX));
        let texts: Vec<&str> = triplets.iter().flat_map(|t| [&*t.p1, &*t.p2, &*t.n]).collect();
        let embeddings = self.embedder.texts(&texts)?;
        let right = embeddings
            .chunks_exact(3)
            .filter(|e| {
                let positive = dot(&e[0], &e[1]);
                positive > dot(&e[0], &e[2]) && positive > dot(&e[1], &e[2])
            })
            .count();
        let (n, chance) = (triplets.len(), 1.0 / 3.0);
        let score = Score { value: share(right, n), chance, baseline: chance, n };
        Ok(Scores::from([(self.task.name.clone(), score)]))
    }

    /// Embeds this rank's share of the samples and gathers the rows of all ranks. `ask` returns the
    /// queries of a sample, each with its true answer.
    fn rows(
        &self,
        ask: impl Fn(&LoadedSample) -> anyhow::Result<Vec<(String, String)>>,
    ) -> anyhow::Result<Vec<Row>> {
        let mine = self.own_rows(ask).map_err(|error| format!("{error:#}"));
        let mut all = Vec::new();
        for part in self.collectives.all_gather_bytes(&serde_json::to_vec(&mine)?) {
            let part: Result<Vec<Row>, String> = serde_json::from_slice(&part)?;
            all.extend(part.map_err(|error| anyhow::anyhow!(error))?);
        }
        Ok(all)
    }

    fn own_rows(
        &self,
        ask: impl Fn(&LoadedSample) -> anyhow::Result<Vec<(String, String)>>,
    ) -> anyhow::Result<Vec<Row>> {
        let reader = SampleReader::open(&self.task.shards)?;
        let options = self.embedder.load_options(self.task.frames);
        let count = reader.len().min(self.task.limit.unwrap_or(usize::MAX));
        anyhow::ensure!(count > 0, "{} holds no samples", self.task.shards);
        let shares = Shares { global: count, world_size: self.collectives.world_size() };
        let mine: Vec<usize> = shares.rows(self.collectives.rank()).collect();
        let mut rows = Vec::new();
        for chunk in mine.chunks(DECODE_ROWS) {
            let mut samples = Vec::new();
            for &index in chunk {
                let mut sample = match reader.load(index, &options) {
                    Ok(sample) => sample,
                    Err(error) => {
                        tracing::warn!("task {}: {error}; counted as wrong", self.task.name);
                        rows.push(None);
                        continue;
                    }
                };
                apply_control(self.task.control, &mut sample, options.frames);
                samples.push(sample);
            }
            let mut asked = Vec::new();
            for sample in &samples {
                for (query, truth) in ask(sample)? {
                    asked.push((sample, query, truth));
                }
            }
            let inputs: Vec<(&LoadedSample, &str)> =
                asked.iter().map(|(sample, query, _)| (*sample, query.as_str())).collect();
            let embeddings = self.embedder.samples(&inputs)?;
            let asked = asked.into_iter().zip(embeddings);
            rows.extend(asked.map(|((_, _, truth), e)| Some((self.collapse(e), truth))));
        }
        Ok(rows)
    }

    /// Replaces the embedding by a constant if the task is a collapsed-encoder control.
    fn collapse(&self, embedding: Vec<f32>) -> Vec<f32> {
        if self.task.control == Control::Collapsed {
            let mut same = vec![0.0; self.embed_dim];
            same[0] = 1.0;
            return same;
        }
        embedding
    }
}

/// Labels, each with an embedding.
struct Labels {
    names: Vec<String>,
    embeddings: Vec<Vec<f32>>,
}

impl Labels {
    fn load(candidates: &Candidates, embedder: &Embedder<'_>) -> anyhow::Result<Self> {
        let texts = label_texts(candidates)?;
        anyhow::ensure!(texts.len() > 1, "the task needs at least two candidates");
        let mut embeddings = Vec::with_capacity(texts.len());
        for texts in texts.values() {
            embeddings.push(mean_direction(&embedder.texts(texts)?));
        }
        Ok(Self { names: texts.into_keys().collect(), embeddings })
    }

    fn scores(&self, rows: &[Row], task: &Task) -> anyhow::Result<Scores> {
        let n = rows.len();
        let mut truths = Vec::with_capacity(n);
        let (mut top1, mut top5) = (0, 0);
        for (embedding, truth) in rows.iter().flatten() {
            let truth = self.names.iter().position(|name| name == truth).with_context(|| {
                format!("`{truth}` is not among the {} candidates", self.names.len())
            })?;
            truths.push(truth);
            let order = ranked(embedding, &self.embeddings);
            let position = order.iter().position(|&(label, _)| label == truth).unwrap_or(n);
            top1 += usize::from(position < 1);
            top5 += usize::from(position < 5);
        }
        let labels = self.names.len();
        let score = |right, k: usize| Score {
            value: share(right, n),
            chance: share(k, labels),
            baseline: majority(&truths),
            n,
        };
        // `Task::metrics` names top-1, and top-5 if there are more than five labels.
        let values = [score(top1, 1), score(top5, 5)];
        let meaningful = if labels > 5 { 2 } else { 1 };
        Ok(task.metrics().into_iter().zip(values).take(meaningful).collect())
    }
}

/// Reads the labels, each with the texts that represent it.
pub(super) fn label_texts(
    candidates: &Candidates,
) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<String>),
        Map(BTreeMap<String, Vec<String>>),
    }
    let own = |labels: Vec<String>| labels.into_iter().map(|l| (l.clone(), vec![l])).collect();
    match candidates {
        Candidates::Labels(labels) => Ok(own(labels.clone())),
        Candidates::File(path) => match read_json(path)? {
            Form::List(labels) => Ok(own(labels)),
            Form::Map(map) => Ok(map),
        },
    }
}

#[derive(Debug, Deserialize)]
struct Triplet {
    #[serde(alias = "caption")]
    p1: String,
    #[serde(alias = "caption2")]
    p2: String,
    #[serde(alias = "negative_caption")]
    n: String,
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} does not parse", path.display()))
}
