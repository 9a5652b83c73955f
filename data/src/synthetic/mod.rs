//! Synthetic data set of the quickstart, written as WebDataset shards. A small model can learn it
//! in minutes.
//!
//! The set shows coloured shapes that move, grow and shrink on a torus (`scene`). Shapes are drawn
//! in integer arithmetic (`raster`), and each sample has its own random stream (`draws`). So the
//! pixels are the same on every machine, in any order and on any number of threads. Six of the 36
//! pairs of shape and colour are held out of training (`names`). Texts are in `texts`, sizes and
//! counts in `design`.
//!
//! ```text
//! DIR/train/{clips,images,questions}-%06d.tar        mp4 or jpg, txt, json per sample
//! DIR/eval/heldout.tar                               clips of held-out pairs, all motions
//! DIR/eval/retrieval.tar                             clips with distinct captions
//! DIR/eval/{count,colour,exists}.tar                 pictures with one question each
//! DIR/eval/world_prediction.json                     two pictures, and four clips to choose from
//! DIR/labels/{motions,colours,shapes,objects}.json   label → texts
//! DIR/labels/flipped_motions.json                    motion → reverse motion
//! DIR/triplets.json, DIR/triplets_swap.json          [{p1, p2, n, kind}]
//! DIR/tokenizer.json, DIR/manifest.json
//! ```

mod compose;
mod design;
mod draws;
mod encode;
mod labels;
mod manifest;
mod names;
mod raster;
mod sample;
mod scene;
mod stream;
mod texts;
mod vocabulary;
mod world;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use self::design::DESIGN;
use self::manifest::{FileEntry, Manifest, ShardEntry};
use self::sample::Split;
pub use self::stream::{StreamArgs, StreamSummary, run as run_stream};
use crate::error::DataError;

/// Arguments of the command `synth`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct SynthArgs {
    /// Folder of the set. It is created if it does not exist.
    pub dir: PathBuf,
    /// Seed of the random samples. Another seed gives other samples of the same kinds.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of training samples relative to the full set (0.001 to 100). Evaluation splits keep
    /// their size.
    #[arg(long = "scale", value_name = "SCALE", default_value = "1", value_parser = permille)]
    pub scale_permille: u32,
}

/// Contents of a set that was written or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Folder of the set.
    pub dir: PathBuf,
    /// True if the folder already held this set, so that nothing was written.
    pub up_to_date: bool,
    /// Sizes of the splits, one entry per split.
    pub splits: Vec<SplitSummary>,
}

/// Sizes of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSummary {
    /// Folder and name of the split, such as `train/clips`.
    pub name: String,
    /// Number of tars of the split.
    pub shards: usize,
    /// Number of samples in all its tars.
    pub samples: usize,
    /// Total size of its tars, in bytes.
    pub bytes: u64,
}

/// Writes the set, unless the folder already holds a set with the same seed, scale and design.
///
/// # Errors
/// If the folder cannot be written, or FFmpeg or its H.264 encoder is missing.
pub fn run(args: &SynthArgs) -> Result<Summary, DataError> {
    if let Some(manifest) = Manifest::up_to_date(&args.dir, args.seed, args.scale_permille, &DESIGN)
    {
        return Ok(summary(args, &manifest, true));
    }
    encode::prepare()?;
    let manifest_path = args.dir.join(manifest::FILE_NAME);
    if manifest_path.exists() {
        fs::remove_file(&manifest_path).map_err(DataError::io("remove", &manifest_path))?;
    }
    let mut shards = Vec::new();
    for split in Split::TRAIN {
        shards.extend(write_train(args, split)?);
    }
    for split in Split::EVALUATION {
        let (folder, name) = split.place();
        shards.push(write::shard(
            &args.dir,
            &format!("{folder}/{name}.tar"),
            args.seed,
            split,
            0..split.len(),
        )?);
    }
    let manifest = Manifest {
        seed: args.seed,
        scale_permille: args.scale_permille,
        design: DESIGN,
        shards,
        files: [write_texts(args)?, world::write(&args.dir, args.seed)?].concat(),
    };
    write::file(&args.dir, manifest::FILE_NAME, &json(&manifest)?)?;
    Ok(summary(args, &manifest, false))
}

fn write_train(args: &SynthArgs, split: Split) -> Result<Vec<ShardEntry>, DataError> {
    let (folder, name) = split.place();
    let path = |shard: usize| format!("{folder}/{name}-{shard:06}.tar");
    let total = scaled(split.len(), args.scale_permille);
    let mut shards = Vec::new();
    for (shard, first) in (0..total).step_by(DESIGN.samples_per_shard).enumerate() {
        let end = total.min(first + DESIGN.samples_per_shard);
        shards.push(write::shard(&args.dir, &path(shard), args.seed, split, first..end)?);
        tracing::info!("{folder}/{name}: {end} of {total} samples");
    }
    write::remove_stale(&args.dir, path, shards.len())?;
    Ok(shards)
}

fn write_texts(args: &SynthArgs) -> Result<Vec<FileEntry>, DataError> {
    let mut files = Vec::new();
    for (name, labels) in labels::label_files() {
        files.push(write::file(&args.dir, &format!("labels/{name}.json"), &json(&labels)?)?);
    }
    files.push(write::file(
        &args.dir,
        "labels/flipped_motions.json",
        &json(&labels::flipped_motions())?,
    )?);
    files.push(write::file(&args.dir, "triplets.json", &json(&labels::triplets(args.seed))?)?);
    files.push(write::file(
        &args.dir,
        "triplets_swap.json",
        &json(&labels::swap_triplets(args.seed))?,
    )?);
    files.push(write::file(&args.dir, "tokenizer.json", vocabulary::tokenizer_json()?.as_bytes())?);
    Ok(files)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, DataError> {
    serde_json::to_vec_pretty(value).map_err(|error| DataError::Synthetic(error.to_string()))
}

/// Number of samples at a scale, at least one.
fn scaled(samples: usize, permille: u32) -> usize {
    (samples * permille as usize / 1000).max(1)
}

/// Parses a scale such as `0.25` into thousandths.
fn permille(text: &str) -> Result<u32, String> {
    let scale: f64 =
        text.parse().map_err(|_| "not a number; give a scale such as 0.25".to_owned())?;
    if !(0.001..=100.0).contains(&scale) {
        return Err("the scale must be between 0.001 and 100".to_owned());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked"
    )]
    let permille = (scale * 1000.0).round() as u32;
    Ok(permille)
}

fn summary(args: &SynthArgs, manifest: &Manifest, up_to_date: bool) -> Summary {
    let row = |split: &Split| {
        let (folder, name) = split.place();
        let prefix = format!("{folder}/{name}");
        // No split's name is a prefix of another split's name.
        let shards: Vec<&ShardEntry> =
            manifest.shards.iter().filter(|shard| shard.file.path.starts_with(&prefix)).collect();
        SplitSummary {
            name: prefix,
            shards: shards.len(),
            samples: shards.iter().map(|shard| shard.samples).sum(),
            bytes: shards.iter().map(|shard| shard.file.bytes).sum(),
        }
    };
    let splits = Split::TRAIN.iter().chain(&Split::EVALUATION).map(row).collect();
    Summary { dir: args.dir.clone(), up_to_date, splits }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.up_to_date {
            writeln!(f, "{}: up to date", self.dir.display())?;
        } else {
            writeln!(f, "{}: written", self.dir.display())?;
        }
        writeln!(f, "{:<18} {:>6} {:>9} {:>10}", "split", "shards", "samples", "MiB")?;
        for SplitSummary { name, shards, samples, bytes } in &self.splits {
            writeln!(
                f,
                "{name:<18} {shards:>6} {samples:>9} {:>10.1}",
                *bytes as f64 / f64::from(1 << 20)
            )?;
        }
        Ok(())
    }
}
