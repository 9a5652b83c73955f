//! Evaluation sets in the files that their authors publish.
//!
//! A set is a list of samples as a shard would hold them, whose pictures or videos are files, and,
//! where the format defines them, the labels or answers to choose from. There is one reader for
//! each published format. Annotations that cannot be read are an error. A picture or video that is
//! missing is not: its sample stays in the list, and reading it fails.

mod actions;
mod captions;
mod classes;
mod descriptions;
mod entries;
mod epic_kitchens;
mod files;
mod instructional;
mod items;
mod questions;
mod sentences;
mod table;
mod triplets;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use vljepa_recipes::check::count_problems;
use vljepa_recipes::schema::{Count, EvaluationSet, SetFormat};

use crate::catalogue::SetIdentity;
use crate::error::DataError;
use crate::texts::Texts;

/// Samples of a set, with what the format defines beside them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OpenSet {
    /// Samples in the order of the annotations.
    pub samples: Vec<SetSample>,
    /// Labels or candidate answers, each with the texts that represent it. Empty for captions and
    /// triplets.
    pub labels: BTreeMap<String, Vec<String>>,
}

/// Sample of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct SetSample {
    /// Key, unique in the set.
    pub key: String,
    /// Its picture or video. `None` for a triplet of texts.
    pub visual: Option<SetVisual>,
    /// Caption, questions and json fields, as a shard would hold them.
    pub texts: Texts,
}

/// Picture or video of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SetVisual {
    /// Path of the file. One that ends in `.*` stands for a video with any extension.
    pub path: PathBuf,
    /// Start and end in the video, in seconds, as annotated. `None` for the whole file.
    pub seconds: Option<Range<f64>>,
    /// Picture that the second half of the clip shows, after the picture `path` in the first half.
    /// `None` for a clip of one file.
    pub second: Option<PathBuf>,
}

impl SetSample {
    /// What a copy of the sample has too, and what changes when its file is written again.
    fn identity(&self) -> [Vec<u8>; 2] {
        let visual = self.visual.as_ref();
        let path = visual.and_then(|visual| visual.existing().ok());
        let file = path.as_deref().and_then(|path| fs::metadata(path).ok());
        let modified = file.as_ref().and_then(|file| file.modified().ok());
        let modified = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let name = path.as_deref().and_then(Path::file_name).map(OsStr::as_encoded_bytes);
        let seconds = visual.and_then(|visual| visual.seconds.as_ref());
        let seconds = seconds.map(|range| [range.start, range.end].map(f64::to_bits));
        let content = (&self.key, name, seconds, file.as_ref().map(fs::Metadata::len));
        let version = (path.as_deref().map(|path| path.as_os_str().as_encoded_bytes()), modified);
        // Neither can fail: the values are plain, and the buffer grows.
        let mut identity = [
            postcard::to_stdvec(&content).unwrap_or_default(),
            postcard::to_stdvec(&version).unwrap_or_default(),
        ];
        if let Some(second) = visual.and_then(|visual| visual.second.clone()) {
            let visual = Some(SetVisual::of(second, None));
            let second = Self { key: String::new(), visual, texts: Texts::default() };
            for (all, part) in identity.iter_mut().zip(second.identity()) {
                all.extend(part);
            }
        }
        identity
    }
}

impl SetVisual {
    /// A file, or a segment of it.
    pub(crate) fn of(path: PathBuf, seconds: Option<Range<f64>>) -> Self {
        Self { path, seconds, second: None }
    }

    /// Paths of all files.
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.path).chain(&self.second)
    }

    /// Path of the file that exists.
    ///
    /// # Errors
    /// A message if there is no such file.
    pub fn existing(&self) -> Result<PathBuf, String> {
        files::existing(&self.path)
    }
}

impl OpenSet {
    /// Reads a set, and checks its counts. Counts that differ but are allowed to are logged.
    ///
    /// # Errors
    /// If an annotation file cannot be read, keys appear twice, or counts differ.
    pub fn open(set: &EvaluationSet) -> Result<Self, DataError> {
        let opened = Self::read(set)?;
        let (errors, warnings) = count_problems(set, |count| opened.count(count));
        for warning in warnings {
            tracing::warn!("set `{}`: {warning}", set.name);
        }
        if errors.is_empty() {
            return Ok(opened);
        }
        let reason = format!(
            "it holds {}; download it again, or write `allow_subset: true` to measure a part",
            errors.join(", and ")
        );
        Err(DataError::BadLocation { location: format!("the set `{}`", set.name), reason })
    }

    /// Reads a set, whatever its counts are.
    ///
    /// # Errors
    /// If an annotation file cannot be read, or keys appear twice.
    pub fn read(set: &EvaluationSet) -> Result<Self, DataError> {
        let opened = read_format(&set.root, &set.format)?;
        let mut keys = BTreeSet::new();
        for SetSample { key, .. } in &opened.samples {
            if !keys.insert(key) {
                let location = format!("the set `{}`", set.name);
                let reason = format!("two samples have the key `{key}`; restore its annotations");
                return Err(DataError::BadLocation { location, reason });
            }
        }
        Ok(opened)
    }

    /// Number of samples, questions, labels or annotations.
    #[must_use]
    pub fn count(&self, count: Count) -> usize {
        let questions = |sample: &SetSample| sample.texts.questions().map_or(0, <[_]>::len);
        let annotations = |sample: &SetSample| sample.texts.annotations().map_or(0, <[_]>::len);
        match count {
            Count::Samples => self.samples.len(),
            Count::Questions => self.samples.iter().map(questions).sum(),
            Count::Labels => self.labels.len(),
            Count::Annotations => self.samples.iter().map(annotations).sum(),
        }
    }

    /// Messages about the pictures and videos that are missing, one for each file, in the order of
    /// the samples, and the number of samples that lack one.
    #[must_use]
    pub fn missing(&self) -> (Vec<String>, usize) {
        let (mut messages, mut known, mut samples) = (Vec::new(), BTreeMap::new(), 0);
        for visual in self.samples.iter().filter_map(|sample| sample.visual.as_ref()) {
            let mut is_missing = false;
            for path in visual.paths() {
                is_missing |= *known.entry(path).or_insert_with(|| {
                    files::existing(path).map_err(|message| messages.push(message)).is_err()
                });
            }
            samples += usize::from(is_missing);
        }
        (messages, samples)
    }

    /// Identity of the samples: of their keys and segments, and of names, sizes and times of change
    /// of their files. What is asked about them is no part of it.
    #[must_use]
    pub fn identity(&self) -> SetIdentity {
        let of_samples: Vec<_> = self.samples.par_iter().map(SetSample::identity).collect();
        let hash = |part: &dyn Fn(&[Vec<u8>; 2]) -> Vec<u8>| {
            let mut hasher = blake3::Hasher::new();
            of_samples.iter().for_each(|sample| {
                hasher.update(blake3::hash(&part(sample)).as_bytes());
            });
            hasher.finalize().to_string()
        };
        SetIdentity {
            content: hash(&|[content, _]| content.clone()),
            version: hash(&|s| s.concat()),
        }
    }

    /// Number of different files of pictures and videos.
    #[must_use]
    pub fn files(&self) -> usize {
        let visuals = self.samples.iter().filter_map(|sample| sample.visual.as_ref());
        let paths = visuals.flat_map(SetVisual::paths);
        paths.collect::<BTreeSet<_>>().len()
    }
}

fn read_format(root: &Path, format: &SetFormat) -> Result<OpenSet, DataError> {
    match format {
        SetFormat::ImageFolders { images, names } => classes::image_folders(root, images, names),
        SetFormat::SomethingSomething { annotations, labels, videos } => {
            classes::something_something(root, annotations, labels, videos)
        }
        SetFormat::Kinetics { annotations, videos } => classes::kinetics(root, annotations, videos),
        SetFormat::EgoExo4dKeysteps { segments, labels, videos, trimmed } => {
            classes::ego_exo4d_keysteps(root, segments, labels, (videos, *trimmed))
        }
        SetFormat::EgoExo4dDescriptions { descriptions, takes, tasks, videos } => {
            descriptions::ego_exo4d(root, descriptions, takes, tasks, videos)
        }
        SetFormat::EpicKitchens { annotations, verbs, nouns, videos } => {
            epic_kitchens::read(root, annotations, [verbs, nouns], videos)
        }
        SetFormat::Coin { annotations, videos, labelled } => {
            instructional::coin(root, annotations, videos, *labelled)
        }
        SetFormat::CrossTask { tasks, list, segments, videos, labelled } => {
            instructional::cross_task(root, [tasks, list], [segments, videos], *labelled)
        }
        SetFormat::CaptionTable { table, key, caption, separator, seconds, videos } => {
            let columns = captions::Columns { key, caption, seconds: seconds.as_ref() };
            captions::table(root, table, &columns, separator.as_deref(), videos)
        }
        SetFormat::Dream1k { annotations, videos } => captions::dream1k(root, annotations, videos),
        SetFormat::Vdc { annotations, caption, videos } => {
            captions::vdc(root, annotations, caption, videos)
        }
        SetFormat::Didemo { annotations, list, seconds, videos } => {
            sentences::didemo(root, annotations, list.as_deref(), *seconds, videos)
        }
        SetFormat::ActivityNetCaptions { annotations, videos } => {
            sentences::activity_net(root, annotations, videos)
        }
        SetFormat::Gqa { questions, answers, images } => {
            questions::gqa(root, questions, answers, images)
        }
        SetFormat::TallyQa { questions, images } => questions::tally_qa(root, questions, images),
        SetFormat::Pope { random, popular, adversarial, images } => {
            questions::pope(root, [random, popular, adversarial], images)
        }
        SetFormat::PopeV2 { questions, images } => questions::pope_v2(root, questions, images),
        SetFormat::Clevr { questions, images } => questions::clevr(root, questions, images),
        SetFormat::WorldPrediction { samples } => actions::world_prediction(root, samples),
        SetFormat::SugarCrepePp { files } => triplets::sugar_crepe_pp(root, files),
        SetFormat::Visla { generic, spatial } => triplets::visla(root, generic, spatial),
    }
}

#[cfg(test)]
mod tests;
