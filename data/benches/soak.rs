//! Reads and decodes all kinds of samples for a long time and prints the memory of the process,
//! one line of JSON per minute and one at the end.
//!
//! `cargo bench -p vljepa-data --bench soak --features video -- --seconds 3600 CASES` packs the
//! pictures and clips of the folder CASES (`data/tests/cases`), broken ones too, into a shard and
//! streams batches of them. Nothing is cached, so every batch is read and decoded again. The last
//! line says how much memory grew between a tenth of the time and the end.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use serde_json::json;
use vljepa_data::decode::Media;
use vljepa_data::stream::BatchStream;
use vljepa_data::synthetic::SynthArgs;
use vljepa_recipes::RankId;
use vljepa_recipes::schema::Recipe;

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Arguments {
    /// Folder with pictures and clips.
    cases: PathBuf,
    /// Duration in seconds.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// Number of reader threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
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
    let folder = tempfile::tempdir()?;
    for (media, name) in [(Media::Image, "images"), (Media::Video, "clips")] {
        let count = pack(&arguments.cases, media, &folder.path().join(name))?;
        eprintln!("{count} {name}");
    }
    // The synthetic set has a tokenizer.
    let synthetic = folder.path().join("synthetic");
    let args = SynthArgs { dir: synthetic.clone(), seed: 0, scale_permille: 10 };
    vljepa_data::synthetic::run(&args)?;
    let recipe = recipe(folder.path(), &synthetic.join("tokenizer.json"), arguments.threads)?;
    let mut stream = BatchStream::open(&recipe, 0, RankId::SINGLE, 0)?;
    let (since, mut printed) = (Instant::now(), Instant::now());
    let limit = Duration::from_secs(arguments.seconds);
    let mut early_mib = None;
    while since.elapsed() < limit {
        stream.next()?;
        if early_mib.is_none() && since.elapsed() > limit / 10 {
            early_mib = Some(resident_mib()?);
        }
        if printed.elapsed() >= INTERVAL {
            printed = Instant::now();
            let stats = stream.stats();
            let line = json!({
                "seconds": since.elapsed().as_secs(),
                "samples": stats.samples_read,
                "bad_samples": stats.bad_samples,
                "resident_mib": resident_mib()?,
            });
            println!("{line}");
        }
    }
    let early_mib = early_mib.context("the time is too short for a batch")?;
    let stats = stream.stats();
    let line = json!({
        "seconds": since.elapsed().as_secs(),
        "samples": stats.samples_read,
        "bad_samples": stats.bad_samples,
        "resident_mib": {"at a tenth": early_mib, "at the end": resident_mib()?},
    });
    println!("{line}");
    Ok(())
}

/// Packs the pictures or clips of a folder with captions into one shard. Returns their number.
fn pack(cases: &Path, media: Media, folder: &Path) -> anyhow::Result<usize> {
    fs::create_dir_all(folder)?;
    let mut paths =
        fs::read_dir(cases)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let mut tar = tar::Builder::new(fs::File::create(folder.join("shard.tar"))?);
    let mut count = 0;
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let Some(extension) = extension.filter(|e| Media::of_extension(e) == Some(media)) else {
            continue;
        };
        let members = [(extension, fs::read(&path)?), ("txt", b"a red circle".to_vec())];
        for (field, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{count:04}.{field}"), &*bytes)?;
        }
        count += 1;
    }
    tar.finish()?;
    anyhow::ensure!(count > 0, "{} has no file of this kind", cases.display());
    Ok(count)
}

fn recipe(folder: &Path, tokenizer: &Path, threads: usize) -> anyhow::Result<Recipe> {
    let source = |name: &str, visual: &str| {
        let transform =
            if visual == "image" { "random_resized_crop" } else { "resize_center_crop" };
        json!({
            "shards": folder.join(name), "visual": visual, "transform": transform,
            "targets": [{"from": "caption"}],
        })
    };
    let text = json!({"tokenizer": tokenizer, "vocab_size": 1_000_000});
    Ok(serde_json::from_value(json!({
        "name": "soak",
        "model": {"predictor": text, "y_encoder": text},
        "data": {
            "sources": {"images": source("images", "image"), "clips": source("clips", "video")},
            "threads": threads, "cache_mib": 0,
            "bad_samples": {"max_fraction": 1.0, "max_consecutive": 100},
        },
        "stages": [{
            "name": "soak", "steps": 1_000_000_000, "batch": 16, "frames": 8, "mixing": "sample",
            "mixture": {"images": 1, "clips": 1}, "learning_rate": {"peak": 0.001},
        }],
    }))?)
}

/// Resident memory of this process in MiB.
fn resident_mib() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
