//! The command `bench` of `vljepa-shards`.

use std::io::Write;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use vljepa_data::catalogue::Catalogue;
use vljepa_data::feed_rate::{FeedOptions, FeedRate, measure, needed_per_gpu};
use vljepa_data::storage::Storage;
use vljepa_recipes::protocol::{DataPart, KindWork};
use vljepa_recipes::schema::Visual;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Folder of tars, single tar, range such as clips-{000000..000127}.tar, or .txt file that
    /// lists shards; local or with a URL (s3://, gs://, http://, https://).
    shards: String,
    /// Frames of each clip.
    #[arg(long, default_value_t = 8)]
    frames: usize,
    /// Side of the square frames, in pixels.
    #[arg(long, default_value_t = 256)]
    image_size: usize,
    /// Number of threads. Default: the CPUs that this process may use.
    #[arg(long)]
    threads: Option<usize>,
    /// Seconds after which the measurement ends.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// A tokenizer.json, to tokenise the captions too.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Folder of the catalogue, as the key `catalogue` beside `shards` in a recipe.
    #[arg(long)]
    catalogue: Option<PathBuf>,
    /// Rate at which a GPU computes the paper's model, in 10¹² operations per second. Default: 40 %
    /// of an H200's peak in bf16.
    #[arg(long, default_value_t = 400.0)]
    gpu_tflops: f64,
}

/// Measures how fast the shards are read and decoded, and prints how many GPUs that feeds.
pub(crate) fn bench(arguments: &BenchArgs, output: &mut impl Write) -> Result<()> {
    let BenchArgs { shards, frames, image_size, seconds, gpu_tflops, .. } = arguments;
    let cpus = available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.threads.unwrap_or(cpus);
    ensure!(*frames > 0, "--frames must be at least 1");
    ensure!((1..=4096).contains(image_size), "--image-size must be between 1 and 4096");
    ensure!((1..=4096).contains(&threads), "--threads must be between 1 and 4096");
    ensure!(*seconds > 0.0 && *seconds <= 86_400.0, "--seconds must be between 0 and 86400");
    ensure!(*gpu_tflops > 0.0, "--gpu-tflops must be above 0");
    let storage = Storage::default();
    let catalogue = Catalogue::open(&storage, shards, arguments.catalogue.as_deref())?;
    let options = FeedOptions {
        frames: *frames,
        image_size: *image_size,
        threads,
        limit: Duration::from_secs_f64(*seconds),
        tokenizer: arguments.tokenizer.clone(),
    };
    let samples: u64 = catalogue.lengths().sum();
    writeln!(
        output,
        "{shards}: {samples} samples in {} shards; {frames} frames of {image_size}×{image_size} \
         pixels on {threads} threads",
        catalogue.lengths().count()
    )?;
    let rate = measure(&storage, catalogue, &options)?;
    print(&rate, arguments, threads, output)?;
    if threads > cpus {
        writeln!(
            output,
            "note: this process may use {cpus} CPUs, so that {threads} threads wait for each other"
        )?;
    }
    if let (count, Some(first)) = &rate.bad {
        writeln!(output, "note: {count} samples cannot be used; the first: {first}")?;
    }
    let read: u64 = rate.kinds.values().map(|work| work.samples).sum();
    ensure!(read > 0, "no sample was decoded");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a measurement are small")]
fn print(
    rate: &FeedRate,
    arguments: &BenchArgs,
    threads: usize,
    output: &mut impl Write,
) -> Result<()> {
    let BenchArgs { frames, gpu_tflops, .. } = arguments;
    for (kind, work) in rate.kinds.iter().filter(|(_, work)| work.samples > 0) {
        // Rate if all threads worked on this kind.
        let per_thread = work.samples as f64 / work.total_s().max(1e-9);
        let all = per_thread * threads as f64;
        let megabytes = all * work.bytes as f64 / work.samples as f64 / 1e6;
        let name = match kind {
            Visual::Image => "images",
            Visual::Video => "clips",
        };
        writeln!(
            output,
            "{name}: {all:.1} a second ({per_thread:.1} per thread), {megabytes:.1} MB/s, from {} \
             in {:.1} s",
            work.samples, rate.seconds
        )?;
        writeln!(output, "  {}", shares(work))?;
        let needed = needed_per_gpu(*kind, *frames, gpu_tflops * 1e12);
        writeln!(
            output,
            "  feed {:.2} GPUs that train the paper's model at {gpu_tflops:.0} TFLOP/s and take \
             {needed:.0} a second each",
            all / needed
        )?;
        if let Some((part, share)) = work.longest() {
            writeln!(output, "  limit: {} ({:.0} % of the work)", limit(part), 100.0 * share)?;
        }
    }
    Ok(())
}

/// Share of each part in the work.
fn shares(work: &KindWork) -> String {
    let share = |part: DataPart| {
        let seconds = work.seconds.get(&part).copied().unwrap_or_default();
        format!("{} {:.0} %", part.name(), 100.0 * seconds / work.total_s().max(1e-9))
    };
    DataPart::ALL.map(share).join(", ")
}

/// What limits the rate if this part takes longest.
fn limit(part: DataPart) -> &'static str {
    match part {
        DataPart::Read => "storage; a second run may read the same bytes from memory",
        DataPart::Decode => "decoding on these cores",
        DataPart::Resize => "resizing on these cores",
        DataPart::Tokenise => "tokenising on these cores",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;
    use vljepa_data::feed_rate::FeedRate;
    use vljepa_recipes::protocol::{DataPart, KindWork};
    use vljepa_recipes::schema::Visual;

    use super::{BenchArgs, print};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: BenchArgs,
    }

    #[test]
    fn the_rate_of_a_kind_is_that_of_all_threads_working_on_it() {
        let line = Line::parse_from(["bench", "set", "--gpu-tflops", "790"]);
        let clips = KindWork {
            samples: 400,
            bytes: 400_000_000,
            seconds: BTreeMap::from([(DataPart::Read, 1.0), (DataPart::Decode, 9.0)]),
        };
        let rate = FeedRate {
            seconds: 2.5,
            kinds: BTreeMap::from([(Visual::Video, clips)]),
            bad: (0, None),
        };
        let mut output = Vec::new();
        print(&rate, &line.arguments, 8, &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        // 40 clips in a second of a thread.
        assert!(text.contains("clips: 320.0 a second (40.0 per thread), 320.0 MB/s"), "{text}");
        assert!(text.contains("read 10 %, decode 90 %, resize 0 %"), "{text}");
        // The arithmetic floor of 8 frames is 199 clips a second at this rate.
        assert!(text.contains("take 199 a second each"), "{text}");
        assert!(text.contains("feed 1.61 GPUs"), "{text}");
        assert!(text.contains("limit: decoding on these cores (90 % of the work)"), "{text}");
    }
}
