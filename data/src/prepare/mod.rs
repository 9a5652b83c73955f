//! Makes training-ready shards of a raw set: pictures and clips are decoded once, scaled down, and
//! stored so that a few frames are read quickly; texts and all other fields are kept.
//!
//! A set is divided into parts ([`RawSet::parts`]). Each part becomes one shard, or several of
//! equal size. The result depends only on the set and the options, never on threads or
//! interruptions.
//!
//! ```text
//! INTO/plan.json            options, and what the set was when it was begun
//! INTO/vljepa-parts/        finished parts; removed at the end
//! INTO/NAME-%06d.tar        jpg or mp4, txt, json per sample
//! INTO/vljepa-catalogue/    catalogue of the shards
//! INTO/left-out.jsonl       items that did not become samples, with the reason
//! INTO/stats.json           counts, durations, sizes
//! INTO/manifest.json        size and hash of each shard; written last
//! ```
//!
//! A part is written beside its name, synced and renamed. So a run that was killed goes on with the
//! parts that are missing.

mod finish;
mod folder;
pub mod item;
mod jpeg;
mod options;
mod part;
mod plan;
pub mod sets;
mod spool;
mod stats;
mod visual;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

pub use self::options::{FrameRate, Options, OutputArgs};
pub use self::sets::{Part, RawSet, SetCommand};
pub use self::stats::Stats;

use self::folder::Folder;
use self::part::PartMaker;
use self::plan::Plan;
use crate::error::DataError;
use crate::storage::Storage;

/// Number of items that each thread has at hand, so that it seldom waits for another.
const ITEMS_PER_THREAD: usize = 4;

/// Progress of a preparation.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of parts of the set. 0 until it is known.
    pub parts: AtomicU64,
    /// Number of finished parts, with those of earlier runs.
    pub finished: AtomicU64,
    /// Number of samples that this run has made.
    pub samples: AtomicU64,
    /// Number of items that this run has left out.
    pub left_out: AtomicU64,
    /// Bytes of the samples that this run has made.
    pub bytes: AtomicU64,
}

impl Progress {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
    }
}

/// Result of a preparation.
#[derive(Debug)]
pub struct Prepared {
    /// Whether the folder already held the whole result.
    pub up_to_date: bool,
    /// Number of shards.
    pub shards: usize,
    /// Counts of samples and of items that were left out.
    pub stats: Stats,
}

/// Prepares a set, or goes on with a preparation that was interrupted.
///
/// # Errors
/// If the set cannot be read, the folder cannot be written or belongs to another preparation, or no
/// item becomes a sample.
pub fn run(command: &SetCommand, progress: &Progress) -> Result<Prepared, DataError> {
    let output = command.output();
    let options = output.options()?;
    let folder = Folder::open(&output.into)?;
    let prepared = run_in(&folder, command, &options, progress);
    prepared.map_err(|error| {
        folder.abandon();
        folder.explain(error)
    })
}

fn run_in(
    folder: &Folder,
    command: &SetCommand,
    options: &Options,
    progress: &Progress,
) -> Result<Prepared, DataError> {
    let set = command.open(&folder.input_catalogue())?;
    let threads = match command.output().threads {
        0 => available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("prepare-{number}"))
        .build()
        .map_err(|error| DataError::Thread(std::io::Error::other(error)))?;
    let plan = match folder.plan()? {
        Some(plan) => plan.check(folder, options, &set)?,
        None => folder.begin(Plan::make(&set, options, &pool)?)?,
    };
    if let Some(prepared) = finish::finished(folder)? {
        return Ok(prepared);
    }
    let parts = set.parts(plan.items_per_part)?;
    if parts.len() != plan.parts {
        return Err(folder.refusal(format!(
            "the set had {} parts when this folder was begun, and has {} now; prepare it into \
             another folder",
            plan.parts,
            parts.len()
        )));
    }
    let missing = folder.missing(parts.len());
    progress.parts.store(u64::try_from(parts.len()).unwrap_or(0), Ordering::Relaxed);
    Progress::add(&progress.finished, parts.len() - missing.len());
    let batch = ITEMS_PER_THREAD.max((2 * threads).div_ceil(threads.min(missing.len()).max(1)));
    let maker = PartMaker { set: &set, options, folder, pool: &pool, batch, progress };
    make_parts(&maker, &parts, &missing, threads)?;
    finish::finish(folder, &plan, &Storage::default())
}

/// Makes the parts with the numbers `missing`, some at a time. After an error, no further part is
/// begun, and the parts that are being made stop.
fn make_parts(
    maker: &PartMaker<'_>,
    parts: &[Part],
    missing: &[usize],
    threads: usize,
) -> Result<(), DataError> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(missing.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let claimed = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&number) = missing.get(claimed) else { break };
                    if let Err(error) = maker.make(number, &parts[number], &stop) {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        if !stop.swap(true, Ordering::Relaxed) {
                            *failed = Some(error);
                        }
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
