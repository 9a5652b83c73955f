//! Result of the worker's look at files of captions.

use serde::{Deserialize, Serialize};

/// Scores of the captions in a file, as `vljepa-worker score` prints them in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum CaptionScores {
    /// The captions were compared with their references.
    Scored {
        /// CIDEr-D, from 0 to 10.
        cider: f64,
        /// BLEU-4 as a fraction.
        bleu4: f64,
        /// ROUGE-L as a fraction.
        rouge_l: f64,
        /// Number of captions.
        n: usize,
        /// Number of pictures with references but without a caption, which do not count.
        left_out: usize,
    },
    /// A file cannot be used.
    Failed {
        /// The error, with the path.
        error: String,
    },
}
