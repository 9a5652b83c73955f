//! `vljepa-launch latency`: how long a trained model takes to answer.

use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::Job;

use super::call::{absolute, run_worker};
use super::jobs::{note_checkpoint, path_error, row, show_json, with_weights};
use crate::cli;
use crate::error::LaunchError;
use crate::terminal;

/// Result of the job.
#[derive(Debug, Serialize, Deserialize)]
struct Latency {
    step: u64,
    device: String,
    frames: usize,
    repeats: usize,
    query: String,
    /// Text of the answer, or `None` of a model that writes none.
    text: Option<String>,
    query_embedding: Seconds,
    encoder: Seconds,
    decoder: Option<Seconds>,
    total: Seconds,
}

/// Mean and standard deviation of all repeats.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Seconds {
    mean_s: f64,
    sd_s: f64,
}

/// Prints mean and spread of the parts of an answer.
pub(crate) async fn latency(arguments: &cli::Latency) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    if !arguments.video.is_file() {
        return Err(path_error("the image or clip", &arguments.video, "is not a file"));
    }
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let job = Job::Latency {
        step: arguments.checkpoint.step,
        file: absolute(&arguments.video),
        frames: count(arguments.frames),
        repeats: count(arguments.repeats),
        query: arguments.query.clone(),
    };
    let found: Latency = run_worker(&directory, &job).await?;
    if arguments.json {
        return show_json(&found);
    }
    let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
    let line = |part: &str, Seconds { mean_s, sd_s }: Seconds| row([part, &ms(mean_s), &ms(sd_s)]);
    let mut rows = vec![row(["part", "mean ms", "sd ms"])];
    rows.push(line("query embedding", found.query_embedding));
    rows.push(line("encoder", found.encoder));
    rows.extend(found.decoder.map(|decoder| line("decoder", decoder)));
    rows.push(line("all", found.total));
    terminal::result(&terminal::table(&rows));
    let Latency { device, frames, repeats, .. } = &found;
    terminal::note(&format!("{frames} frames, {repeats} answers, on {device}"));
    if let Some(text) = &found.text {
        terminal::note(&format!("the answer: {text}"));
    }
    note_checkpoint(&directory, found.step);
    Ok(0)
}
