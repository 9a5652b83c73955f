//! Jobs of worker processes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Check, Drill, StreamJob};

/// Start of a line of standard error that says how much of a job is done. A job that is no training
/// job prints such lines.
pub const PROGRESS: &str = "progress: ";

/// Job of a worker process. The launcher writes it as a JSON file and names the file on the
/// worker's command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Train from the newest checkpoint that verifies to the end of the last stage, with the
    /// recipe's evaluations.
    Train {
        /// Number of this start of the run directory, counted from 1.
        attempt: u32,
        /// Number of ranks of this attempt: that of the recipe, or a smaller one if the run
        /// continues without lost nodes.
        world_size: usize,
        /// Faults to inject; each names its attempt.
        drills: Vec<Drill>,
    },
    /// Check whether ranks can run on this node, and print one [`Checked`](super::Checked) per
    /// line.
    Check(Check),
    /// Score the recipe's tasks.
    Evaluate {
        /// Step of the checkpoint, or `None` for the newest that verifies.
        step: Option<u64>,
    },
    /// Rank answers to a question about one image or clip.
    Ask {
        /// Step of the checkpoint, or `None` for the newest that verifies.
        step: Option<u64>,
        /// An image or video file, such as jpg, png or mp4.
        file: PathBuf,
        /// Query for the predictor.
        question: String,
        /// Candidate answers to rank.
        answers: Vec<String>,
    },
    /// Write the text of images and clips with a Y-decoder or a VLM.
    Caption {
        /// Step of the checkpoint, or `None` for the newest that verifies.
        step: Option<u64>,
        /// Image or video files, such as jpg, png or mp4.
        files: Vec<PathBuf>,
        /// Query for the predictor, or `None` for that of the recipe's captioning task.
        query: Option<String>,
    },
    /// Measure how long the model takes to answer one prompt about a video.
    Latency {
        /// Step of the checkpoint, or `None` for the newest that verifies.
        step: Option<u64>,
        /// An image or video file.
        file: PathBuf,
        /// Number of frames of the video.
        frames: usize,
        /// Number of measured answers.
        repeats: usize,
        /// Prompt, or `None` for the query of the recipe's captioning task.
        query: Option<String>,
    },
    /// Describe a video while it is shown, and print each
    /// [`StreamEvent`](super::StreamEvent) as a line of JSON.
    Stream(StreamJob),
    /// Rank the samples of shards by their similarity to a text.
    Search {
        /// Step of the checkpoint, or `None` for the newest that verifies.
        step: Option<u64>,
        /// Shards, written as a source's `shards`.
        shards: String,
        /// Text to search for.
        text: String,
        /// Maximum number of results.
        limit: usize,
    },
    /// Write the weights of a checkpoint under their published names.
    Export {
        /// Step of the checkpoint, or `None` for the newest that verifies.
        step: Option<u64>,
        /// Folder that is created for the weights.
        folder: PathBuf,
    },
}
