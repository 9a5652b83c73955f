//! Measures the kinds of evaluation task.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::{DecodingCurves, LabelCount};
use vljepa_recipes::schema::{Control, SelectiveDecoding, Task, TaskKind};

use super::Scores;
use super::actions;
use super::captioning;
use super::chunks::{Answered, Measured, Request, Shared};
use super::labels::{EMBEDDINGS, Labels, unit_vector};
use super::metrics::{Score, cosine, majority, recall, share};
use super::retrieval::Pool;
use super::selective;
use super::truth::{self, Truth};
use crate::collectives::Shares;

/// Measures one task on all ranks. Each step that may fail on one rank ends in a collective call
/// that also carries errors, so every rank gets the same result or the same error and continues
/// with the next task.
pub(super) fn measure(
    task: &Task,
    shared: &Shared<'_>,
    embed_dim: usize,
) -> anyhow::Result<TaskResult> {
    let scope = Scope { task, shared, embed_dim };
    let (mut curves, mut labels) = (None, BTreeMap::new());
    let (scores, unreadable, hash) = match &task.kind {
        TaskKind::Classification { .. } | TaskKind::QuestionAnswering { .. } => {
            let (outcome, of_labels) = scope.labels()?;
            labels = of_labels;
            outcome
        }
        TaskKind::Retrieval => scope.retrieval()?,
        TaskKind::Triplets => scope.triplets()?,
        TaskKind::WorldPrediction => scope.world_prediction()?,
        TaskKind::Captioning { .. } => scope.captioning()?,
        TaskKind::SelectiveDecoding(keys) => {
            let (outcome, of_task) = scope.selective(keys)?;
            curves = Some(of_task);
            outcome
        }
    };
    let scores = task.metrics().into_iter().zip(scores).map(|(name, mut score)| {
        score.unreadable = unreadable.len();
        score.measured = hash.to_hex()[..16].to_owned();
        (name, score)
    });
    Ok(TaskResult { scores: scores.collect(), unreadable, labels, curves })
}

/// What was measured of one task.
#[derive(Debug)]
pub(super) struct TaskResult {
    pub(super) scores: Scores,
    /// Samples that cannot be read, with the reasons.
    pub(super) unreadable: Vec<String>,
    /// Right answers by label. Empty for a control, and for a task without labels.
    pub(super) labels: BTreeMap<String, LabelCount>,
    /// Curves of selective decoding.
    pub(super) curves: Option<DecodingCurves>,
}

/// Scores in the order of [`Task::metrics`], samples that cannot be read, and the hash of what was
/// measured.
type Outcome = (Vec<Score>, Vec<String>, blake3::Hash);

struct Scope<'a> {
    task: &'a Task,
    shared: &'a Shared<'a>,
    embed_dim: usize,
}

impl Scope<'_> {
    fn labels(&self) -> anyhow::Result<(Outcome, BTreeMap<String, LabelCount>)> {
        let embedder = self.shared.embedder;
        let truth = self.shared.agreed(Truth::load(self.task))?;
        let labels = Labels::of(truth.labels.clone(), embedder, |texts| self.shared.texts(texts))?;
        let request = Request {
            identity: labels.request(),
            make: &|asked| labels.rows(embedder, asked),
            constant: self.is_collapsed().then(|| labels.constant()),
        };
        let place = |answered: Vec<Answered<Vec<f32>>>| {
            Ok(answered.par_iter().map(|answered| placed(&labels, answered)).collect())
        };
        let measured = self.shared.ask(self.task, &truth, &request, place)?;
        let Measured::<Vec<Placed>> { parts, unreadable, hash } = measured;
        let rows = parts.concat();
        anyhow::ensure!(!rows.is_empty(), truth.no_question());
        let scores = label_scores(&rows, labels.names.len(), self.task.parts.len());
        let counted = match self.task.control {
            Control::None => counts(&rows, &labels.names),
            Control::SingleFrame | Control::Reversed | Control::Collapsed => BTreeMap::new(),
        };
        Ok(((scores, unreadable, hash), counted))
    }

    /// Predicted embeddings of all samples, in chunks.
    fn embeddings(&self) -> anyhow::Result<Measured<Vec<Answered<Vec<f32>>>>> {
        let truth = self.shared.agreed(Truth::load(self.task))?;
        let request = Request {
            identity: EMBEDDINGS.to_owned(),
            make: &|asked| self.shared.embedder.samples(asked),
            constant: self.is_collapsed().then(|| unit_vector(self.embed_dim)),
        };
        self.shared.ask(self.task, &truth, &request, Ok)
    }

    fn retrieval(&self) -> anyhow::Result<Outcome> {
        let Measured { parts, unreadable, hash } = self.embeddings()?;
        let rows: Vec<Answered<Vec<f32>>> = parts.into_iter().flatten().collect();
        let (mut visuals, mut captions, mut lost) = (Vec::new(), Vec::new(), 0);
        for Answered { row, truth, .. } in rows {
            // Captions that cannot be read are at least one.
            let of_sample: Vec<String> = serde_json::from_str(&truth).unwrap_or_default();
            match row {
                Some(visual) => {
                    visuals.push(visual);
                    captions.push(of_sample);
                }
                None => lost += of_sample.len().max(1),
            }
        }
        // Samples with the same caption are all right for it.
        let mut asking: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (sample, captions) in captions.iter().enumerate() {
            for caption in captions {
                asking.entry(caption).or_default().push(sample);
            }
        }
        let (texts, asking): (Vec<&str>, Vec<Vec<usize>>) = asking.into_iter().unzip();
        // A sample may have a caption twice.
        let mut right = asking.clone();
        right.iter_mut().for_each(Vec::dedup);
        let embedded = self.shared.texts(&texts)?;
        let collectives = self.shared.collectives;
        let shares = Shares { global: texts.len(), world_size: collectives.world_size() };
        let own = shares.rows(collectives.rank());
        let ranks = Pool::new(&visuals).ranks(&embedded[own.clone()], &right[own]);
        let ranks = self.shared.gathered(&ranks.map_err(anyhow::Error::from))?.concat();
        // Each sample asks with each of its captions. One that cannot be read counts as never
        // found.
        let asked = asking.iter().zip(ranks).flat_map(|(samples, rank)| vec![rank; samples.len()]);
        let asked: Vec<Option<usize>> = asked.chain(vec![None; lost]).collect();
        let pool = visuals.len() + unreadable.len();
        Ok((Vec::from([1, 5, 10].map(|k| recall(&asked, k, pool))), unreadable, hash))
    }

    fn triplets(&self) -> anyhow::Result<Outcome> {
        let triplets = self.shared.agreed(truth::triplets(self.task))?;
        let texts: Vec<&str> = triplets.iter().flat_map(|t| [&*t.p1, &*t.p2, &*t.n]).collect();
        let embeddings = self.shared.texts(&texts)?;
        let right = embeddings.chunks_exact(3).map(|e| {
            let positive = cosine(&e[0], &e[1]);
            positive > cosine(&e[0], &e[2]) && positive > cosine(&e[1], &e[2])
        });
        let parts = triplets.iter().map(|triplet| triplet.part(self.task));
        let rows = right.zip(parts).map(|(right, part)| anyhow::Ok((right, part?)));
        let rows: Vec<(bool, Option<usize>)> = rows.collect::<Result<_, _>>()?;
        let mut hash = blake3::Hasher::new();
        hash.update(self.shared.weights.as_bytes()).update(&serde_json::to_vec(&texts)?);
        let chance = 1.0 / 3.0;
        let score = |part: Option<usize>| {
            let rows = rows.iter().filter(|row| part.is_none() || row.1 == part);
            let rows: Vec<bool> = rows.map(|row| row.0).collect();
            let right = rows.iter().filter(|&&right| right).count();
            Score::of_share(right, rows.len(), chance, chance)
        };
        let mut scores = vec![score(None)];
        scores.extend(of_parts(self.task.parts.len(), |part| score(Some(part))));
        Ok((scores, Vec::new(), hash.finalize()))
    }

    fn world_prediction(&self) -> anyhow::Result<Outcome> {
        let Measured { parts, unreadable, hash } = self.embeddings()?;
        let rows: Vec<Answered<Vec<f32>>> = parts.into_iter().flatten().collect();
        Ok((vec![actions::score(&rows)?], unreadable, hash))
    }

    fn captioning(&self) -> anyhow::Result<Outcome> {
        let embedder = self.shared.embedder;
        let truth = self.shared.agreed(Truth::load(self.task))?;
        let constant = match self.is_collapsed() && embedder.embeds() {
            true => self.shared.agreed(embedder.captions(&[unit_vector(self.embed_dim)]))?.pop(),
            false => None,
        };
        let request = Request {
            identity: "texts".to_owned(),
            make: &|asked| embedder.answers(asked),
            constant,
        };
        let Measured { parts, unreadable, hash } =
            self.shared.ask(self.task, &truth, &request, Ok)?;
        let written: Vec<Answered<String>> = parts.into_iter().flatten().collect();
        Ok((captioning::scores(&written, &self.task.kind)?, unreadable, hash))
    }

    fn selective(&self, keys: &SelectiveDecoding) -> anyhow::Result<(Outcome, DecodingCurves)> {
        let constant = self.is_collapsed().then(|| unit_vector(self.embed_dim));
        let (measured, scores, curves) =
            selective::task::measure(self.task, self.shared, keys, constant)?;
        Ok(((scores, measured.unreadable, measured.hash), curves))
    }

    /// Whether all samples get the same embedding, so that the model is not asked.
    fn is_collapsed(&self) -> bool {
        self.task.control == Control::Collapsed
    }
}

/// A question about a sample, and where the model places its answer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Placed {
    /// Number of the true label. An answer of a set that is not among its candidates has none and
    /// is never right.
    truth: Option<usize>,
    /// Number of labels that the model prefers to the true one. `None` if it is never right.
    preferred: Option<usize>,
    part: Option<usize>,
}

fn placed(labels: &Labels, answered: &Answered<Vec<f32>>) -> Placed {
    let Answered { row, truth, part } = answered;
    let truth = labels.names.iter().position(|name| name == truth);
    let preferred = row
        .as_ref()
        .zip(truth)
        .and_then(|(row, truth)| labels.order(row).iter().position(|&(label, _)| label == truth));
    Placed { truth, preferred, part: *part }
}

/// Top-1, and top-5 if there are more than five of `count` labels; with `parts`, top-1, its mean
/// over the parts, and that of each part.
fn label_scores(rows: &[Placed], count: usize, parts: usize) -> Vec<Score> {
    let score = |rows: &[&Placed], k: usize| {
        let right = rows.iter().filter(|row| row.preferred.is_some_and(|n| n < k)).count();
        let truths: Vec<Option<usize>> = rows.iter().map(|row| row.truth).collect();
        Score::of_share(right, rows.len(), share(k, count), majority(&truths))
    };
    let all: Vec<&Placed> = rows.iter().collect();
    let mut scores = vec![score(&all, 1)];
    if parts == 0 && count > 5 {
        scores.push(score(&all, 5));
    }
    scores.extend(of_parts(parts, |part| {
        let rows = rows.iter().filter(|row| row.part == Some(part)).collect::<Vec<_>>();
        score(&rows, 1)
    }));
    scores
}

/// Right answers by label. A label that is no sample's true label has no entry.
fn counts(rows: &[Placed], names: &[String]) -> BTreeMap<String, LabelCount> {
    let mut counts: BTreeMap<String, LabelCount> = BTreeMap::new();
    for (row, truth) in rows.iter().filter_map(|row| Some((row, row.truth?))) {
        let count = counts.entry(names[truth].clone()).or_default();
        count.n += 1;
        count.right += u64::from(row.preferred == Some(0));
    }
    counts
}

/// Mean of the scores of all parts, and the scores themselves. Empty without parts.
fn of_parts(parts: usize, score: impl Fn(usize) -> Score) -> Vec<Score> {
    let scores: Vec<Score> = (0..parts).map(score).collect();
    let mean = (parts > 0).then(|| Score::mean(&scores));
    mean.into_iter().chain(scores).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of answers about 600 samples of each of six labels, of which `row` makes the
    /// embedding.
    fn scores(row: impl Fn(usize) -> Option<Vec<f32>>) -> Vec<Score> {
        let labels = Labels::orthogonal(6);
        let answered =
            |i: usize| Answered { row: row(i % 6), truth: (i % 6).to_string(), part: None };
        let rows: Vec<_> = (0..600).map(|i| placed(&labels, &answered(i))).collect();
        label_scores(&rows, 6, 0)
    }

    #[test]
    fn copies_of_the_truth_score_everything_and_collapsed_embeddings_score_chance() {
        let labels = Labels::orthogonal(6);
        let unit = |i: usize| (0..6).map(|j| f32::from(u8::from(i == j))).collect::<Vec<_>>();
        let values = |scores: &[Score]| scores.iter().map(|s| s.value).collect::<Vec<_>>();
        assert_eq!(values(&scores(|truth| Some(unit(truth)))), [1.0, 1.0]);
        let chance: Vec<f64> = scores(|_| None).iter().map(|score| score.chance).collect();
        for collapsed in [labels.constant(), vec![1.0; 6], vec![0.0; 6]] {
            assert_eq!(values(&scores(|_| Some(collapsed.clone()))), chance);
        }
        let rows: Vec<_> = (0..12)
            .map(|i| {
                let row = (i != 7).then(|| unit(if i == 3 { 2 } else { i % 6 }));
                placed(&labels, &Answered { row, truth: (i % 6).to_string(), part: None })
            })
            .collect();
        let counted: Vec<_> = counts(&rows, &labels.names)
            .into_values()
            .map(|count| (count.right, count.n))
            .collect();
        // Sample 3 of label 3 is called 2, and sample 7 of label 1 cannot be read.
        assert_eq!(counted, [(2, 2), (1, 2), (2, 2), (1, 2), (2, 2), (2, 2)]);
        // What cannot be read is wrong, and counts.
        let none = scores(|truth| (truth != 2).then(|| unit(truth)));
        assert_eq!((none[0].value, none[0].n), (5.0 / 6.0, 600));
    }

    #[test]
    fn parts_have_scores_of_their_own_and_count_the_same_in_the_mean() {
        let labels = Labels::orthogonal(6);
        let unit = |i: usize| (0..6).map(|j| f32::from(u8::from(i == j))).collect::<Vec<_>>();
        // Part 0: 30 questions, all right. Part 1: 10, of which 5 are wrong and one cannot be read.
        let answered = |i: usize| {
            let (part, said) =
                if i < 30 { (0, i % 6) } else { (1, if i < 35 { 5 - i % 6 } else { i % 6 }) };
            let row = (i != 39).then(|| unit(said));
            placed(&labels, &Answered { row, truth: (i % 6).to_string(), part: Some(part) })
        };
        let rows: Vec<Placed> = (0..40).map(answered).collect();
        let scores = label_scores(&rows, 6, 2);
        let values: Vec<(f64, usize)> = scores.iter().map(|s| (s.value, s.n)).collect();
        assert_eq!(values, [(0.85, 40), (0.7, 40), (1.0, 30), (0.4, 10)]);
        let [low, high] = scores[1].interval.unwrap();
        assert!(low < 0.7 && 0.7 < high && high - low > 0.2, "{low} to {high}");
    }
}
