//! Texts to choose from, and how a model compares them with a sample.

use std::collections::BTreeMap;

use vljepa_data::reader::LoadedSample;

use super::embed::Embedder;
use super::metrics::{mean_direction, ranked};

/// Labels of a task, or candidate answers.
#[derive(Debug)]
pub(crate) struct Labels {
    /// Names of the labels.
    pub(crate) names: Vec<String>,
    texts: Texts,
}

/// The texts of each label, as the model reads them.
#[derive(Debug)]
enum Texts {
    /// Mean direction of the embeddings of a label's texts.
    Embedded(Vec<Vec<f32>>),
    /// Tokens of the texts of each label, for a model that predicts tokens.
    Tokens(Vec<Vec<Vec<i32>>>),
}

impl Labels {
    /// Reads the texts of labels, which `embed` embeds if the model embeds texts.
    ///
    /// # Errors
    /// Fails if a text cannot be tokenised or the model rejects the shapes.
    pub(crate) fn of(
        labels: BTreeMap<String, Vec<String>>,
        embedder: &Embedder<'_>,
        embed: impl Fn(&[String]) -> anyhow::Result<Vec<Vec<f32>>>,
    ) -> anyhow::Result<Self> {
        let (names, of_labels): (_, Vec<_>) = labels.into_iter().unzip();
        let texts = if embedder.embeds() {
            let mut embedded = embed(&of_labels.concat())?.into_iter();
            let mean = |texts: &Vec<String>| {
                mean_direction(&embedded.by_ref().take(texts.len()).collect::<Vec<_>>())
            };
            Texts::Embedded(of_labels.iter().map(mean).collect())
        } else {
            let tokens = |texts: &Vec<String>| embedder.candidates(texts);
            Texts::Tokens(of_labels.iter().map(tokens).collect::<anyhow::Result<_>>()?)
        };
        Ok(Self { names, texts })
    }

    /// What the model is asked for: embeddings, or values of these candidates.
    pub(super) fn request(&self) -> String {
        match &self.texts {
            Texts::Embedded(_) => EMBEDDINGS.to_owned(),
            Texts::Tokens(tokens) => format!("values of {tokens:?}"),
        }
    }

    /// A row that says the same of every sample.
    pub(super) fn constant(&self) -> Vec<f32> {
        match &self.texts {
            Texts::Embedded(embeddings) => unit_vector(embeddings.first().map_or(0, Vec::len)),
            Texts::Tokens(labels) => unit_vector(labels.len()),
        }
    }

    /// What is compared with the labels, for each sample with its query: its predicted embedding,
    /// or, of a model that predicts tokens, the value of each label. That is the largest mean of
    /// log p over the tokens of its texts: the negative logarithm of the lowest perplexity (paper
    /// §4.4).
    ///
    /// # Errors
    /// Fails if a query cannot be tokenised or the model rejects the shapes.
    pub(crate) fn rows(
        &self,
        embedder: &Embedder<'_>,
        asked: &[(&LoadedSample, &str)],
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let labels = match &self.texts {
            Texts::Embedded(_) => return embedder.samples(asked),
            Texts::Tokens(labels) => labels,
        };
        let all = labels.concat();
        let best = |losses: Vec<f32>| {
            let mut losses = losses.into_iter();
            let mut of_label = |texts: &Vec<Vec<i32>>| {
                let losses = losses.by_ref().take(texts.len());
                -losses.fold(f32::INFINITY, f32::min)
            };
            labels.iter().map(&mut of_label).collect()
        };
        Ok(embedder.mean_losses(asked, &all)?.into_iter().map(best).collect())
    }

    /// Index and value of all labels for one of [`Self::rows`], best first. Ties keep their order.
    pub(crate) fn order(&self, row: &[f32]) -> Vec<(usize, f64)> {
        match &self.texts {
            Texts::Embedded(embeddings) => ranked(row, embeddings),
            Texts::Tokens(_) => {
                let values = row.iter().map(|value| f64::from(*value));
                let mut order: Vec<(usize, f64)> = values.enumerate().collect();
                order.sort_by(|a, b| b.1.total_cmp(&a.1));
                order
            }
        }
    }
}

/// Request for the embeddings of samples.
pub(super) const EMBEDDINGS: &str = "embeddings";

/// The first unit vector.
pub(super) fn unit_vector(width: usize) -> Vec<f32> {
    let mut vector = vec![0.0; width];
    vector.iter_mut().take(1).for_each(|x| *x = 1.0);
    vector
}

#[cfg(test)]
impl Labels {
    /// Labels whose embeddings are unit vectors, for tests without a model.
    pub(super) fn orthogonal(count: usize) -> Self {
        let embedding = |i: usize| (0..count).map(|j| f32::from(u8::from(i == j))).collect();
        let names = (0..count).map(|i| i.to_string()).collect();
        Self { names, texts: Texts::Embedded((0..count).map(embedding).collect()) }
    }
}
