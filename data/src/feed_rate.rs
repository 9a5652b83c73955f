//! Measures how fast shards are read and decoded on this machine, and how many GPUs that feeds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vljepa_recipes::cost::{ASSUMED_TARGET_TOKENS, Tokens, useful_operations};
use vljepa_recipes::protocol::{DataPart, KindWork};
use vljepa_recipes::schema::{Model, Preprocessing, Visual};

use crate::catalogue::Catalogue;
use crate::decode::Media;
use crate::error::DataError;
use crate::shards::{OpenShard, ShardSet};
use crate::storage::Storage;
use crate::stream::work::WorkMeter;
use crate::tokenize::Tokenizer;
use crate::transform::Shaper;

/// Number of consecutive samples that a thread claims at a time. Reading them is sequential, as in
/// training.
const STRETCH: usize = 32;

/// How many frames of which size are measured, on how many threads and for how long.
#[derive(Debug, Clone)]
pub struct FeedOptions {
    /// Frames of each clip.
    pub frames: usize,
    /// Side of the square frames, in pixels.
    pub image_size: usize,
    /// Number of threads.
    pub threads: usize,
    /// Time after which the measurement ends, even if samples are left.
    pub limit: Duration,
    /// Tokenizer for the captions. `None` measures pictures and clips only.
    pub tokenizer: Option<PathBuf>,
}

/// Result of a measurement.
#[derive(Debug)]
pub struct FeedRate {
    /// Duration of the measurement in seconds.
    pub seconds: f64,
    /// Work of all threads, by kind. Each thread works all the time.
    pub kinds: BTreeMap<Visual, KindWork>,
    /// Number of samples that cannot be decoded or have neither picture nor clip, and the first of
    /// them.
    pub bad: (u64, Option<DataError>),
}

/// Reads and decodes the samples of `catalogue` on all threads, in the order of the shards.
///
/// # Errors
/// If a shard or the tokenizer cannot be read.
pub fn measure(
    storage: &Storage,
    catalogue: Catalogue,
    options: &FeedOptions,
) -> Result<FeedRate, DataError> {
    let tokenizer = options.tokenizer.as_deref();
    let tokenizer = tokenizer.map(|path| Tokenizer::load(path, 512, usize::MAX)).transpose()?;
    let mut stretches: Vec<(usize, Range<usize>)> = Vec::new();
    for (shard, length) in catalogue.lengths().enumerate() {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let starts = (0..length).step_by(STRETCH);
        stretches.extend(starts.map(|start| (shard, start..(start + STRETCH).min(length))));
    }
    let run = Run {
        shards: ShardSet::new(storage.clone(), Arc::new(catalogue)),
        stretches,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        meter: WorkMeter::default(),
        tokenizer,
    };
    let since = Instant::now();
    let workers: Vec<Result<_, DataError>> = std::thread::scope(|scope| {
        let work = || run.work(options, since);
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(work)).collect();
        let panicked = || DataError::Ended("a thread panicked".to_owned());
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
            .collect()
    });
    let seconds = since.elapsed().as_secs_f64();
    let mut bad = (0, None);
    for worker in workers {
        let (count, first) = worker?;
        bad = (bad.0 + count, bad.1.or(first));
    }
    Ok(FeedRate { seconds, kinds: run.meter.take(), bad })
}

/// What the threads of a measurement share.
struct Run {
    shards: ShardSet,
    stretches: Vec<(usize, Range<usize>)>,
    next: AtomicUsize,
    stop: AtomicBool,
    meter: WorkMeter,
    tokenizer: Option<Tokenizer>,
}

impl Run {
    /// Works until the samples or the time are used up. Returns the number of bad samples and the
    /// first of them.
    fn work(
        &self,
        options: &FeedOptions,
        since: Instant,
    ) -> Result<(u64, Option<DataError>), DataError> {
        let size = u32::try_from(options.image_size).unwrap_or(u32::MAX);
        let mut shaper = Shaper::new(Preprocessing::default(), size);
        let mut bad = (0, None);
        while let Some((shard, samples)) =
            self.stretches.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let shard = self.shards.shard(*shard)?;
            for number in samples.clone() {
                if self.stop.load(Ordering::Relaxed) || since.elapsed() > options.limit {
                    self.stop.store(true, Ordering::Relaxed);
                    return Ok(bad);
                }
                match self.sample(&shard, number, options.frames, &mut shaper) {
                    Ok(()) => {}
                    Err(error @ DataError::BadSample { .. }) => {
                        bad = (bad.0 + 1, bad.1.or(Some(error)));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(bad)
    }

    fn sample(
        &self,
        shard: &OpenShard,
        number: usize,
        frames: usize,
        shaper: &mut Shaper,
    ) -> Result<(), DataError> {
        let bad = |reason| DataError::BadSample {
            shard: shard.path.to_string(),
            key: shard.sample(number).key.to_string(),
            reason,
        };
        let sample = self.meter.read(shard, number, &[Media::Video, Media::Image])?;
        let Some((media, bytes)) = &sample.visual else {
            return Err(bad("the sample has neither a picture nor a clip".to_owned()));
        };
        self.meter.decode(*media, bytes, frames, shaper).map_err(bad)?;
        if let (Some(tokenizer), Ok(Some(caption))) = (&self.tokenizer, sample.texts.caption()) {
            let encoded = self.meter.time(*media, DataPart::Tokenise, || tokenizer.encode(caption));
            encoded.map_err(|error| bad(error.to_string()))?;
        }
        Ok(())
    }
}

/// Samples per second that one GPU needs if it computes the paper's model at `rate` operations per
/// second. Only the operations of the model are counted, so a GPU needs fewer.
#[must_use]
pub fn needed_per_gpu(kind: Visual, frames: usize, rate: f64) -> f64 {
    let frames = match kind {
        // A picture is one tubelet of two equal frames.
        Visual::Image => 2,
        Visual::Video => frames,
    };
    let model = Model::default();
    rate / useful_operations(&model, Tokens::of(&model, frames, 0, ASSUMED_TARGET_TOKENS))
}
