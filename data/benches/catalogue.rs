//! Times the start of a stage on many shards, and prints one line of JSON.
//!
//! `cargo bench -p vljepa-data --bench catalogue -- --folder FOLDER` writes `--shards` tars of
//! `--samples` small pictures with captions into FOLDER, unless they are there already. Then it
//! times the first update of their catalogue, and twice the start of a stage: rank 0 reads the
//! catalogue and compares every tar with it, and a stream makes its first batch. The files are in
//! the page cache, so the times are those of the program and of system calls, not of a disk.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]

use std::fs::{self, File};
use std::io::{BufWriter, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use rayon::prelude::*;
use serde_json::json;
use vljepa_data::catalogue::{CatalogueFolder, Catalogues, Expanded, FOLDER, Unlisted, update};
use vljepa_data::storage::Storage;
use vljepa_data::stream::BatchStream;
use vljepa_data::synthetic::SynthArgs;
use vljepa_recipes::RankId;

/// Rows of the first batch: those of one of the paper's ranks.
const BATCH: usize = 128;

#[derive(Debug, Parser)]
struct Arguments {
    /// Folder for the shards. It stays, so that the next run need not write them.
    #[arg(long)]
    folder: PathBuf,
    /// Number of shards.
    #[arg(long, default_value_t = 100_000)]
    shards: usize,
    /// Number of samples in each shard.
    #[arg(long, default_value_t = 10)]
    samples: usize,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { folder, shards, samples, .. } = arguments;
    fs::create_dir_all(folder)?;
    (0..*shards).into_par_iter().try_for_each(|number| write(folder, number, *samples))?;
    // The synthetic set has a tokenizer.
    let synthetic = folder.join("synthetic");
    let args = SynthArgs { dir: synthetic.clone(), seed: 0, scale_permille: 10 };
    vljepa_data::synthetic::run(&args)?;
    let catalogue = folder.join(FOLDER);
    if catalogue.exists() {
        fs::remove_dir_all(&catalogue)?;
    }
    let entry = folder.to_str().context("the folder's name is not UTF-8")?;
    let storage = Storage::default();
    let set = Expanded::of(&storage, entry)?;
    let folder = CatalogueFolder::of(&set, None)?;
    let since = Instant::now();
    let made = update(&storage, &set.shards, &folder, Unlisted::Believe, &|_| {}).made;
    let update_s = since.elapsed().as_secs_f64();
    anyhow::ensure!(made == *shards, "{made} of {shards} records were made");
    let mut starts = Vec::new();
    for _ in 0..2 {
        starts.push(start(entry, &synthetic.join("tokenizer.json"))?);
    }
    let bytes = |name: &str| -> anyhow::Result<u64> {
        let mut bytes = 0;
        for file in fs::read_dir(&catalogue)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with(name) {
                bytes += file.metadata()?.len();
            }
        }
        Ok(bytes)
    };
    println!(
        "{}",
        json!({
            "shards": shards,
            "samples": shards * samples,
            "update_s": round(update_s),
            "starts": starts,
            "head_bytes": bytes("head")?,
            "table_bytes": bytes("tables-")?,
            "version": env!("CARGO_PKG_VERSION"),
        })
    );
    Ok(())
}

/// Times one start of a stage on the shards of `entry`.
fn start(entry: &str, tokenizer: &Path) -> anyhow::Result<serde_json::Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
    let stage = format!(
        "stages=[{{name: start, steps: 10, batch: {BATCH}, frames: 2, mixture: {{images: 1}}, \
         learning_rate: {{peak: 0.001}}}}]"
    );
    let tokenizer = tokenizer.display();
    let sets = [
        stage,
        format!("data.sources.images.shards={entry}"),
        format!("model.predictor.tokenizer={tokenizer}"),
        format!("model.y_encoder.tokenizer={tokenizer}"),
    ];
    let recipe = vljepa_recipes::load(&path, &sets)?.recipe;
    let storage = Storage::default();
    let since = Instant::now();
    let catalogues = Catalogues::of_stage(&storage, &recipe, 0)?;
    let catalogue_s = since.elapsed().as_secs_f64();
    let sent = catalogues.to_bytes();
    let received = Catalogues::from_bytes(&storage, &sent)?;
    let encoded_s = since.elapsed().as_secs_f64();
    let memory = vljepa_data::batch::Vectors;
    let mut stream = BatchStream::open_in(memory, &recipe, &received, 0, RankId::SINGLE, 0)?;
    let batch = stream.next()?;
    anyhow::ensure!(batch.rows() == BATCH, "{} rows", batch.rows());
    Ok(json!({
        "catalogue_s": round(catalogue_s),
        "with_encoding_s": round(encoded_s),
        "first_batch_s": round(since.elapsed().as_secs_f64()),
        "bytes_sent": sent.len(),
    }))
}

/// Writes shard number `number`, unless it exists.
fn write(folder: &Path, number: usize, samples: usize) -> anyhow::Result<()> {
    let path = folder.join(format!("s-{number:06}.tar"));
    if path.exists() {
        return Ok(());
    }
    let mut png = Vec::new();
    let picture = image::RgbImage::new(8, 8);
    picture.write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png)?;
    let mut builder = tar::Builder::new(BufWriter::new(File::create(&path)?));
    for sample in 0..samples {
        for (field, content) in [("png", &png[..]), ("txt", b"a picture")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            let name = format!("{number:06}{sample:04}.{field}");
            builder.append_data(&mut header, name, content)?;
        }
    }
    builder.into_inner()?.flush()?;
    Ok(())
}

fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}
