//! Measures the kinds of evaluation task.

use std::collections::BTreeMap;

use rayon::prelude::*;
use vljepa_recipes::schema::{Control, Task, TaskKind};

use super::Scores;
use super::captioning;
use super::chunks::{Answered, Measured, Request, Shared};
use super::labels::{EMBEDDINGS, Labels, unit_vector};
use super::metrics::{Score, cosine, majority, recall, share};
use super::retrieval::Pool;
use super::truth::{self, Truth};
use crate::collectives::Shares;

/// Measures one task on all ranks. Each step that may fail on one rank ends in a collective call
/// that also carries errors, so every rank gets the same result or the same error and continues
/// with the next task. Also returns the samples that cannot be read, with the reasons.
pub(super) fn measure(
    task: &Task,
    shared: &Shared<'_>,
    embed_dim: usize,
) -> anyhow::Result<(Scores, Vec<String>)> {
    let scope = Scope { task, shared, embed_dim };
    let (scores, unreadable, hash) = match &task.kind {
        TaskKind::Classification { .. } | TaskKind::QuestionAnswering { .. } => scope.labels()?,
        TaskKind::Retrieval => scope.retrieval()?,
        TaskKind::Triplets => scope.triplets()?,
        TaskKind::Captioning { .. } => scope.captioning()?,
    };
    let scores = task.metrics().into_iter().zip(scores).map(|(name, mut score)| {
        score.unreadable = unreadable.len();
        score.measured = hash.to_hex()[..16].to_owned();
        (name, score)
    });
    Ok((scores.collect(), unreadable))
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
    fn labels(&self) -> anyhow::Result<Outcome> {
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
        let Measured::<Vec<Option<Placed>>> { parts, unreadable, hash } = measured;
        let rows = parts.concat();
        anyhow::ensure!(!rows.is_empty(), truth.no_question());
        Ok((label_scores(&rows, labels.names.len()), unreadable, hash))
    }

    fn retrieval(&self) -> anyhow::Result<Outcome> {
        let truth = self.shared.agreed(Truth::load(self.task))?;
        let request = Request {
            identity: EMBEDDINGS.to_owned(),
            make: &|asked| self.shared.embedder.samples(asked),
            constant: self.is_collapsed().then(|| unit_vector(self.embed_dim)),
        };
        let Measured { parts, unreadable, hash } =
            self.shared.ask(self.task, &truth, &request, Ok)?;
        let rows: Vec<Answered<Vec<f32>>> = parts.into_iter().flatten().collect();
        let n = rows.len();
        let (mut visuals, mut captions) = (Vec::new(), Vec::new());
        for Answered { row, truth } in rows {
            if let Some(visual) = row {
                visuals.push(visual);
                captions.push(truth);
            }
        }
        // Samples with the same caption are all right for it.
        let mut right: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (sample, caption) in captions.iter().enumerate() {
            right.entry(caption).or_default().push(sample);
        }
        let (texts, right): (Vec<&str>, Vec<Vec<usize>>) = right.into_iter().unzip();
        let embedded = self.shared.texts(&texts)?;
        let collectives = self.shared.collectives;
        let shares = Shares { global: texts.len(), world_size: collectives.world_size() };
        let own = shares.rows(collectives.rank());
        let ranks = Pool::new(&visuals).ranks(&embedded[own.clone()], &right[own]);
        let ranks = self.shared.gathered(&ranks.map_err(anyhow::Error::from))?.concat();
        // Each sample asks with its caption. One that cannot be read counts as never found.
        let mut of_samples = vec![None; n];
        for (samples, rank) in right.iter().zip(ranks) {
            samples.iter().for_each(|&sample| of_samples[sample] = rank);
        }
        Ok((Vec::from([1, 5, 10].map(|k| recall(&of_samples, k, n))), unreadable, hash))
    }

    fn triplets(&self) -> anyhow::Result<Outcome> {
        let triplets = self.shared.agreed(truth::triplets(self.task))?;
        let texts: Vec<&str> = triplets.iter().flat_map(|t| [&*t.p1, &*t.p2, &*t.n]).collect();
        let embeddings = self.shared.texts(&texts)?;
        let right = embeddings
            .chunks_exact(3)
            .filter(|e| {
                let positive = cosine(&e[0], &e[1]);
                positive > cosine(&e[0], &e[2]) && positive > cosine(&e[1], &e[2])
            })
            .count();
        let mut hash = blake3::Hasher::new();
        hash.update(self.shared.weights.as_bytes()).update(&serde_json::to_vec(&texts)?);
        let chance = 1.0 / 3.0;
        let score = Score::of_share(right, triplets.len(), chance, chance);
        Ok((vec![score], Vec::new(), hash.finalize()))
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

    /// Whether all samples get the same embedding, so that the model is not asked.
    fn is_collapsed(&self) -> bool {
        self.task.control == Control::Collapsed
    }
}

/// Number of the true label, and how many labels the model prefers to it. An answer of a set that is
/// not among its candidates has no number and is never right.
type Placed = (Option<usize>, usize);

fn placed(labels: &Labels, answered: &Answered<Vec<f32>>) -> Option<Placed> {
    let Answered { row: Some(row), truth } = answered else { return None };
    let truth = labels.names.iter().position(|name| name == truth);
    let order = labels.order(row);
    let preferred = order.iter().position(|&(label, _)| Some(label) == truth);
    Some((truth, preferred.unwrap_or(usize::MAX)))
}

/// Top-1, and top-5 if there are more than five of `count` labels.
fn label_scores(rows: &[Option<Placed>], count: usize) -> Vec<Score> {
    let truths: Vec<Option<usize>> = rows.iter().flatten().map(|&(truth, _)| truth).collect();
    let baseline = majority(&truths);
    let score = |k: usize| {
        let right = rows.iter().flatten().filter(|&&(_, preferred)| preferred < k).count();
        Score::of_share(right, rows.len(), share(k, count), baseline)
    };
    let meaningful = if count > 5 { 2 } else { 1 };
    [1, 5].into_iter().take(meaningful).map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of answers about 600 samples of each of six labels, of which `row` makes the
    /// embedding.
    fn scores(row: impl Fn(usize) -> Option<Vec<f32>>) -> Vec<Score> {
        let labels = Labels::orthogonal(6);
        let answered = |i: usize| Answered { row: row(i % 6), truth: (i % 6).to_string() };
        let rows: Vec<_> = (0..600).map(|i| placed(&labels, &answered(i))).collect();
        label_scores(&rows, 6)
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
        // What cannot be read is wrong, and counts.
        let none = scores(|truth| (truth != 2).then(|| unit(truth)));
        assert_eq!((none[0].value, none[0].n), (5.0 / 6.0, 600));
    }
}
