//! The run directory, which holds all files of one run. No other code knows the names of these
//! files.
//!
//! ```text
//! recipe.yaml  run.json  events.jsonl  metrics.jsonl  scores.json  report.html  completed.json
//! job.json  check.json  lock  ranks.json  source.diff  reproduction.json
//! logs/rank-0003-attempt-2.log  checkpoints/step-00000500/  evaluations/  tensorboard/
//! traces/rank-0000-step-100.json  rows/vl_jepa_base/  table.json  table.md
//! ```

mod paths;
mod write;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value};

pub use write::{append_line, atomic_write};

use crate::clock;
use crate::load::{LoadError, Loaded, load_resolved};
use crate::schema::Recipe;
use write::io_error;

/// Reason why a run directory cannot be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RunDirectoryError {
    /// An operation on a file or folder failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    #[diagnostic(help("{help}"))]
    Io {
        /// Verb for the message, such as `write` or `make`.
        action: &'static str,
        /// File or folder of the operation.
        path: PathBuf,
        /// Error of the operating system.
        cause: std::io::Error,
        /// Advice to the user.
        help: String,
    },
    /// The folder holds no run.
    #[error("{} is not a run directory: it has no recipe.yaml", path.display())]
    #[diagnostic(help("a run directory is made by `vljepa-launch RECIPE`"))]
    NoRun {
        /// Path of the folder.
        path: PathBuf,
    },
    /// The folder holds files that do not belong to a run, or the path is a file.
    #[error(
        "{} {} no run",
        path.display(),
        if path.is_file() { "is a file and holds" } else { "contains other files but" }
    )]
    #[diagnostic(help("name an empty or new folder"))]
    Foreign {
        /// Path of the folder.
        path: PathBuf,
    },
    /// The folder holds a run of a recipe that trains another model.
    #[error("{} holds a run of another recipe; these keys differ:\n{}", path.display(), differences.join("\n"))]
    #[diagnostic(help(
        "start this recipe in a directory of its own (another `name`), or undo the changes"
    ))]
    OtherRecipe {
        /// Path of the run directory.
        path: PathBuf,
        /// Differing keys, each as `key: value in the directory → value in the recipe`.
        differences: Vec<String>,
    },
    /// The recipe in the run directory is damaged.
    #[error("the recipe of the run in {} cannot be read", path.display())]
    Recipe {
        /// Path of the run directory.
        path: PathBuf,
        /// Error of loading the recipe.
        #[source]
        #[diagnostic_source]
        source: LoadError,
    },
    /// Another process holds the lock of the run directory.
    #[error("the run in {} is in use{}", path.display(), holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    #[diagnostic(help("wait until that process ends, or stop it; its end releases the lock"))]
    InUse {
        /// Path of the run directory.
        path: PathBuf,
        /// Process id and start time that the holder wrote into the lock file.
        holder: Option<String>,
    },
    /// A value could not be serialized as JSON.
    #[error("cannot write {} as JSON: {cause}", path.display())]
    Json {
        /// File that the value was meant for.
        path: PathBuf,
        /// Error of the serializer.
        cause: serde_json::Error,
    },
}

/// Path of a run directory, with methods for its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirectory {
    path: PathBuf,
}

/// Exclusive right to write to a run directory. Dropping the lock releases it, and so does the
/// kernel when the process ends in any way.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

/// State in which [`RunDirectory::create`] found the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The directory held no run before.
    New,
    /// The directory already held a run of this recipe.
    Existing {
        /// Keys whose values changed since the last start, each as `key: old → new`.
        changes: Vec<String>,
    },
}

impl RunDirectory {
    /// Creates the directory of a run, or opens one that holds a run of the same recipe.
    ///
    /// Keys that do not change the result of a step may differ (see [`Recipe::computed`]). The new
    /// recipe then replaces the stored one.
    ///
    /// # Errors
    ///
    /// Returns an error if the directory cannot be written, holds other files, or holds a run of
    /// another recipe.
    pub fn create(path: &Path, loaded: &Loaded) -> Result<(Self, Found), RunDirectoryError> {
        let run = Self { path: path.to_owned() };
        if run.recipe().is_file() {
            let changes = run.compare(loaded)?;
            run.make_folders()?;
            if !changes.is_empty() {
                atomic_write(&run.recipe(), loaded.yaml.as_bytes())?;
            }
            return Ok((run, Found::Existing { changes }));
        }
        Self::is_free(path)?;
        run.make_folders()?;
        atomic_write(&run.recipe(), loaded.yaml.as_bytes())?;
        Ok((run, Found::New))
    }

    /// Checks that a run can be created in a folder that holds none, and changes nothing. The
    /// folder need not exist.
    ///
    /// # Errors
    ///
    /// Returns [`RunDirectoryError::Foreign`] if the path is a file, or a folder with files that do
    /// not belong to a run.
    pub fn is_free(path: &Path) -> Result<(), RunDirectoryError> {
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
        let foreign = match fs::read_dir(path) {
            Ok(entries) => entries.flatten().any(|entry| !known(&entry) && not_hidden(entry)),
            Err(_) => path.is_file(),
        };
        if foreign {
            return Err(RunDirectoryError::Foreign { path: path.to_owned() });
        }
        Ok(())
    }

    /// Opens the directory of an existing run.
    ///
    /// # Errors
    ///
    /// Returns [`RunDirectoryError::NoRun`] if the directory has no `recipe.yaml`.
    pub fn open(path: &Path) -> Result<Self, RunDirectoryError> {
        let run = Self { path: path.to_owned() };
        if run.recipe().is_file() {
            return Ok(run);
        }
        Err(RunDirectoryError::NoRun { path: path.to_owned() })
    }

    /// Loads the run's resolved recipe.
    ///
    /// # Errors
    ///
    /// Returns [`RunDirectoryError::Recipe`] if the file cannot be read or is damaged.
    pub fn load_recipe(&self) -> Result<Loaded, RunDirectoryError> {
        load_resolved(&self.recipe())
            .map_err(|source| RunDirectoryError::Recipe { path: self.path.clone(), source })
    }

    /// Name of the newest checkpoint's folder, such as `step-00000100`, or `None` before the first
    /// save. Only the worker verifies the content.
    #[must_use]
    pub fn newest_checkpoint(&self) -> Option<String> {
        let newest = self.checkpoint(*self.checkpoint_steps().last()?);
        newest.file_name()?.to_str().map(str::to_owned)
    }

    /// Steps whose checkpoints the run directory holds, in increasing order. Only the worker
    /// verifies their content.
    #[must_use]
    pub fn checkpoint_steps(&self) -> Vec<u64> {
        steps_in(&self.checkpoints(), "")
    }

    /// Steps whose scores the run directory holds, in increasing order.
    #[must_use]
    pub fn evaluation_steps(&self) -> Vec<u64> {
        steps_in(&self.evaluations(), ".json")
    }

    /// Score of a metric after `step` steps. `None` if the tasks were not measured then, if the
    /// task of the metric could not be measured, or if the file is damaged.
    #[must_use]
    pub fn score(&self, step: u64, metric: &str) -> Option<f64> {
        let scores: Value = serde_json::from_slice(&fs::read(self.evaluation(step)).ok()?).ok()?;
        scores.get(metric)?.get("value")?.as_f64()
    }

    /// Locks the directory for this process.
    ///
    /// # Errors
    ///
    /// Returns [`RunDirectoryError::InUse`] if another process holds the lock, and an I/O error if
    /// the lock file cannot be written.
    pub fn lock(&self) -> Result<RunLock, RunDirectoryError> {
        let path = self.path.join("lock");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| io_error("write", &path, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let holder =
                    format!("process {} since {}\n", std::process::id(), clock::now_text());
                file.set_len(0)
                    .and_then(|()| file.write_all(holder.as_bytes()))
                    .map_err(|source| io_error("write", &path, source))?;
                Ok(RunLock { _file: file })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let holder = fs::read_to_string(&path).ok();
                let holder = holder.map(|h| h.trim().to_owned()).filter(|h| !h.is_empty());
                Err(RunDirectoryError::InUse { path: self.path.clone(), holder })
            }
            Err((_, errno)) => Err(io_error("lock", &path, errno.into())),
        }
    }

    /// Whether a process holds the lock, on this machine or, if the file system supports it, on
    /// another one. The only exact test is to try the lock. The trial lock is shared, so that two
    /// tests at the same time do not disturb each other, and is held for some microseconds.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        let Ok(file) = File::open(self.path.join("lock")) else { return false };
        let trial = Flock::lock(file, FlockArg::LockSharedNonblock);
        matches!(trial, Err((_, nix::errno::Errno::EWOULDBLOCK)))
    }

    /// Appends a line to `events.jsonl` with the time, the event's name and its details. An
    /// object's keys become keys of the line; any other value is stored under `value`.
    ///
    /// # Errors
    ///
    /// Returns an error if the line cannot be written.
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
            fs::create_dir_all(&folder).map_err(|source| io_error("make", &folder, source))?;
        }
        Ok(())
    }

    /// Checks that a run of this recipe can continue in the directory, and changes nothing.
    ///
    /// # Errors
    ///
    /// Returns [`RunDirectoryError::OtherRecipe`] if the directory holds a run of another recipe,
    /// and an error if its recipe cannot be read.
    pub fn accepts(&self, loaded: &Loaded) -> Result<(), RunDirectoryError> {
        self.compare(loaded).map(drop)
    }

    /// Returns the differing keys that may change between starts, or an error if another key
    /// differs.
    fn compare(&self, loaded: &Loaded) -> Result<Vec<String>, RunDirectoryError> {
        let (there, here) = (&self.load_recipe()?.recipe, &loaded.recipe);
        let fixed = self.differences(&there.computed(), &here.computed())?;
        if fixed.is_empty() {
            return self.differences(there, here);
        }
        let path = self.path.clone();
        Err(RunDirectoryError::OtherRecipe { path, differences: fixed })
    }

    /// Returns one line for each key whose values differ.
    fn differences(&self, there: &Recipe, here: &Recipe) -> Result<Vec<String>, RunDirectoryError> {
        let value = |recipe: &Recipe| {
            serde_json::to_value(recipe)
                .map_err(|cause| RunDirectoryError::Json { path: self.recipe(), cause })
        };
        let mut differing = Vec::new();
        differences("", &value(there)?, &value(here)?, &mut differing);
        Ok(differing.into_iter().map(|(key, change)| format!("  {key}: {change}")).collect())
    }
}

/// Returns the steps of the files `step-N<ending>` in a folder, in increasing order.
fn steps_in(folder: &Path, ending: &str) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let steps = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("step-")?.strip_suffix(ending)?.parse().ok()
    });
    let mut steps: Vec<u64> = steps.collect();
    steps.sort_unstable();
    steps
}

/// Collects the dotted keys whose values differ, each with `there → here`.
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

/// Returns a value as JSON, cut to 60 characters.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
