//! Times the decoding of pictures or clips to square frames, and prints one line of JSON.
//! `compare.py` runs it by turns with other libraries, for which `peers.py` does the same.
//!
//! `cargo bench -p vljepa-data --features video --bench decode -- --frames 8 clip.mp4` decodes
//! eight frames of a clip again and again, as the reader threads of a run do: from bytes in memory
//! to frames of the model's size. A file counts as one sample.
//!
//! With `--reference original.mp4`, it also compares these frames with those of another clip of the
//! same frames: `clip_formats.py` uses it to compare ways to store clips.
#![expect(clippy::print_stdout, reason = "the benchmark's result")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use serde_json::json;
use vljepa_data::decode::{Media, decode};
use vljepa_data::transform::Shaper;
use vljepa_recipes::schema::Preprocessing;

#[derive(Debug, Parser)]
struct Arguments {
    /// Pictures or clips; each thread decodes all of them in turn.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Frames of a clip.
    #[arg(long, default_value_t = 1)]
    frames: usize,
    /// Side of the square frames, in pixels.
    #[arg(long, default_value_t = 256)]
    size: u32,
    /// Threads that decode at the same time.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds after which no thread begins another pass over the files.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Clip whose frames are compared with those of the first file, instead of timing.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let samples: Vec<_> =
        arguments.files.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    if let Some(reference) = &arguments.reference {
        println!("{}", json!({ "psnr": psnr(&samples[0], &read(reference)?, &arguments)? }));
        return Ok(());
    }
    // The first pass fills caches and opens libraries.
    decode_all(&samples, &arguments, &mut shaper(&arguments))?;
    let (begun, cpu_begun) = (Instant::now(), cpu_s()?);
    let decoded: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.threads)
            .map(|_| scope.spawn(|| decode_for(&samples, &arguments, begun)))
            .collect();
        let counts = threads.into_iter().map(|thread| thread.join().expect("no thread panics"));
        counts.sum::<anyhow::Result<usize>>()
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2⁵³")]
    let decoded = decoded as f64;
    let line = json!({
        "peer": "vljepa",
        "frames": arguments.frames,
        "threads": arguments.threads,
        "per_s": decoded / begun.elapsed().as_secs_f64(),
        "per_cpu_s": decoded / (cpu_s()? - cpu_begun),
    });
    println!("{line}");
    Ok(())
}

fn shaper(arguments: &Arguments) -> Shaper {
    Shaper::new(Preprocessing::default(), arguments.size)
}

/// Decodes all samples until the time is over. Returns how many were decoded.
fn decode_for(
    samples: &[(Media, Vec<u8>)],
    arguments: &Arguments,
    begun: Instant,
) -> anyhow::Result<usize> {
    let mut shaper = shaper(arguments);
    let mut decoded = 0;
    while begun.elapsed().as_secs_f64() < arguments.seconds {
        decoded += decode_all(samples, arguments, &mut shaper)?;
    }
    Ok(decoded)
}

fn decode_all(
    samples: &[(Media, Vec<u8>)],
    arguments: &Arguments,
    shaper: &mut Shaper,
) -> anyhow::Result<usize> {
    for (media, bytes) in samples {
        decode(*media, bytes, arguments.frames, shaper).map_err(anyhow::Error::msg)?;
    }
    Ok(samples.len())
}

/// Peak signal-to-noise ratio of the frames of two clips, in dB.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2⁵³")]
fn psnr(
    sample: &(Media, Vec<u8>),
    reference: &(Media, Vec<u8>),
    arguments: &Arguments,
) -> anyhow::Result<f64> {
    let frames = |(media, bytes): &(Media, Vec<u8>)| {
        let clip = decode(*media, bytes, arguments.frames, &mut shaper(arguments));
        clip.map(|clip| clip.frames().collect::<Vec<_>>().concat()).map_err(anyhow::Error::msg)
    };
    let (ours, theirs) = (frames(sample)?, frames(reference)?);
    let squares = ours.iter().zip(&theirs).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2));
    let mean = squares.sum::<u64>() as f64 / ours.len() as f64;
    Ok(10.0 * (255.0 * 255.0 / mean).log10())
}

fn read(path: &Path) -> anyhow::Result<(Media, Vec<u8>)> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let media = Media::of_extension(&extension)
        .with_context(|| format!("{} is neither a picture nor a clip", path.display()))?;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((media, bytes))
}

/// Processor time of this process in seconds. Other programs on the machine do not change it much.
fn cpu_s() -> anyhow::Result<f64> {
    /// Unit of the times in `/proc/self/stat` on Linux, in hertz.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // The name of the program is in parentheses. User and system time are the fields 14 and 15.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let times = after_name.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(times.sum::<Result<f64, _>>()? / TICKS)
}
