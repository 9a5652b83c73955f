//! What a task asks about its samples, and what the model gives for them.
//!
//! Samples and texts are divided into chunks, which ranks take in turn. One rank computes a chunk
//! as a whole, and results are joined in the order of the chunks, so scores have the same bits for
//! any number of ranks.

mod lost;
pub(super) mod videos;

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Context;
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vljepa_data::reader::{LoadOptions, LoadedSample, SampleReader};
use vljepa_recipes::schema::{Control, Task};

use self::lost::Lost;
use super::embed::{Embedder, ROWS, apply_control};
use super::progress::Progress;
use super::store::Store;
use super::truth::{Question, Truth};
use crate::collectives::Collectives;

/// Samples or texts of a chunk: few enough that all ranks have work, and that a kill costs little.
const CHUNK: usize = 256;

/// What the tasks of one evaluation share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) embedder: &'a Embedder<'a>,
    pub(super) collectives: &'a Collectives,
    pub(super) store: Store,
    /// Hash of the weights and of the keys of the recipe that determine what they compute.
    pub(super) weights: blake3::Hash,
}

/// Request to the model about each sample and question.
pub(super) struct Request<'a, R> {
    /// What is asked for, beside samples and queries.
    pub(super) identity: String,
    /// Computes one result per row.
    pub(super) make: &'a Make<'a, R>,
    /// Result for all rows, without the model.
    pub(super) constant: Option<R>,
}

/// Function from samples with their queries to one result each.
type Make<'a, R> = dyn Fn(&[(&LoadedSample, &str)]) -> anyhow::Result<Vec<R>> + 'a;

/// Question about a sample with its true answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answered<R> {
    /// What the model gave. `None` if the sample cannot be read, which counts as wrong.
    pub(super) row: Option<R>,
    pub(super) truth: String,
    /// Number of the part of the task. `None` without parts, or if it is not known.
    pub(super) part: Option<usize>,
}

/// Results of all chunks of a task.
#[derive(Debug)]
pub(super) struct Measured<T> {
    /// Results in the order of the chunks.
    pub(super) parts: Vec<T>,
    /// Name of each sample that cannot be read, with the reason.
    pub(super) unreadable: Vec<String>,
    /// Hash of samples, queries, true answers and weights.
    pub(super) hash: blake3::Hash,
}

/// What a task asks about one sample.
struct Asked {
    questions: Vec<Question>,
    /// Reason why the texts of the sample cannot be read.
    lost: Option<String>,
}

/// What a rank makes of one chunk.
#[derive(Serialize, Deserialize)]
struct Part<T> {
    value: T,
    unreadable: Vec<String>,
    /// Hash of the questions with their answers.
    questions: [u8; blake3::OUT_LEN],
}

/// For each sample of a chunk the results of its rows, or the reason why it cannot be read.
type Rows<R> = Vec<Result<Vec<R>, String>>;

impl Shared<'_> {
    /// Asks the model about all samples of a task, and returns what `each` makes of each chunk.
    ///
    /// # Errors
    /// Fails on all ranks if a sample lacks what the task needs, or the model or `each` fails on
    /// one of them.
    pub(super) fn ask<R, T>(
        &self,
        task: &Task,
        truth: &Truth<'_>,
        request: &Request<'_, R>,
        each: impl Fn(Vec<Answered<R>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Measured<T>>
    where
        R: Clone + Send + Serialize + DeserializeOwned,
        T: Serialize + DeserializeOwned,
    {
        let scope = self.scope(task, truth)?;
        let parts = self.in_turn(scope.own(request, each))?;
        scope.measured(parts, &request.identity)
    }

    /// Opens the samples of a task on all ranks.
    fn scope<'s>(&'s self, task: &'s Task, truth: &'s Truth<'s>) -> anyhow::Result<Scope<'s>> {
        let reader = self.embedder.reader_of(task);
        let reader = self.agreed(reader.map_err(anyhow::Error::from))?;
        Ok(Scope { shared: self, task, reader, truth })
    }

    /// Embeddings (n, e) of texts, in their order. Each distinct text is embedded by one rank.
    ///
    /// # Errors
    /// Fails on all ranks if a text cannot be embedded on one of them.
    pub(super) fn texts<S: AsRef<str>>(&self, texts: &[S]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut numbers: BTreeMap<&str, usize> =
            texts.iter().map(|text| (text.as_ref(), 0)).collect();
        let distinct: Vec<&str> = numbers.keys().copied().collect();
        numbers.values_mut().enumerate().for_each(|(i, number)| *number = i);
        let own = self.own_chunks(distinct.len(), CHUNK).map(|range| {
            let chunk = &distinct[range];
            self.store.get(&("texts", chunk), || Ok((self.embedder.texts(chunk)?, true)))
        });
        let embedded = self.in_turn(own.collect())?.concat();
        Ok(texts.iter().map(|text| embedded[numbers[text.as_ref()]].clone()).collect())
    }

    /// Returns the value of this rank if all ranks have one, or else the error of the first rank
    /// that has none.
    ///
    /// # Errors
    /// Fails on all ranks if one has an error.
    pub(super) fn agreed<T>(&self, own: anyhow::Result<T>) -> anyhow::Result<T> {
        let told = match &own {
            Ok(_) => Ok(()),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        self.gathered(&told)?;
        own
    }

    /// Gathers a value of each rank.
    ///
    /// # Errors
    /// Fails on all ranks if one has an error.
    pub(super) fn gathered<T: Serialize + DeserializeOwned>(
        &self,
        own: &anyhow::Result<T>,
    ) -> anyhow::Result<Vec<T>> {
        let own = own.as_ref().map_err(|error| format!("{error:#}"));
        let all = self.collectives.all_gather_bytes(&postcard::to_stdvec(&own)?);
        let values = all.iter().map(|part| postcard::from_bytes::<Result<T, String>>(part));
        values.map(|value| value?.map_err(anyhow::Error::msg)).collect()
    }

    /// Joins what the ranks made of [`Self::own_chunks`], in the order of the chunks.
    pub(super) fn in_turn<T: Serialize + DeserializeOwned>(
        &self,
        own: anyhow::Result<Vec<T>>,
    ) -> anyhow::Result<Vec<T>> {
        let mut ranks: Vec<_> = self.gathered(&own)?.into_iter().map(Vec::into_iter).collect();
        let mut all = Vec::new();
        // The first rank that has no chunk left ends the turn.
        loop {
            for rank in &mut ranks {
                match rank.next() {
                    Some(value) => all.push(value),
                    None => return Ok(all),
                }
            }
        }
    }

    /// Chunks of `count` samples or texts that this rank takes, each with at most `size` of them.
    fn own_chunks(&self, count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
        let (rank, ranks) = (self.collectives.rank(), self.collectives.world_size());
        let chunks = (rank..count.div_ceil(size)).step_by(ranks);
        chunks.map(move |chunk| chunk * size..((chunk + 1) * size).min(count))
    }
}

/// A task with its samples.
struct Scope<'a> {
    shared: &'a Shared<'a>,
    task: &'a Task,
    reader: SampleReader,
    truth: &'a Truth<'a>,
}

impl Scope<'_> {
    /// What this rank makes of its chunks.
    fn own<R, T>(
        &self,
        request: &Request<'_, R>,
        each: impl Fn(Vec<Answered<R>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<Part<T>>>
    where
        R: Clone + Send + Serialize + DeserializeOwned,
    {
        let count = self.count()?;
        let ranks = self.shared.collectives.world_size();
        let mut progress = Progress::start(&self.task.name, count);
        let mut parts = Vec::new();
        for range in self.shared.own_chunks(count, CHUNK) {
            let asked: Vec<Asked> =
                range.clone().map(|index| self.asked(index)).collect::<anyhow::Result<_>>()?;
            let rows = self.rows(&range, &asked, request)?;
            let questions: Vec<&Vec<Question>> =
                asked.iter().map(|asked| &asked.questions).collect();
            let questions = *blake3::hash(&postcard::to_stdvec(&questions)?).as_bytes();
            let unreadable = rows.iter().filter_map(|rows| rows.as_ref().err().cloned()).collect();
            let value = each(answered(asked, rows))?;
            parts.push(Part { value, unreadable, questions });
            progress.at((range.end + (ranks - 1) * CHUNK).min(count));
        }
        Ok(parts)
    }

    /// Number of samples of the task.
    fn count(&self) -> anyhow::Result<usize> {
        let count = self.reader.len().min(self.task.limit.unwrap_or(usize::MAX));
        anyhow::ensure!(count > 0, "{} holds no samples", self.task.source());
        Ok(count)
    }

    /// Results of all chunks, with the hash of what was `asked`.
    fn measured<T>(&self, parts: Vec<Part<T>>, asked: &str) -> anyhow::Result<Measured<T>> {
        let Self { shared, task, reader, truth } = self;
        let frames = shared.embedder.load_options(task.frames).frames;
        let asked = (&reader.identity().content, frames, task.control, asked, &truth.labels);
        let mut hash = blake3::Hasher::new();
        hash.update(shared.weights.as_bytes()).update(&postcard::to_stdvec(&asked)?);
        let (mut values, mut unreadable) = (Vec::with_capacity(parts.len()), Vec::new());
        for part in parts {
            hash.update(&part.questions);
            values.push(part.value);
            unreadable.extend(part.unreadable);
        }
        Ok(Measured { parts: values, unreadable, hash: hash.finalize() })
    }

    fn asked(&self, index: usize) -> anyhow::Result<Asked> {
        match self.reader.texts(index) {
            Ok((name, texts)) => {
                let questions = self.truth.of(&texts);
                let questions = questions
                    .with_context(|| format!("sample `{}` of {}", name.key, name.shard))?;
                Ok(Asked { questions, lost: None })
            }
            Err(error) => Ok(Asked { questions: Vec::new(), lost: Some(error.to_string()) }),
        }
    }

    /// Results for the samples `range`, from the store or the model.
    fn rows<R>(
        &self,
        range: &Range<usize>,
        asked: &[Asked],
        request: &Request<'_, R>,
    ) -> anyhow::Result<Rows<R>>
    where
        R: Clone + Send + Serialize + DeserializeOwned,
    {
        if let Some(constant) = &request.constant {
            let rows = |asked: &Asked| match &asked.lost {
                None => Ok(vec![constant.clone(); asked.questions.len()]),
                Some(reason) => Err(reason.clone()),
            };
            return Ok(asked.iter().map(rows).collect());
        }
        let options = self.shared.embedder.load_options(self.task.frames);
        let queries = asked.iter().map(|asked| {
            asked.questions.iter().map(|question| &*question.query).collect::<Vec<_>>()
        });
        let queries: Vec<Vec<&str>> = queries.collect();
        let (reader, control) = (&self.reader, self.task.control);
        let set = &reader.identity().version;
        let key = (set, range, options.frames, control, &request.identity, queries);
        self.shared.store.get(&key, || {
            let (mut rows, mut lasting) = (Vec::with_capacity(asked.len()), true);
            for (part, first) in asked.chunks(ROWS).zip(range.clone().step_by(ROWS)) {
                let numbered = part.par_iter().enumerate().map(|(i, asked)| (first + i, asked));
                let loaded = numbered.map(|asked| load(reader, control, asked, &options));
                let loaded: Vec<_> = loaded.collect();
                let inputs = loaded.iter().zip(part).filter_map(|(sample, asked)| {
                    let sample = sample.as_ref().ok()?.as_ref()?;
                    Some(asked.questions.iter().map(move |question| (sample, &*question.query)))
                });
                let inputs: Vec<(&LoadedSample, &str)> = inputs.flatten().collect();
                let mut made = (request.make)(&inputs)?.into_iter();
                for (sample, asked) in loaded.iter().zip(part) {
                    lasting &= sample.as_ref().err().is_none_or(|lost| lost.lasting);
                    rows.push(match sample {
                        Ok(_) => Ok(made.by_ref().take(asked.questions.len()).collect()),
                        Err(lost) => Err(lost.reason.clone()),
                    });
                }
            }
            Ok((rows, lasting))
        })
    }
}

/// Reads a sample, unless nothing is asked about it.
fn load(
    reader: &SampleReader,
    control: Control,
    (index, asked): (usize, &Asked),
    options: &LoadOptions,
) -> Result<Option<LoadedSample>, Lost> {
    if let Some(reason) = &asked.lost {
        return Err(Lost { reason: reason.clone(), lasting: false });
    }
    if asked.questions.is_empty() {
        return Ok(None);
    }
    let mut sample = reader.load(index, options).map_err(|error| Lost::of(&error))?;
    apply_control(control, &mut sample, options.frames);
    Ok(Some(sample))
}

/// Questions of a chunk with their results. A sample that cannot be read has at least one.
fn answered<R>(asked: Vec<Asked>, rows: Rows<R>) -> Vec<Answered<R>> {
    let mut all = Vec::new();
    for (asked, rows) in asked.into_iter().zip(rows) {
        let lost = asked.lost.is_some();
        let mut rows = rows.into_iter().flatten();
        let questions = asked.questions.into_iter();
        all.extend(questions.map(|Question { truth, part, .. }| Answered {
            row: rows.next(),
            truth,
            part,
        }));
        if lost {
            all.push(Answered { row: None, truth: String::new(), part: None });
        }
    }
    all
}
