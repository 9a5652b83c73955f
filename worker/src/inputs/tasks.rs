//! Checks that the samples of an evaluation task have the texts that the task needs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use vljepa_data::sets::OpenSet;
use vljepa_data::{DataError, SampleReader, Tokenizer};
use vljepa_recipes::schema::{SampleSource, Task, TaskKind};

use super::{Inspection, Tokenizers};
use crate::evaluation::truth::{Truth, triplets};

/// Number of samples without the needed text that are reported one by one.
const SHOWN_SAMPLES: usize = 3;

/// Advice about a set that cannot be read.
const RESTORE_SET: &str = "restore the files of the set; `vljepa-launch sets` says what is missing";

impl Inspection {
    /// Checks the label files, the shards and the texts of a task.
    pub(super) fn task(&mut self, key: &str, task: &Task, tokenizers: &Tokenizers) {
        let samples = match task.source() {
            SampleSource::Shards { .. } => format!("{key}.shards"),
            SampleSource::Set(set) => {
                let key = format!("{key}.set");
                // The launcher itself reports a folder that does not exist.
                if !set.root.is_dir() {
                    return;
                }
                key
            }
        };
        if task.kind == TaskKind::Triplets {
            return self.triplets(&samples, task, tokenizers);
        }
        self.text(tokenizers.queries.as_ref(), &task.query, || format!("{key}.query"));
        let truth = match Truth::load(task) {
            Ok(truth) => Some(truth),
            Err(_) if self.skip_missing && names_missing_file(task) => None,
            Err(error) if answers_of_set(task) => {
                self.add(&*samples, format!("{error:#}"), RESTORE_SET);
                None
            }
            Err(error) => {
                let help = "write a list of labels, or a map from each label to its texts";
                self.add(format!("{key}.kind"), format!("{error:#}"), help);
                None
            }
        };
        if let Some(truth) = &truth {
            for text in truth.labels.values().flatten() {
                self.text(tokenizers.targets.as_ref(), text, || format!("{key}.kind"));
            }
        }
        let usable = match task.source() {
            SampleSource::Shards { shards, catalogue } => self.shards(&samples, shards, catalogue),
            SampleSource::Set(_) => truth.is_some(),
        };
        if usable
            && let Some(truth) = &truth
            && let Err(error) = self.samples(key, task, truth, tokenizers)
        {
            let help = match task.source() {
                SampleSource::Shards { .. } => "repair the shard",
                SampleSource::Set(_) => RESTORE_SET,
            };
            self.add(samples, error.to_string(), help);
        }
    }

    fn triplets(&mut self, key: &str, task: &Task, tokenizers: &Tokenizers) {
        if let SampleSource::Shards { shards, .. } = task.source()
            && self.is_skipped(Path::new(shards))
        {
            return;
        }
        let help = match task.source() {
            SampleSource::Shards { .. } => "write a list of `{p1, p2, n}`",
            SampleSource::Set(_) => RESTORE_SET,
        };
        let checked = triplets(task).and_then(|triplets| {
            let texts = triplets.iter().flat_map(|triplet| [&triplet.p1, &triplet.p2, &triplet.n]);
            for text in texts {
                encode(tokenizers.targets.as_ref(), text)?;
            }
            triplets.iter().try_for_each(|triplet| triplet.part(task).map(drop))
        });
        if let Err(error) = checked {
            self.add(key, format!("{error:#}"), help);
        }
    }

    /// Checks the texts of the task's samples.
    fn samples(
        &mut self,
        key: &str,
        task: &Task,
        truth: &Truth<'_>,
        tokenizers: &Tokenizers,
    ) -> Result<(), DataError> {
        let reader = match task.source() {
            SampleSource::Shards { shards, catalogue } => {
                SampleReader::open(&self.storage, shards, catalogue)?
            }
            SampleSource::Set(set) => {
                let set = OpenSet::open(set)?;
                self.missing(key, &set);
                SampleReader::of_set(set)
            }
        };
        let count = reader.len().min(task.limit.unwrap_or(usize::MAX));
        let any = AtomicBool::new(false);
        let check = |index| {
            let (name, texts) = reader.texts(index)?;
            let asked = truth.of(&texts).and_then(|asked| {
                for question in &asked {
                    any.store(true, Ordering::Relaxed);
                    encode(tokenizers.queries.as_ref(), &question.query)?;
                }
                if task.kind == TaskKind::Retrieval {
                    for caption in texts.captions().map_err(anyhow::Error::msg)? {
                        encode(tokenizers.targets.as_ref(), caption)?;
                    }
                }
                Ok(())
            });
            Ok(asked
                .err()
                .map(|error| format!("sample `{}` of {}: {error:#}", name.key, name.shard)))
        };
        let bad: Result<Vec<Option<String>>, _> = (0..count).into_par_iter().map(check).collect();
        let bad: Vec<String> = bad?.into_iter().flatten().collect();
        let help = "correct the task, or the samples";
        for what in bad.iter().take(SHOWN_SAMPLES) {
            self.add(key, what, help);
        }
        if bad.len() > SHOWN_SAMPLES {
            let what = format!("{} of {count} samples lack what the task needs", bad.len());
            self.add(key, what, help);
        }
        if bad.is_empty() && !any.into_inner() {
            self.add(key, truth.no_question(), help);
        }
        Ok(())
    }
}

impl Inspection {
    /// Warns of pictures and videos of a set that are missing.
    fn missing(&mut self, key: &str, set: &OpenSet) {
        let (messages, samples) = set.missing();
        if let Some(first) = messages.first() {
            let (files, missing, all) = (set.files(), messages.len(), set.samples.len());
            self.found.warnings.push(format!(
                "{key}.set: {missing} of {files} pictures or videos are missing, so that {samples} \
                 of {all} samples count as wrong; the first: {first}"
            ));
        }
    }
}

/// Checks that a text has tokens that the embedding has rows for.
fn encode(tokenizer: Option<&Tokenizer>, text: &str) -> Result<(), DataError> {
    tokenizer.map_or(Ok(()), |tokenizer| tokenizer.encode(text).map(|_| ()))
}

/// Whether the labels or answers of the task are those of its set.
fn answers_of_set(task: &Task) -> bool {
    use vljepa_recipes::schema::Candidates;
    match &task.kind {
        TaskKind::Classification { candidates, .. }
        | TaskKind::QuestionAnswering { candidates, .. } => *candidates == Candidates::OfSet,
        TaskKind::Retrieval
        | TaskKind::Triplets
        | TaskKind::WorldPrediction
        | TaskKind::Captioning { .. }
        | TaskKind::SelectiveDecoding(_) => false,
    }
}

/// Whether a label file of the task does not exist.
fn names_missing_file(task: &Task) -> bool {
    use vljepa_recipes::schema::Candidates;
    let is_missing = |candidates: &Candidates| match candidates {
        Candidates::File(path) => !path.exists(),
        Candidates::OfSet | Candidates::Labels(_) => false,
    };
    match &task.kind {
        TaskKind::Classification { candidates, expect, .. } => {
            is_missing(candidates) || expect.as_ref().is_some_and(|path| !path.exists())
        }
        TaskKind::QuestionAnswering { candidates, .. } => is_missing(candidates),
        TaskKind::Retrieval
        | TaskKind::Triplets
        | TaskKind::WorldPrediction
        | TaskKind::Captioning { .. }
        | TaskKind::SelectiveDecoding(_) => false,
    }
}
