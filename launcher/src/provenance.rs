//! `run.json`: what ran, where, from which sources, and every attempt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vljepa_recipes::clock;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::Recipe;

use crate::error::LaunchError;
use crate::events::AttemptOutcome;
use crate::local::{self, Programs};
use crate::shards;

/// The content of `run.json`. Top-level facts are those of the newest start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// Name of the run.
    pub name: String,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// Where the launcher was started: the recipe's relative paths mean this folder.
    pub working_directory: PathBuf,
    /// What was typed.
    pub command: Vec<String>,
    /// The sources, when the launcher was started in a checkout.
    pub git: Option<Git>,
    /// BLAKE3 of the programs.
    pub binaries: BTreeMap<String, String>,
    /// Versions of what takes part.
    pub versions: BTreeMap<String, String>,
    /// The machine.
    pub host: Host,
    /// Shard lists of the sources.
    pub shards: BTreeMap<String, ShardList>,
    /// Every start of workers.
    #[serde(default)]
    pub attempts: Vec<AttemptRecord>,
}

/// A checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Git {
    /// Commit.
    pub commit: String,
    /// BLAKE3 of `git diff HEAD`; none when it is empty.
    pub diff_hash: Option<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    /// Name.
    pub name: String,
    /// Processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Kernel.
    pub kernel: String,
}

/// What a source's `shards` named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardList {
    /// Shards.
    pub count: usize,
    /// Bytes of all.
    pub bytes: u64,
    /// BLAKE3 over names and sizes in their order.
    pub hash: String,
}

/// One start of workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AttemptRecord {
    /// 1 for the first.
    pub number: u32,
    /// When, RFC 3339.
    pub started: String,
    /// When; none while it runs.
    pub ended: Option<String>,
    /// How.
    pub outcome: AttemptOutcome,
    /// First step computed.
    pub first_step: Option<u64>,
    /// Last step known.
    pub last_step: u64,
    /// What ended it, when it failed.
    pub fault: Option<String>,
    /// Ranks.
    pub world_size: usize,
    /// BLAKE3 of the worker.
    pub worker: String,
}

impl RunRecord {
    /// Collects the facts of a start and keeps the attempts of those before it.
    pub(crate) async fn collect(
        directory: &RunDirectory,
        recipe: &Recipe,
        recipe_hash: &str,
        programs: &Programs,
    ) -> Self {
        let attempts = Self::read(directory).map(|record| record.attempts).unwrap_or_default();
        let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let mut binaries = BTreeMap::from([("vljepa-worker".to_owned(), hash(&programs.worker))]);
        if let Ok(own) = std::env::current_exe() {
            binaries.insert("vljepa-launch".to_owned(), hash(&own));
        }
        let mut versions =
            BTreeMap::from([("vljepa".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        if let Some(mpirun) = &programs.mpirun {
            let said = local::inquire(&mpirun.display().to_string(), &["--version"]).await;
            if let Some(first) = said.as_deref().and_then(first_line) {
                versions.insert("mpirun".to_owned(), first);
            }
        }
        Self {
            name: recipe.name.clone(),
            recipe_hash: recipe_hash.to_owned(),
            git: git(&folder).await,
            working_directory: folder,
            command: std::env::args().collect(),
            binaries,
            versions,
            host: host(),
            shards: shard_lists(recipe),
            attempts,
        }
    }

    /// Reads it back; none when there is none or it is damaged, because it only informs.
    pub(crate) fn read(directory: &RunDirectory) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(directory.run_json()).ok()?).ok()
    }

    /// Replaces the file.
    pub(crate) fn write(&self, directory: &RunDirectory) -> Result<(), LaunchError> {
        let path = directory.run_json();
        let text = serde_json::to_vec_pretty(self).map_err(|error| LaunchError::Start {
            what: format!("writing {}", path.display()),
            why: error.to_string(),
        })?;
        Ok(atomic_write(&path, &text)?)
    }

    /// Adds an attempt and returns its number.
    pub(crate) fn begin_attempt(&mut self, world_size: usize) -> u32 {
        let number = self.attempts.last().map_or(0, |attempt| attempt.number) + 1;
        self.attempts.push(AttemptRecord {
            number,
            started: clock::now_text(),
            ended: None,
            outcome: AttemptOutcome::Unfinished,
            first_step: None,
            last_step: 0,
            fault: None,
            world_size,
            worker: self.binaries.get("vljepa-worker").cloned().unwrap_or_default(),
        });
        number
    }

    /// Completes the newest attempt.
    pub(crate) fn end_attempt(
        &mut self,
        outcome: AttemptOutcome,
        first_step: Option<u64>,
        last_step: u64,
        fault: Option<String>,
    ) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ended = Some(clock::now_text());
            attempt.outcome = outcome;
            attempt.first_step = first_step;
            attempt.last_step = last_step;
            attempt.fault = fault;
        }
    }
}

fn shard_lists(recipe: &Recipe) -> BTreeMap<String, ShardList> {
    let list = |names: &str| {
        let files = shards::files(names);
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        for file in &files {
            let size = std::fs::metadata(file).map_or(0, |data| data.len());
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{name} {size}\n").as_bytes());
            bytes += size;
        }
        ShardList { count: files.len(), bytes, hash: hasher.finalize().to_hex().to_string() }
    };
    recipe.data.sources.iter().map(|(name, source)| (name.clone(), list(&source.shards))).collect()
}

fn hash(file: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(file).and_then(|mut file| std::io::copy(&mut file, &mut hasher));
    read.map_or_else(|_| "unreadable".to_owned(), |_| hasher.finalize().to_hex().to_string())
}

async fn git(folder: &Path) -> Option<Git> {
    let folder = folder.to_str()?;
    let commit = local::inquire("git", &["-C", folder, "rev-parse", "HEAD"]).await?;
    let diff = local::inquire("git", &["-C", folder, "diff", "HEAD"]).await.unwrap_or_default();
    let diff_hash = (!diff.is_empty()).then(|| blake3::hash(&diff).to_hex().to_string());
    Some(Git { commit: first_line(&commit)?, diff_hash })
}

fn host() -> Host {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
    };
    let memory = field("/proc/meminfo", "MemTotal");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Host {
        name: nix::unistd::gethostname()
            .map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned()),
        cpu: field("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0) / 1024,
        kernel: kernel.trim().to_owned(),
    }
}

fn first_line(bytes: &[u8]) -> Option<String> {
    String::from_utf8_lossy(bytes).lines().next().map(|line| line.trim().to_owned())
}
