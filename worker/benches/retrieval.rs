//! Times the ranks of texts in a pool of samples, and prints one line of JSON.
//!
//! `cargo bench -p vljepa-worker --bench retrieval` ranks 20,000 texts among 20,000 samples with
//! embeddings of width 1,536 on all CPUs. `--kind` chooses the embeddings: `near`, texts near their
//! samples; `random`, nothing near anything, so that many similarities are compared in f64;
//! `collapsed`, all equal. The result also has the time of the same products in one loop of blocks,
//! without ranks, and the recall at 1.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use rayon::prelude::*;
use serde_json::json;
use vljepa_kernels::testing::normal;
use vljepa_kernels::{Stream, View, ViewMut, Write, linear};
use vljepa_worker::evaluation::metrics::recall;
use vljepa_worker::evaluation::retrieval::Pool;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Near,
    Random,
    Collapsed,
}

#[derive(Debug, Parser)]
struct Arguments {
    /// Number of texts, and of samples.
    #[arg(long, default_value_t = 20_000)]
    pairs: usize,
    /// Width of the embeddings.
    #[arg(long, default_value_t = 1536)]
    width: usize,
    /// Embeddings that are ranked.
    #[arg(long, value_enum, default_value = "near")]
    kind: Kind,
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

fn run(&Arguments { pairs, width, kind, .. }: &Arguments) -> anyhow::Result<()> {
    let random = |seed: usize| -> Vec<Vec<f32>> {
        let row = |i: usize| normal((seed * pairs + i) as u64, width);
        (0..pairs).into_par_iter().map(row).collect()
    };
    let samples = match kind {
        Kind::Near | Kind::Random => random(0),
        Kind::Collapsed => vec![vec![1.0; width]; pairs],
    };
    let mut texts = random(1);
    if let Kind::Near = kind {
        // A similarity of about 0.1 to the own sample: 4 standard deviations of the others.
        for (text, sample) in texts.iter_mut().zip(&samples) {
            text.iter_mut().zip(sample).for_each(|(t, s)| *t += 0.1 * s);
        }
    }
    let right: Vec<Vec<usize>> = (0..pairs).map(|i| vec![i]).collect();
    let start = Instant::now();
    let ranks = Pool::new(&samples).ranks(&texts, &right)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({
            "pairs": pairs,
            "width": width,
            "kind": format!("{kind:?}").to_lowercase(),
            "threads": rayon::current_num_threads(),
            "seconds": round(seconds),
            "products_alone_s": round(products(&samples, &texts)?),
            "recall_at_1": recall(&ranks, 1, pairs).value,
            "version": env!("CARGO_PKG_VERSION"),
        })
    );
    Ok(())
}

/// Seconds of all products, in blocks whose results are thrown away.
fn products(samples: &[Vec<f32>], texts: &[Vec<f32>]) -> anyhow::Result<f64> {
    let (samples, width) = (samples.concat(), samples[0].len());
    let rows = samples.len() / width;
    let start = Instant::now();
    for texts in texts.chunks(256) {
        let mut out = vec![0.0; texts.len() * rows];
        let (n, texts) = (texts.len(), texts.concat());
        let texts = View::from_f32(&texts, &[n, width]);
        let samples = View::from_f32(&samples, &[rows, width]);
        let out = ViewMut::from_f32(&mut out, &[n, rows]);
        linear::forward(&Stream::Host, texts, samples, None, Write::Set, out)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
