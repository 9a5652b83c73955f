//! Measures the kinds of evaluation task.

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vljepa_data::reader::LoadedSample;
use vljepa_recipes::schema::{Control, Task, TaskKind};

use super::Scores;
use super::metrics::{Score, cosine, majority, names_all, pessimistic_rank, recall, share};
use crate::collectives::{Collectives, Shares};
use crate::evaluation::embed::{Embedder, apply_control};
use crate::evaluation::labels::Labels;
use crate::evaluation::truth::{self, Truth};

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
        TaskKind::Classification { .. } | TaskKind::QuestionAnswering { .. } => scope.labels(),
        TaskKind::Retrieval => scope.retrieval(),
        TaskKind::Triplets => scope.triplets(),
        TaskKind::Captioning { .. } => scope.captioning(),
    }
}

struct Scope<'a> {
    task: &'a Task,
    embedder: &'a Embedder<'a>,
    collectives: &'a Collectives,
    embed_dim: usize,
}

/// Predicted embedding, or values of the labels, and true answer of one row. `None` for a sample
/// that could not be read, which counts as wrong.
type Row = Option<(Vec<f32>, String)>;

impl Scope<'_> {
    fn labels(&self) -> anyhow::Result<Scores> {
        let mut labels = None;
        let (truth, rows) = self.gathered(|truth| {
            let of_task = labels.insert(Labels::of(truth.labels.clone(), self.embedder)?);
            self.own_rows(truth, |asked| Ok(self.collapse(of_task.rows(self.embedder, asked)?)))
        })?;
        anyhow::ensure!(!rows.is_empty(), truth.no_question());
        label_scores(&labels.context("the task has no labels")?, &rows, self.task)
    }

    fn retrieval(&self) -> anyhow::Result<Scores> {
        let (_, rows) = self.gathered(|truth| {
            self.own_rows(truth, |asked| Ok(self.collapse(self.embedder.samples(asked)?)))
        })?;
        let n = rows.len();
        let known: Vec<&(Vec<f32>, String)> = rows.iter().flatten().collect();
        let captions: Vec<&str> = known.iter().map(|(_, caption)| caption.as_str()).collect();
        let texts = self.embedder.texts(&captions)?;
        let mut ranks: Vec<usize> = Vec::with_capacity(n);
        for (i, text) in texts.iter().enumerate() {
            let scores: Vec<f64> = known.iter().map(|(visual, _)| cosine(text, visual)).collect();
            let rank = pessimistic_rank(&scores, |j| captions[j] == captions[i]);
            ranks.push(rank.unwrap_or(usize::MAX));
        }
        // A sample that could not be read counts as never found.
        ranks.resize(n, usize::MAX);
        let recalls = [1, 5, 10].map(|k| recall(&ranks, k, n));
        Ok(self.task.metrics().into_iter().zip(recalls).collect())
    }

    fn triplets(&self) -> anyhow::Result<Scores> {
        let triplets = truth::triplets(self.task)?;
        let texts: Vec<&str> = triplets.iter().flat_map(|t| [&*t.p1, &*t.p2, &*t.n]).collect();
        let embeddings = self.embedder.texts(&texts)?;
        let right = embeddings
            .chunks_exact(3)
            .filter(|e| {
                let positive = cosine(&e[0], &e[1]);
                positive > cosine(&e[0], &e[2]) && positive > cosine(&e[1], &e[2])
            })
            .count();
        let (n, chance) = (triplets.len(), 1.0 / 3.0);
        let score = Score { value: share(right, n), chance, baseline: chance, n };
        Ok(Scores::from([(self.task.name.clone(), score)]))
    }

    fn captioning(&self) -> anyhow::Result<Scores> {
        let (_, written) = self.gathered(|truth| {
            self.own_rows(truth, |asked| {
                if !self.embedder.embeds() {
                    return self.embedder.answers(asked);
                }
                self.embedder.captions(&self.collapse(self.embedder.samples(asked)?))
            })
        })?;
        let (mut right, mut named) = (0, Vec::new());
        for (caption, truth) in written.iter().flatten() {
            let names: Vec<String> = serde_json::from_str(truth)?;
            right += usize::from(names_all(caption, &names));
            named.push(truth);
        }
        // The most frequent combination of names is what a constant caption can get right.
        let (n, baseline) = (written.len(), majority(&named));
        let score = Score { value: share(right, n), chance: 0.0, baseline, n };
        Ok(self.task.metrics().into_iter().map(|name| (name, score)).collect())
    }

    /// Gathers what every rank makes of its share of the samples.
    fn gathered<T: Serialize + DeserializeOwned>(
        &self,
        own: impl FnOnce(&Truth<'_>) -> anyhow::Result<Vec<T>>,
    ) -> anyhow::Result<(Truth<'_>, Vec<T>)> {
        let truth = Truth::load(self.task);
        let mine = match &truth {
            Ok(truth) => own(truth).map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        let mut all = Vec::new();
        for part in self.collectives.all_gather_bytes(&serde_json::to_vec(&mine)?) {
            let part: Result<Vec<T>, String> = serde_json::from_slice(&part)?;
            all.extend(part.map_err(|error| anyhow::anyhow!(error))?);
        }
        Ok((truth?, all))
    }

    /// What `make` makes of this rank's share of the samples with their queries, and the true
    /// answers.
    fn own_rows<T>(
        &self,
        truth: &Truth<'_>,
        make: impl Fn(&[(&LoadedSample, &str)]) -> anyhow::Result<Vec<T>>,
    ) -> anyhow::Result<Vec<Option<(T, String)>>> {
        let reader = self.embedder.reader(&self.task.shards, self.task.catalogue.as_deref())?;
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
                let of_sample = truth
                    .of(&sample.texts)
                    .with_context(|| format!("sample `{}` of {}", sample.key, sample.shard))?;
                asked.extend(of_sample.into_iter().map(|(query, truth)| (sample, query, truth)));
            }
            let inputs: Vec<(&LoadedSample, &str)> =
                asked.iter().map(|(sample, query, _)| (*sample, query.as_str())).collect();
            let asked = asked.iter().map(|(_, _, truth)| truth.clone());
            rows.extend(make(&inputs)?.into_iter().zip(asked).map(Some));
        }
        Ok(rows)
    }

    /// Replaces embeddings by a constant if the task is a collapsed-encoder control.
    fn collapse(&self, mut embeddings: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        if self.task.control == Control::Collapsed {
            let mut same = vec![0.0; self.embed_dim];
            same[0] = 1.0;
            embeddings.fill(same);
        }
        embeddings
    }
}

/// Scores of rows that are compared with labels.
fn label_scores(labels: &Labels, rows: &[Row], task: &Task) -> anyhow::Result<Scores> {
    let n = rows.len();
    let mut truths = Vec::with_capacity(n);
    let (mut top1, mut top5) = (0, 0);
    for (embedding, truth) in rows.iter().flatten() {
        let truth = labels.names.iter().position(|name| name == truth).with_context(|| {
            format!("`{truth}` is not among the {} candidates", labels.names.len())
        })?;
        truths.push(truth);
        let order = labels.order(embedding);
        let position = order.iter().position(|&(label, _)| label == truth).unwrap_or(n);
        top1 += usize::from(position < 1);
        top5 += usize::from(position < 5);
    }
    let count = labels.names.len();
    let score = |right, k: usize| Score {
        value: share(right, n),
        chance: share(k, count),
        baseline: majority(&truths),
        n,
    };
    // `Task::metrics` names top-1, and top-5 if there are more than five labels.
    let values = [score(top1, 1), score(top5, 5)];
    let meaningful = if count > 5 { 2 } else { 1 };
    Ok(task.metrics().into_iter().zip(values).take(meaningful).collect())
}
