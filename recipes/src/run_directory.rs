//! The folder that holds everything of one run, and the only code that knows its names.
//!
//! ```text
//! recipe.yaml  run.json  events.jsonl  metrics.jsonl  scores.json  report.html  completed.json  job.json  check.json  lock
//! ranks.json  source.diff  reproduction.json  logs/rank-0003-attempt-2.log  checkpoints/step-00000500/  evaluations/  tensorboard/
//! traces/rank-0000-step-100.json
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
use write::refused;

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

#[cfg(test)]
mod tests;
