//! `run.json`: what ran, where, from which sources, and every attempt.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vljepa_recipes::clock;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::Recipe;

use crate::error::LaunchError;
use crate::events::AttemptOutcome;
use crate::fingerprints::{self, FileRecord, Git, ShardList};
use crate::local::Programs;
use crate::terminal;

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
    /// Weights and tokenizers, by the key that names them.
    #[serde(default)]
    pub files: BTreeMap<String, FileRecord>,
    /// The run that this one reproduces.
    #[serde(default)]
    pub reproduces: Option<PathBuf>,
    /// Every start of workers.
    #[serde(default)]
    pub attempts: Vec<AttemptRecord>,
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
    /// Machines of the ranks, each once.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The batch job it ran in.
    #[serde(default)]
    pub job_id: Option<String>,
    /// Hash of each source's shard list.
    #[serde(default)]
    pub shards: BTreeMap<String, String>,
}

/// A source whose shards are others than in the attempt before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangedShards {
    /// The source.
    pub source: String,
    /// Hash of its list in the attempt before.
    pub before: String,
    /// Its hash now.
    pub now: String,
}

impl std::fmt::Display for ChangedShards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, before, now } = self;
        let short = |hash: &String| hash.get(..12).unwrap_or(hash).to_owned();
        write!(
            f,
            "the shards of data.sources.{source} are others than in the attempt before (list {} then, {} now): \
             the order of samples is no longer the same; restore them, or go on knowing it",
            short(before),
            short(now)
        )
    }
}

impl RunRecord {
    /// Collects the facts of a start, keeps the attempts of those before it, and saves what the sources differ by from their commit.
    pub(crate) async fn collect(
        directory: &RunDirectory,
        recipe: &Recipe,
        recipe_hash: &str,
        programs: &Programs,
    ) -> Self {
        let before = Self::read(directory);
        let known = before.as_ref().map(|before| before.files.clone()).unwrap_or_default();
        let (mut record, diff) = Self::facts(recipe, recipe_hash, programs, known).await;
        if let Some(before) = before {
            (record.attempts, record.reproduces) = (before.attempts, before.reproduces);
        }
        let path = directory.source_diff();
        if diff.is_empty() {
            // It may not be there.
            std::fs::remove_file(&path).ok();
        } else if let Err(error) = atomic_write(&path, &diff) {
            terminal::note(&format!("warning: the changes of the sources are not saved: {error}"));
        }
        record
    }

    /// The facts of this moment without any attempt, and what the sources differ by from their commit. `known` are files that need
    /// not be read again when nobody touched them.
    pub(crate) async fn facts(
        recipe: &Recipe,
        recipe_hash: &str,
        programs: &Programs,
        known: BTreeMap<String, FileRecord>,
    ) -> (Self, Vec<u8>) {
        let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let (git, diff) = fingerprints::git(&folder).await.unzip();
        let (named, worker) = (recipe.clone(), programs.worker.clone());
        // Weights are gigabytes.
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

    /// Number of the attempt that begins next.
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

    /// Looks at the shard lists again, as a restart does.
    pub(crate) fn refresh_shards(&mut self, recipe: &Recipe) {
        fingerprints::refresh(recipe, &mut self.shards);
    }

    /// Sources whose shards are others in the newest attempt than in the one before it.
    pub(crate) fn changed_shards(&self) -> Vec<ChangedShards> {
        let [.., before, now] = self.attempts.as_slice() else { return Vec::new() };
        let changed = |(source, now): (&String, &String)| {
            let before = before.shards.get(source).filter(|before| *before != now)?;
            Some(ChangedShards { source: source.clone(), before: before.clone(), now: now.clone() })
        };
        now.shards.iter().filter_map(changed).collect()
    }

    /// The Slurm job that the newest attempt runs in.
    pub(crate) fn note_job(&mut self, job: Option<&str>) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.job_id = job.map(str::to_owned);
        }
    }

    /// The machines of the newest attempt, where they are not known already.
    pub(crate) fn note_hosts(&mut self, hosts: Vec<String>) {
        if let Some(attempt) = self.attempts.last_mut().filter(|attempt| attempt.hosts.is_empty()) {
            attempt.hosts = hosts;
        }
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
