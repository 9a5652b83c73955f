//! Makes one row of a batch: from the row's index in the stage to pixels and tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vljepa_recipes::Recipe;
use vljepa_recipes::protocol::DataPart;
use vljepa_recipes::schema::{
    EmbeddingSource, Interpolation, Mixing, Model, Preprocessing, Source, Stage, TargetRule,
    Transform,
};

use super::cache::{Cache, CachedTokenizer, Decoded};
use super::rules;
use super::work::WorkMeter;
use crate::batch::{SampleRef, Skipped};
use crate::catalogue::Catalogues;
use crate::conversation::Conversation;
use crate::decode::{Clip, Media, Picture, Shape};
use crate::error::{DataError, panic_text};
use crate::order::{Location, Order, Shuffle, SourceLengths, mix};
use crate::shards::ShardSet;
use crate::tokenize::Tokenizer;
use crate::transform::Shaper;

/// Last word of the key of the random draw of a crop. `rules` has the words of the other draws.
const CROP: u64 = 1;

/// Makes the rows of a stage. All threads share one maker.
#[derive(Debug)]
pub(super) struct RowMaker {
    pub(super) cache: Cache,
    pub(super) work: WorkMeter,
    order: Order,
    sources: Vec<StageSource>,
    image_size: u32,
    texts: Tokenizers,
    key: u64,
    max_consecutive: u32,
}

/// Tokenizers of the texts of a sample.
#[derive(Debug)]
struct Tokenizers {
    /// Tokens before the visual tokens.
    before: Arc<[i32]>,
    queries: CachedTokenizer,
    /// Of the texts that a Y-encoder reads.
    targets: Option<CachedTokenizer>,
    /// Of the texts that the model writes.
    outputs: Option<CachedTokenizer>,
}

impl Tokenizers {
    fn of(model: &Model) -> Result<Self, DataError> {
        let cached = CachedTokenizer::new;
        if model.vlm().is_some() {
            let Conversation { before, questions, answers } = Conversation::of(model)?;
            let outputs = Some(cached(answers));
            let (before, queries) = (before.into(), cached(questions));
            return Ok(Self { before, queries, targets: None, outputs });
        }
        let outputs = model.learning_decoder().map(|_| Tokenizer::of_outputs(model)).transpose()?;
        Ok(Self {
            before: Arc::from([]),
            queries: cached(Tokenizer::of_queries(model)?),
            targets: Some(cached(Tokenizer::of_targets(model)?)),
            outputs: outputs.map(cached),
        })
    }
}

/// Source of the stage, with its shards open.
#[derive(Debug)]
struct StageSource {
    name: String,
    shards: ShardSet,
    media: Media,
    rules: Vec<TargetRule>,
    preprocessing: Preprocessing,
    /// Frames of a sample; 0 if pictures and clips are not read.
    frames: usize,
}

/// Finished row of a batch.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) sample: SampleRef,
    pub(super) decoded: Arc<Decoded>,
    /// Randomly cropped frames, or `None` if the frames of `decoded` are used.
    pub(super) cropped: Option<Clip>,
    pub(super) query_text: String,
    pub(super) target_text: String,
    pub(super) query: Arc<[i32]>,
    /// The target text as a Y-encoder reads it.
    pub(super) target: Option<Arc<[i32]>>,
    /// The target text as the model writes it.
    pub(super) output: Option<Arc<[i32]>>,
    pub(super) skipped: Vec<Skipped>,
}

/// State of one reader thread.
pub(super) struct Scratch {
    shapers: Vec<Shaper>,
    /// Shard and key of the current sample, for errors and panics.
    pub(super) shard: Arc<str>,
    pub(super) key: String,
}

/// Why a row could not be made from a sample.
enum Fault {
    /// The sample is bad, and a replacement is used.
    Bad(String),
    /// The stream fails with this error.
    Fatal(DataError),
}

impl From<DataError> for Fault {
    fn from(error: DataError) -> Self {
        match error {
            DataError::BadSample { reason, .. } => Self::Bad(reason),
            other => Self::Fatal(other),
        }
    }
}

impl RowMaker {
    pub(super) fn new(
        recipe: &Recipe,
        stage_index: usize,
        catalogues: &Catalogues,
    ) -> Result<Self, DataError> {
        let Some(stage) = recipe.stages.get(stage_index) else {
            return Err(recipe_error("stages", format!("there is no stage number {stage_index}")));
        };
        let mut sources = Vec::new();
        let mut lengths = Vec::new();
        for (name, &weight) in &stage.mixture {
            if weight == 0 {
                continue;
            }
            let Some(source) = recipe.data.sources.get(name) else {
                let key = format!("stages.{stage_index}.mixture.{name}");
                return Err(recipe_error(key, "is not among data.sources".to_owned()));
            };
            let frames = source.frames.unwrap_or(stage.frames);
            if frames == 0 || (frames != stage.frames && stage.mixing == Mixing::Sample) {
                let key = format!("data.sources.{name}.frames");
                let reason =
                    "must equal the stage's frames unless the stage's mixing is `batch`".to_owned();
                return Err(recipe_error(key, reason));
            }
            let Some(catalogue) = catalogues.get(name) else {
                return Err(DataError::Ended(format!("source {name} has no catalogue")));
            };
            let shard_lengths = catalogue.lengths().collect();
            let shards = ShardSet::new(catalogues.storage().clone(), Arc::clone(catalogue));
            let interpolation = recipe.model.x_encoder.preprocessing().interpolation;
            let frames = if reads_frames(recipe, stage) { frames } else { 0 };
            let opened = StageSource::new(name, source, frames, interpolation, shards)?;
            lengths.push(SourceLengths { name: name.clone(), shard_lengths });
            sources.push(opened);
        }
        let model = &recipe.model;
        Ok(Self {
            cache: Cache::new(recipe.data.cache_mib),
            work: WorkMeter::default(),
            order: Order::new(
                recipe.seed,
                stage_index,
                &mixture_of(stage),
                &lengths,
                Shuffle { lanes: recipe.data.lanes, window: recipe.data.shuffle_window },
            )?,
            sources,
            image_size: u32::try_from(model.image_size)
                .map_err(|_| recipe_error("model.image_size", "is too large".to_owned()))?,
            texts: Tokenizers::of(model)?,
            key: mix(&[
                recipe.seed,
                u64::try_from(stage_index).unwrap_or(u64::MAX),
                0x0074_6578_7473,
            ]),
            max_consecutive: recipe.data.bad_samples.max_consecutive,
        })
    }

    pub(super) fn scratch(&self) -> Scratch {
        let shaper = |source: &StageSource| Shaper::new(source.preprocessing, self.image_size);
        let shapers = self.sources.iter().map(shaper).collect();
        Scratch { shapers, shard: Arc::from(""), key: String::new() }
    }

    /// Tokens before the visual tokens of every row.
    pub(super) fn before(&self) -> Arc<[i32]> {
        Arc::clone(&self.texts.before)
    }

    /// Side of the square frames, in pixels.
    pub(super) fn image_size(&self) -> usize {
        usize::try_from(self.image_size).unwrap_or(usize::MAX)
    }

    /// Makes the row at `global_index` of the stage. If the sample is bad, its replacements are
    /// tried in turn, as many as the recipe allows.
    pub(super) fn make(&self, global_index: u64, scratch: &mut Scratch) -> Result<Row, DataError> {
        let mut skipped: Vec<Skipped> = Vec::new();
        let mut location = self.order.locate(global_index);
        for attempt in 1.. {
            let key = mix(&[self.key, global_index, attempt]);
            let made = catch_unwind(AssertUnwindSafe(|| self.make_from(location, key, scratch)));
            let made = made.unwrap_or_else(|panic| {
                // A sample that makes a decoder panic is bad too. The shapers may be in an
                // inconsistent state, so they are replaced.
                scratch.shapers = self.scratch().shapers;
                Err(Fault::Bad(format!("reading the sample panicked: {}", panic_text(&*panic))))
            });
            match made {
                Ok(row) => return Ok(Row { skipped, ..row }),
                Err(Fault::Fatal(error)) => return Err(error),
                Err(Fault::Bad(reason)) => {
                    let source = self.sources[location.source].name.clone();
                    let (shard, key) = (scratch.shard.to_string(), scratch.key.clone());
                    skipped.push(Skipped { source, shard, key, reason });
                }
            }
            if attempt > u64::from(self.max_consecutive) {
                break;
            }
            location = self.order.replacement(global_index, attempt);
        }
        let count = u64::try_from(skipped.len()).unwrap_or(u64::MAX);
        let last =
            skipped.pop().ok_or_else(|| DataError::Ended("no sample was tried".to_owned()))?;
        Err(DataError::TooManyInARow {
            source_name: last.source,
            count,
            allowed: self.max_consecutive,
            shard: last.shard,
            key: last.key,
            reason: last.reason,
        })
    }

    fn make_from(&self, location: Location, key: u64, scratch: &mut Scratch) -> Result<Row, Fault> {
        let source = &self.sources[location.source];
        let decoded = self.decoded(location, scratch)?;
        let (query, target) =
            rules::choose(&source.rules, &decoded.texts, key).map_err(Fault::Bad)?;
        let encode = |texts: &CachedTokenizer, text| {
            let encoded = self.work.time(source.media, DataPart::Tokenise, || texts.encode(text));
            encoded.map_err(|error| Fault::Bad(error.to_string()))
        };
        let of_target =
            |texts: &Option<_>| texts.as_ref().map(|texts| encode(texts, target)).transpose();
        let query_tokens = encode(&self.texts.queries, query)?;
        let target_tokens = of_target(&self.texts.targets)?;
        if target.is_empty() || target_tokens.as_ref().is_some_and(|tokens| tokens.is_empty()) {
            return Err(Fault::Bad(format!("the target text {target:?} has no tokens")));
        }
        let output = of_target(&self.texts.outputs)?;
        let cropped = match source.preprocessing.transform {
            Transform::RandomResizedCrop => {
                let shaper = &mut scratch.shapers[location.source];
                let draw = mix(&[key, CROP]);
                let crop = |picture: &Picture| shaper.random_crop(picture, draw);
                let pictures = decoded.clip.pictures.iter().map(crop);
                let pictures = self.work.time(source.media, DataPart::Resize, || {
                    pictures.collect::<Result<Vec<_>, _>>()
                });
                let pictures = pictures.map_err(Fault::Bad)?;
                Some(Clip { pictures, order: decoded.clip.order.clone() })
            }
            Transform::ResizeCenterCrop | Transform::CenterCrop | Transform::Squash => None,
        };
        Ok(Row {
            sample: SampleRef {
                source: source.name.clone(),
                shard: decoded.shard.to_string(),
                key: decoded.key.clone(),
            },
            cropped,
            query_text: query.to_owned(),
            target_text: target.to_owned(),
            query: query_tokens,
            target: target_tokens,
            output,
            skipped: Vec::new(),
            decoded,
        })
    }

    /// Pixels and texts of a sample, from the cache or from its shard. Pixels have the model's
    /// size, unless the source uses random crops, which are made for each row.
    fn decoded(&self, location: Location, scratch: &mut Scratch) -> Result<Arc<Decoded>, Fault> {
        let sample = (location.source, location.shard, location.sample);
        if let Some(known) = self.cache.get(sample) {
            scratch.shard = Arc::clone(&known.shard);
            scratch.key.clone_from(&known.key);
            return Ok(known);
        }
        let source = &self.sources[location.source];
        let shard = source.shards.shard(location.shard)?;
        scratch.shard = Arc::clone(&shard.path);
        scratch.key = shard.sample(location.sample).key.to_string();
        let wanted: &[Media] = if source.frames > 0 { &[source.media] } else { &[] };
        let raw = self.work.read(&shard, location.sample, wanted)?;
        let mut texts = raw.texts;
        // Only the captions that the rules use stay in memory.
        texts.keep_fields(source.rules.iter().filter_map(|rule| rule.field.as_deref()));
        rules::check(&source.rules, &texts).map_err(Fault::Bad)?;
        let clip = if source.frames > 0 {
            let shaper = &mut scratch.shapers[location.source];
            self.clip(source, raw.visual.as_ref(), shaper)?
        } else {
            Clip { pictures: Vec::new(), order: Vec::new() }
        };
        let decoded = Arc::new(Decoded { shard: raw.shard, key: raw.key, clip, texts });
        self.cache.put(sample, &decoded);
        Ok(decoded)
    }

    /// Pixels of a sample's picture or clip.
    fn clip(
        &self,
        source: &StageSource,
        visual: Option<&(Media, Vec<u8>)>,
        shaper: &mut Shaper,
    ) -> Result<Clip, Fault> {
        let Some((media, bytes)) = visual else {
            return Err(Fault::Bad(match source.media {
                Media::Image => "the sample has no picture (jpg, jpeg, png, webp, avif)".to_owned(),
                Media::Video => "the sample has no clip (mp4, mkv, webm, avi, mov)".to_owned(),
            }));
        };
        let shape: &mut dyn Shape = match source.preprocessing.transform {
            Transform::RandomResizedCrop => &mut Ok::<Picture, String>,
            Transform::ResizeCenterCrop | Transform::CenterCrop | Transform::Squash => shaper,
        };
        self.work.decode(*media, bytes, source.frames, shape).map_err(Fault::Bad)
    }
}

/// Whether a stage reads pictures and clips. A Y-decoder that learns from embeddings of texts needs
/// none.
fn reads_frames(recipe: &Recipe, stage: &Stage) -> bool {
    let decoding =
        recipe.model.learning_decoder().map(|_| stage.decoding.unwrap_or_default().embeddings);
    match decoding {
        None | Some(EmbeddingSource::Predictions) => true,
        Some(EmbeddingSource::Targets) => false,
    }
}

impl StageSource {
    fn new(
        name: &str,
        source: &Source,
        frames: usize,
        interpolation: Interpolation,
        shards: ShardSet,
    ) -> Result<Self, DataError> {
        if source.targets.iter().all(|rule| rule.weight == 0) {
            let key = format!("data.sources.{name}.targets");
            return Err(recipe_error(key, "gives every rule the weight 0".to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            shards,
            media: Media::of_source(source.visual),
            rules: source.targets.clone(),
            preprocessing: Preprocessing { transform: source.transform, interpolation },
            frames,
        })
    }
}

/// Copy of the stage without the sources of weight 0, which are not opened.
fn mixture_of(stage: &Stage) -> Stage {
    let mut stage = stage.clone();
    stage.mixture.retain(|_, weight| *weight > 0);
    stage
}

fn recipe_error(key: impl Into<String>, reason: String) -> DataError {
    DataError::Recipe { key: key.into(), reason }
}
