//! `run.json`: recipe, programs, sources, data and machine of a run, and its attempts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vljepa_recipes::clock;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::Recipe;

use super::fingerprints::{self, FileRecord, Git, ShardList};
use crate::error::LaunchError;
use crate::programs::Programs;
use crate::terminal;

/// Content of `run.json`. The facts outside `attempts` describe the newest start of the launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub name: String,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// Folder in which the launcher was started; relative paths in the recipe refer to it.
    pub working_directory: PathBuf,
    /// Command line of the launcher.
    pub command: Vec<String>,
    /// Commit and changes of the sources, or `None` if the launcher was started outside a checkout.
    pub git: Option<Git>,
    /// BLAKE3 of each program file.
    pub binaries: BTreeMap<String, String>,
    /// Versions of programs, libraries and drivers.
    pub versions: BTreeMap<String, String>,
    /// Machine of the launcher.
    pub host: Host,
    /// Shard list of each source.
    pub shards: BTreeMap<String, ShardList>,
    /// Weights and tokenizers, by recipe key. For `init.run`, the manifest of the checkpoint, which
    /// holds the hashes of its files.
    #[serde(default)]
    pub files: BTreeMap<String, FileRecord>,
    /// Directory of the run that this run reproduces.
    #[serde(default)]
    pub reproduces: Option<PathBuf>,
    /// All attempts of the run, oldest first.
    #[serde(default)]
    pub attempts: Vec<AttemptRecord>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttemptOutcome {
    /// The attempt is running, or its launcher was killed before it could record the end.
    Unfinished,
    /// The run is complete.
    Completed,
    /// A request stopped the attempt after a checkpoint was saved.
    Stopped,
    /// A second Ctrl-C ended the attempt at once.
    Killed,
    /// A fault ended the attempt.
    Failed,
}

/// Hardware and kernel of the launcher's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    pub name: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Number of cores that this process may use.
    pub cores: usize,
    pub memory_mib: u64,
    /// Release of the Linux kernel.
    pub kernel: String,
}

/// One attempt: one start of all workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AttemptRecord {
    /// Number of the attempt, from 1.
    pub number: u32,
    /// Time of the start, RFC 3339.
    pub started: String,
    /// Time of the end, RFC 3339; `None` while the attempt runs.
    pub ended: Option<String>,
    pub outcome: AttemptOutcome,
    /// First step that was computed.
    pub first_step: Option<u64>,
    /// Last step that was reported.
    pub last_step: u64,
    /// The fault as text, if the attempt failed.
    pub fault: Option<String>,
    pub world_size: usize,
    /// BLAKE3 of the worker program.
    pub worker: String,
    /// Hosts of the ranks, without duplicates.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Id of the Slurm job, or `None` for a local attempt.
    #[serde(default)]
    pub job_id: Option<String>,
    /// Hash of each source's shard list.
    #[serde(default)]
    pub shards: BTreeMap<String, String>,
}

/// A source whose shard list differs from that of the previous attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangedShards {
    /// Name of the source.
    pub source: String,
    /// Hash of the list in the previous attempt.
    pub before: String,
    /// Hash of the list in this attempt.
    pub now: String,
}

impl std::fmt::Display for ChangedShards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, before, now } = self;
        let short = |hash: &String| hash.get(..12).unwrap_or(hash).to_owned();
        write!(
            f,
            "the shards of data.sources.{source} differ from those of the previous attempt (list {} before, {} now). \
             This changes the order of samples. Restore the shards, or accept the change.",
            short(before),
            short(now)
        )
    }
}

impl RunRecord {
    /// Collects the facts of this start, takes over the attempts that are already recorded, and
    /// saves the diff of the sources against their commit.
    pub(crate) async fn collect(
        directory: &RunDirectory,
        recipe: &Recipe,
        recipe_hash: &str,
        programs: &Programs,
    ) -> Self {
        let before = Self::read(directory);
        let known = before.as_ref().map(|before| before.files.clone()).unwrap_or_default();
        // A run that has a checkpoint does not read `init`. The files of its first start stay
        // recorded.
        let resumes = directory.newest_checkpoint().is_some();
        let init = recipe.init.clone().filter(|_| !resumes);
        let recipe = Recipe { init, ..recipe.clone() };
        let (mut record, diff) = Self::facts(&recipe, recipe_hash, programs, known).await;
        if let Some(before) = before {
            (record.attempts, record.reproduces) = (before.attempts, before.reproduces);
            let of_init = before.files.into_iter().filter(|(key, _)| key.starts_with("init."));
            record.files.extend(of_init.filter(|_| resumes));
        }
        let path = directory.source_diff();
        if diff.is_empty() {
            // The file may not exist.
            std::fs::remove_file(&path).ok();
        } else if let Err(error) = atomic_write(&path, &diff) {
            terminal::note(&format!("warning: the diff of the sources was not saved: {error}"));
        }
        record
    }

    /// Collects the facts of this moment, without attempts, and the diff of the sources against
    /// their commit. Hashes of files in `known` are reused if the files were not modified.
    pub(crate) async fn facts(
        recipe: &Recipe,
        recipe_hash: &str,
        programs: &Programs,
        known: BTreeMap<String, FileRecord>,
    ) -> (Self, Vec<u8>) {
        let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let (git, diff) = fingerprints::git(&folder).await.unzip();
        let (named, worker) = (recipe.clone(), programs.worker.clone());
        // Hashing reads the weights, which are gigabytes, so it runs on a blocking thread.
        let read = tokio::task::spawn_blocking(move || {
            let own = std::env::current_exe().ok();
            let binaries = [("vljepa-worker", Some(worker)), ("vljepa-launch", own)];
            let binaries = binaries.into_iter().filter_map(|(name, path)| Some((name, path?)));
            let hashes: BTreeMap<String, String> =
                binaries.map(|(name, path)| (name.to_owned(), fingerprints::hash(&path))).collect();
            (hashes, fingerprints::shard_lists(&named), fingerprints::files(&named, &known))
        });
        let (binaries, shards, files) = read.await.unwrap_or_default();
        let record = Self {
            name: recipe.name.clone(),
            recipe_hash: recipe_hash.to_owned(),
            git,
            working_directory: folder,
            command: std::env::args().collect(),
            binaries,
            versions: fingerprints::versions(programs).await,
            host: host(),
            shards,
            files,
            reproduces: None,
            attempts: Vec::new(),
        };
        (record, diff.unwrap_or_default())
    }

    /// Reads `run.json`, or returns `None` if it is missing or damaged.
    pub(crate) fn read(directory: &RunDirectory) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(directory.run_json()).ok()?).ok()
    }

    /// Replaces `run.json` atomically.
    pub(crate) fn write(&self, directory: &RunDirectory) -> Result<(), LaunchError> {
        let path = directory.run_json();
        let text = serde_json::to_vec_pretty(self).map_err(|error| LaunchError::Start {
            what: format!("writing {}", path.display()),
            why: error.to_string(),
        })?;
        Ok(atomic_write(&path, &text)?)
    }

    /// Number of the next attempt.
    pub(crate) fn next_attempt(&self) -> u32 {
        self.attempts.last().map_or(0, |attempt| attempt.number) + 1
    }

    /// Adds an attempt and returns its number.
    pub(crate) fn begin_attempt(&mut self, world_size: usize) -> u32 {
        let number = self.next_attempt();
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
            hosts: Vec::new(),
            job_id: None,
            shards: self
                .shards
                .iter()
                .map(|(name, list)| (name.clone(), list.hash.clone()))
                .collect(),
        });
        number
    }

    /// Reads the shard lists again, except long ones.
    pub(crate) fn refresh_shards(&mut self, recipe: &Recipe) {
        fingerprints::refresh(recipe, &mut self.shards);
    }

    /// Sources whose shard lists differ between the newest attempt and the previous one.
    pub(crate) fn changed_shards(&self) -> Vec<ChangedShards> {
        let [.., before, now] = self.attempts.as_slice() else { return Vec::new() };
        let changed = |(source, now): (&String, &String)| {
            let before = before.shards.get(source).filter(|before| *before != now)?;
            Some(ChangedShards { source: source.clone(), before: before.clone(), now: now.clone() })
        };
        now.shards.iter().filter_map(changed).collect()
    }

    /// Records the checkpoint of another run whose weights this run has started from.
    pub(crate) fn note_init(&mut self, checkpoint: &Path) {
        let manifest = checkpoint.join("manifest.json");
        let record = fingerprints::file(&manifest, None);
        self.files.extend(record.map(|record| ("init.run".to_owned(), record)));
    }

    /// Records the Slurm job of the newest attempt.
    pub(crate) fn note_job(&mut self, job: Option<&str>) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.job_id = job.map(str::to_owned);
        }
    }

    /// Records the hosts of the newest attempt, unless they are already known.
    pub(crate) fn note_hosts(&mut self, hosts: Vec<String>) {
        if let Some(attempt) = self.attempts.last_mut().filter(|attempt| attempt.hosts.is_empty()) {
            attempt.hosts = hosts;
        }
    }

    /// Records how the newest attempt ended.
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
