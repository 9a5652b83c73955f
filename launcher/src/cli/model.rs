//! Arguments of commands that use a trained model: `ask`, `caption`, `latency`, `search`.

use std::path::PathBuf;

use clap::Args;

use super::OfStep;

#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// Run directory with a checkpoint.
    pub run: PathBuf,
    /// Image or clip: jpg, png, mp4 …
    pub file: PathBuf,
    /// Question about the file.
    pub question: String,
    /// Candidate answers, separated by commas; can be given several times. A run with a Y-decoder
    /// writes the answer without them.
    #[arg(long, value_delimiter = ',')]
    pub answers: Vec<String>,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Caption {
    /// Run directory of a Y-decoder or a VLM with a checkpoint.
    pub run: PathBuf,
    /// Images or clips: jpg, png, mp4 …
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Query for the predictor. Default: that of the recipe's captioning task.
    #[arg(long)]
    pub query: Option<String>,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Latency {
    /// Run directory with a checkpoint.
    pub run: PathBuf,
    /// Image or clip, whose frames are loaded once.
    pub video: PathBuf,
    /// Number of frames (paper §4.4: 64).
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub frames: u32,
    /// Number of measured answers (paper §4.4: 100).
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeats: u32,
    /// Prompt of all answers. Default: the query of the recipe's captioning task.
    #[arg(long)]
    pub query: Option<String>,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Run directory with a checkpoint.
    pub run: PathBuf,
    /// Shards to search: a folder, one tar file, or a brace range such as `clips-{000..127}.tar`.
    pub shards: String,
    /// Text to search for.
    pub text: String,
    /// Largest number of results.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}
