//! The folder that holds everything of one run, and the only code that knows its names.
//!
//! ```text
//! recipe.yaml  run.json  events.jsonl  metrics.jsonl  scores.json  report.html  completed.json  job.json  check.json  lock
//! ranks.json  source.diff  reproduction.json  logs/rank-0003-attempt-2.log  checkpoints/step-00000500/  evaluations/  tensorboard/
//! traces/rank-0000-step-100.json
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock;
use crate::load::{LoadError, Loaded, load_resolved};
use crate::schema::Recipe;

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RunDirectoryError {
    /// A file or folder refused.
    #[error("cannot {action} {}: {source}", path.display())]
    #[diagnostic(help("{help}"))]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
        /// What to do.
        help: String,
    },
    /// There is no run.
    #[error("{} is not a run directory: it has no recipe.yaml", path.display())]
    #[diagnostic(help("a run directory is made by `vljepa-launch RECIPE`"))]
    NoRun {
        /// Which folder.
        path: PathBuf,
    },
    /// The folder has files, and none of them is a run's.
    #[error("{} holds other files and no run", path.display())]
    #[diagnostic(help("name an empty or new folder"))]
    Foreign {
        /// Which folder.
        path: PathBuf,
    },
    /// The run was started with a recipe that computes something else.
    #[error("{} holds a run of another recipe; these keys differ:\n{}", path.display(), differences.join("\n"))]
    #[diagnostic(help(
        "start this recipe in a directory of its own (another `name`), or undo the changes"
    ))]
    OtherRecipe {
        /// Which folder.
        path: PathBuf,
        /// `key: there → here`, one per key.
        differences: Vec<String>,
    },
    /// Its recipe cannot be read any more.
    #[error("the recipe of the run in {} cannot be read", path.display())]
    Recipe {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        #[diagnostic_source]
        source: LoadError,
    },
    /// Another process uses it.
    #[error("the run in {} is in use{}", path.display(), holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    #[diagnostic(help(
        "wait until it ends, or stop it; the lock goes with the process that holds it"
    ))]
    InUse {
        /// Which folder.
        path: PathBuf,
        /// What the holder wrote about itself.
        holder: Option<String>,
    },
    /// A value could not be written as JSON.
    #[error("cannot write {} as JSON: {source}", path.display())]
    Json {
        /// For which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// A run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirectory {
    root: PathBuf,
}

/// The exclusive right to write to a run directory; the kernel takes it back however the process ends.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

/// How [`RunDirectory::create`] found the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It was made.
    New,
    /// It holds this run already; keys that changed and may change, as `key: before → now`.
    Existing {
        /// One per key.
        changes: Vec<String>,
    },
}

impl RunDirectory {
    /// Makes the directory of a run, or takes up one that holds a run of the same recipe.
    ///
    /// Keys that do not change what a step computes (cluster, checkpoints, logging, evaluation …) may differ: the directory then takes
    /// the new recipe.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written or holds something else.
    pub fn create(root: &Path, loaded: &Loaded) -> Result<(Self, Found), RunDirectoryError> {
        let run = Self { root: root.to_owned() };
        if run.recipe().is_file() {
            let changes = run.compare(loaded)?;
            run.make_folders()?;
            if !changes.is_empty() {
                atomic_write(&run.recipe(), loaded.yaml.as_bytes())?;
            }
            return Ok((run, Found::Existing { changes }));
        }
        let not_hidden =
            |entry: fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
        let known = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            name == "lock"
                || name == "logs"
                || name == "checkpoints"
                || name == "evaluations"
                || name == "tensorboard"
        };
        if let Ok(entries) = fs::read_dir(root)
            && entries.flatten().any(|entry| !known(&entry) && not_hidden(entry))
        {
            return Err(RunDirectoryError::Foreign { path: root.to_owned() });
        }
        run.make_folders()?;
        atomic_write(&run.recipe(), loaded.yaml.as_bytes())?;
        Ok((run, Found::New))
    }

    /// A directory that holds a run.
    ///
    /// # Errors
    ///
    /// When it has no recipe.
    pub fn open(root: &Path) -> Result<Self, RunDirectoryError> {
        let run = Self { root: root.to_owned() };
        if run.recipe().is_file() {
            return Ok(run);
        }
        Err(RunDirectoryError::NoRun { path: root.to_owned() })
    }

    /// The run's recipe, as it was resolved when it started.
    ///
    /// # Errors
    ///
    /// When the file was damaged.
    pub fn load_recipe(&self) -> Result<Loaded, RunDirectoryError> {
        load_resolved(&self.recipe())
            .map_err(|source| RunDirectoryError::Recipe { path: self.root.clone(), source })
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    ///
    /// When another process has it, or the lock file cannot be written.
    pub fn lock(&self) -> Result<RunLock, RunDirectoryError> {
        let path = self.root.join("lock");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| refused("write", &path, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let holder =
                    format!("process {} since {}\n", std::process::id(), clock::now_text());
                file.set_len(0)
                    .and_then(|()| file.write_all(holder.as_bytes()))
                    .map_err(|source| refused("write", &path, source))?;
                Ok(RunLock { _file: file })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let holder = fs::read_to_string(&path).ok();
                let holder = holder.map(|h| h.trim().to_owned()).filter(|h| !h.is_empty());
                Err(RunDirectoryError::InUse { path: self.root.clone(), holder })
            }
            Err((_, errno)) => Err(refused("lock", &path, errno.into())),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved recipe.
    #[must_use]
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.yaml")
    }

    /// Versions, hashes, hosts and attempts.
    #[must_use]
    pub fn run_json(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// What happened, one JSON object per line.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// [`crate::protocol::Metrics`], one JSON object per line.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Metric to `{value, chance, baseline, n}`.
    #[must_use]
    pub fn scores(&self) -> PathBuf {
        self.root.join("scores.json")
    }

    /// The report, one self-contained file.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The completion record: its existence, and nothing else, says that the run is done.
    #[must_use]
    pub fn completed(&self) -> PathBuf {
        self.root.join("completed.json")
    }

    /// A file whose appearance asks the run to save itself and end.
    #[must_use]
    pub fn stop(&self) -> PathBuf {
        self.root.join("stop")
    }

    /// The algorithms of matrix products that the run's GPUs were found to be fastest with.
    #[must_use]
    pub fn algorithms(&self) -> PathBuf {
        self.root.join("algorithms")
    }

    /// A count by which the supervisor of a Slurm job shows that it is there.
    #[must_use]
    pub fn alive(&self) -> PathBuf {
        self.root.join("alive")
    }

    /// The batch script of a run on Slurm.
    #[must_use]
    pub fn batch_script(&self) -> PathBuf {
        self.root.join("job.sbatch")
    }

    /// The Slurm job that works on the run, as its submission left it.
    #[must_use]
    pub fn slurm_json(&self) -> PathBuf {
        self.root.join("slurm.json")
    }

    /// The run's own copies of the programs: an edit or a new build does not change a job that waits in a queue.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The job that workers are started for.
    #[must_use]
    pub fn job(&self) -> PathBuf {
        self.root.join("job.json")
    }

    /// The job that looks whether a node can take part.
    #[must_use]
    pub fn check_job(&self) -> PathBuf {
        self.root.join("check.json")
    }

    /// Logs of all ranks and attempts.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of one rank of one attempt.
    #[must_use]
    pub fn log(&self, rank: usize, attempt: u32) -> PathBuf {
        self.logs().join(format!("rank-{rank:04}-attempt-{attempt}.log"))
    }

    /// All checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint of a step; names sort as steps do.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:08}"))
    }

    /// What evaluations wrote.
    #[must_use]
    pub fn evaluations(&self) -> PathBuf {
        self.root.join("evaluations")
    }

    /// Scores measured at one step.
    #[must_use]
    pub fn evaluation(&self, step: u64) -> PathBuf {
        self.evaluations().join(format!("step-{step:08}.json"))
    }

    /// Samples with the model's answers, for the report.
    #[must_use]
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples.json")
    }

    /// TensorBoard event files.
    #[must_use]
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Chrome traces of chosen steps.
    #[must_use]
    pub fn traces(&self) -> PathBuf {
        self.root.join("traces")
    }

    /// The trace of one step of one rank.
    #[must_use]
    pub fn trace(&self, rank: usize, step: u64) -> PathBuf {
        self.traces().join(format!("rank-{rank:04}-step-{step}.json"))
    }

    /// The newest interval of the ranks: who is slow, by how much, in which phase.
    #[must_use]
    pub fn ranks(&self) -> PathBuf {
        self.root.join("ranks.json")
    }

    /// What the sources differed by from their commit.
    #[must_use]
    pub fn source_diff(&self) -> PathBuf {
        self.root.join("source.diff")
    }

    /// How this run compares with the one it reproduces.
    #[must_use]
    pub fn reproduction(&self) -> PathBuf {
        self.root.join("reproduction.json")
    }

    /// Adds a line to `events.jsonl`: the time, the event's name and its details (an object; anything else goes under `value`).
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn append_event(&self, event: &str, details: Value) -> Result<(), RunDirectoryError> {
        let mut line = Map::new();
        line.insert("time".to_owned(), clock::now_text().into());
        line.insert("event".to_owned(), event.into());
        match details {
            Value::Object(details) => line.extend(details),
            Value::Null => {}
            other @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                line.insert("value".to_owned(), other);
            }
        }
        append_line(&self.events(), &line)
    }

    fn make_folders(&self) -> Result<(), RunDirectoryError> {
        let folders = [self.logs(), self.checkpoints(), self.evaluations(), self.tensorboard()];
        for folder in folders {
            fs::create_dir_all(&folder).map_err(|source| refused("make", &folder, source))?;
        }
        Ok(())
    }

    /// Free keys that differ; an error when others do.
    fn compare(&self, loaded: &Loaded) -> Result<Vec<String>, RunDirectoryError> {
        let (there, here) = (&self.load_recipe()?.recipe, &loaded.recipe);
        let fixed = self.differences(&there.computed(), &here.computed())?;
        if fixed.is_empty() {
            return self.differences(there, here);
        }
        let path = self.root.clone();
        Err(RunDirectoryError::OtherRecipe { path, differences: fixed })
    }

    /// Keys whose values differ, a line each.
    fn differences(&self, there: &Recipe, here: &Recipe) -> Result<Vec<String>, RunDirectoryError> {
        let value = |recipe: &Recipe| {
            serde_json::to_value(recipe)
                .map_err(|source| RunDirectoryError::Json { path: self.recipe(), source })
        };
        let mut differing = Vec::new();
        differences("", &value(there)?, &value(here)?, &mut differing);
        Ok(differing.into_iter().map(|(key, change)| format!("  {key}: {change}")).collect())
    }
}

/// Dotted keys whose values differ, with `there → here`.
fn differences(key: &str, there: &Value, here: &Value, found: &mut Vec<(String, String)>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match (there, here) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                let value = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                differences(&below(name), &value(a), &value(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&below(&index.to_string()), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push((key.to_owned(), format!("{} → {}", short(a), short(b)))),
    }
}

/// A value in at most some sixty characters.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Adds one JSON object as a line, in one write. Where a kill or a full disk has cut the last line short, the new one starts on a line
/// of its own: the broken one costs nothing but itself, because readers pass over what does not parse.
///
/// # Errors
///
/// When it cannot be written.
pub fn append_line(path: &Path, value: &impl Serialize) -> Result<(), RunDirectoryError> {
    let mut line = serde_json::to_vec(value)
        .map_err(|source| RunDirectoryError::Json { path: path.to_owned(), source })?;
    line.push(b'\n');
    let mut append = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        if is_cut_short(&mut file)? {
            line.insert(0, b'\n');
        }
        file.write_all(&line)
    };
    append().map_err(|source| refused("write", path, source))
}

/// Whether a file ends within a line. What has no end (a pipe, a device) does not.
fn is_cut_short(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Replaces a file so that a reader, or a crash at any moment, sees the old bytes or the new: a temporary file beside it, synced, then
/// renamed, then the folder synced.
///
/// # Errors
///
/// When it cannot be written; the old file is then as it was.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), RunDirectoryError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| {
        // The temporary file may not exist; what matters is the first error.
        drop(fs::remove_file(&temporary));
        refused("write", path, source)
    })
}

fn refused(action: &'static str, path: &Path, source: std::io::Error) -> RunDirectoryError {
    use std::io::ErrorKind;
    let help = match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "choose a folder that you may write to with `--set runs=FOLDER`"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free space, or choose another with `--set runs=FOLDER`"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file stands where a folder belongs: choose another folder with `--set runs=FOLDER`"
        }
        _ => "check the folder, or choose another with `--set runs=FOLDER`",
    };
    RunDirectoryError::Io { action, path: path.to_owned(), source, help: help.to_owned() }
}

#[cfg(test)]
mod tests;
