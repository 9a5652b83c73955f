//! Options of a preparation.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Default length of the short side in pixels: ⌊256·256/224⌋, to which the default transform of a
/// recipe scales the short side for frames of 256 pixels. Of a prepared picture of this size it
/// only cuts out the middle, so nothing is scaled twice.
const SHORT_SIDE: u32 = 292;

/// Default quality of JPEGs. `data/benches/runs/` compares sizes and errors.
const QUALITY: u8 = 90;

/// Default size of a shard in MiB. A terabyte has 4,000 such shards, more than the 1,536 lanes that
/// a batch of the paper is read from; and a run that is killed loses at most one shard per thread.
const SHARD_MIB: u64 = 256;

/// Where the prepared set goes, and how its pictures and clips are stored.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct OutputArgs {
    /// Folder for the prepared shards. It is created. The same command goes on with a folder in
    /// which it was interrupted.
    #[arg(long, value_name = "FOLDER")]
    pub into: PathBuf,
    /// First part of the names of the shards: NAME-000000.tar.
    #[arg(long, default_value = "shard")]
    pub name: String,
    /// Pictures and frames with a longer short side are scaled down to this length, in pixels. The
    /// default is the length to which the transform resize_center_crop scales frames of 256 pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = SHORT_SIDE)]
    pub short_side: u32,
    /// Quality of the JPEGs, 1 to 100.
    #[arg(long, default_value_t = QUALITY)]
    pub quality: u8,
    /// Most frames that are kept of each second of a clip, or `all`. At least 64 frames of a clip
    /// are kept if it has them, with its first and its last frame.
    #[arg(long, value_name = "NUMBER", default_value = "8")]
    pub frames_per_second: FrameRate,
    /// Size of a shard in MiB, about.
    #[arg(long, default_value_t = SHARD_MIB)]
    pub shard_mib: u64,
    /// Number of threads. 0 is one for each CPU that this process may use.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Most frames that are kept of each second of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameRate {
    /// All frames.
    All,
    /// A number of frames.
    AtMost(u32),
}

impl FromStr for FrameRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "all" => Ok(Self::All),
            Ok(0) | Err(_) => Err("give a whole number of frames above 0, or `all`".to_owned()),
            Ok(number) => Ok(Self::AtMost(number)),
        }
    }
}

impl fmt::Display for FrameRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::AtMost(number) => number.fmt(f),
        }
    }
}

/// Options that change the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// First part of the names of the shards.
    pub name: String,
    /// Largest length of the short side in pixels.
    pub short_side: u32,
    /// Quality of the JPEGs.
    pub quality: u8,
    /// Most frames that are kept of each second of a clip.
    pub frames_per_second: FrameRate,
    /// Size of a shard in MiB, about.
    pub shard_mib: u64,
}

impl OutputArgs {
    /// The options that change the result, checked.
    ///
    /// # Errors
    /// [`DataError::Prepare`] if a value cannot be used.
    pub fn options(&self) -> Result<Options, DataError> {
        let refused = |reason: String| DataError::Prepare { folder: self.into.clone(), reason };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(is_plain) {
            let name = &self.name;
            return Err(refused(format!(
                "--name is `{name}`, but must consist of letters, digits, `-` and `_`"
            )));
        }
        for (name, value, range) in [
            ("--short-side", u64::from(self.short_side), 16..=8192),
            ("--quality", u64::from(self.quality), 1..=100),
            ("--shard-mib", self.shard_mib, 1..=65_536),
        ] {
            if !range.contains(&value) {
                let (least, most) = range.into_inner();
                return Err(refused(format!(
                    "{name} is {value}, but must be between {least} and {most}"
                )));
            }
        }
        Ok(Options {
            name: self.name.clone(),
            short_side: self.short_side,
            quality: self.quality,
            frames_per_second: self.frames_per_second,
            shard_mib: self.shard_mib,
        })
    }
}

impl Options {
    /// Size of a shard in bytes, about.
    pub(super) fn shard_bytes(&self) -> u64 {
        self.shard_mib << 20
    }

    /// Name of each option on the command line, with its value.
    pub(super) fn named(&self) -> [(&'static str, String); 5] {
        [
            ("--name", self.name.clone()),
            ("--short-side", self.short_side.to_string()),
            ("--quality", self.quality.to_string()),
            ("--frames-per-second", self.frames_per_second.to_string()),
            ("--shard-mib", self.shard_mib.to_string()),
        ]
    }
}
