//! Folder of a preparation, and which of its parts are finished.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::part::PartRecord;
use super::plan::Plan;
use crate::error::DataError;
use crate::storage::{Location, Storage};

/// Name of the file with the plan.
const PLAN: &str = "plan.json";

/// Name of the file that is written last.
pub(super) const MANIFEST: &str = "manifest.json";

/// Name of the folder with the finished parts.
const PARTS: &str = "vljepa-parts";

/// Name of the lock in this folder.
const LOCK: &str = "lock";

/// Folder of a preparation. While it is open, no other process can open it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Holds the lock, which the kernel releases when the process ends.
    _lock: File,
}

impl Folder {
    /// Opens the folder, creates it if necessary, and removes what a killed process left.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let parts = path.join(PARTS);
        // A folder is only touched if it is new or holds a preparation.
        if path.join(PLAN).exists() {
            read::<Plan>(&path.join(PLAN))?;
        } else if !parts.join(LOCK).exists() {
            // A process may have been killed before it made the lock. Other contents stay.
            drop(fs::remove_dir(&parts));
            check_empty(path)?;
        }
        let lock = lock(path)?;
        let folder = Self { path: path.to_owned(), _lock: lock };
        folder.clean(path)?;
        folder.clean(&parts)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Path of the file of a part with this ending.
    pub(super) fn part(&self, number: usize, ending: &str) -> PathBuf {
        self.path.join(PARTS).join(format!("{number:06}{ending}"))
    }

    /// Folder for the catalogue of the shards that are read.
    pub(super) fn input_catalogue(&self) -> PathBuf {
        self.path.join(PARTS).join("input-catalogue")
    }

    /// An error about this folder.
    pub(super) fn refusal(&self, reason: impl Into<String>) -> DataError {
        DataError::Prepare { folder: self.path.clone(), reason: reason.into() }
    }

    /// Says what to do if the disk is full.
    pub(super) fn explain(&self, error: DataError) -> DataError {
        match &error {
            DataError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::StorageFull => self
                .refusal(format!(
                    "{error}; free some space and give the same command again, which goes on with \
                     the parts that are missing"
                )),
            _ => error,
        }
    }

    /// The plan with which the folder was begun, if it was.
    pub(super) fn plan(&self) -> Result<Option<Plan>, DataError> {
        let path = self.path.join(PLAN);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Writes the plan of a new folder.
    pub(super) fn begin(&self, plan: Plan) -> Result<Plan, DataError> {
        self.write(PLAN, &plan)?;
        Ok(plan)
    }

    /// Writes a file of JSON. Readers see all of it or nothing.
    pub(super) fn write(&self, name: &str, content: &impl Serialize) -> Result<(), DataError> {
        let json = serde_json::to_vec_pretty(content)
            .map_err(|error| self.refusal(format!("{name}: {error}")))?;
        self.write_bytes(&self.path.join(name), &json)
    }

    pub(super) fn write_bytes(&self, path: &Path, bytes: &[u8]) -> Result<(), DataError> {
        Storage::default().write(&Location::from(path), bytes)
    }

    /// Record of a finished part.
    pub(super) fn record(&self, number: usize) -> Result<PartRecord, DataError> {
        read(&self.part(number, ".json"))
    }

    /// Numbers of the parts that are not finished, of `count` parts.
    pub(super) fn missing(&self, count: usize) -> Vec<usize> {
        (0..count).filter(|&number| !self.part(number, ".json").exists()).collect()
    }

    /// Removes what opening the folder has made, after an error: the folder of the parts if no part
    /// can be in it, and the folder itself if the preparation has not begun.
    pub(super) fn abandon(&self) {
        let begun = self.path.join(PLAN).exists();
        let finished = self.path.join(MANIFEST).exists();
        if begun && !finished {
            return;
        }
        if self.remove_parts().is_ok() && !begun {
            // A folder with other files stays.
            drop(fs::remove_dir(&self.path));
        }
    }

    /// Removes the folder of the parts, with the lock. A process that opened the lock before cannot
    /// use it ([`lock`]).
    pub(super) fn remove_parts(&self) -> Result<(), DataError> {
        let parts = self.path.join(PARTS);
        match fs::remove_dir_all(&parts) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DataError::io("remove", parts)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes temporary files. No running process writes them, because this one holds the lock.
    fn clean(&self, folder: &Path) -> Result<(), DataError> {
        for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
            let path = entry.map_err(DataError::io("list", folder))?.path();
            if path.extension().is_some_and(|ending| ending == "tmp") && path.is_file() {
                fs::remove_file(&path).map_err(DataError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Refuses a folder that holds something else than a preparation.
fn check_empty(path: &Path) -> Result<(), DataError> {
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DataError::io("list", path)(error)),
    };
    let Some(entry) = entries.next() else { return Ok(()) };
    let name = entry.map_err(DataError::io("list", path))?.file_name();
    let reason = format!(
        "it holds `{}`, which is not part of a preparation; give a new or empty folder",
        name.to_string_lossy()
    );
    Err(DataError::Prepare { folder: path.to_owned(), reason })
}

/// Locks the folder for this process. The lock is a file among the parts.
fn lock(path: &Path) -> Result<File, DataError> {
    let parts = path.join(PARTS);
    let name = parts.join(LOCK);
    loop {
        fs::create_dir_all(&parts).map_err(DataError::io("create folder", &parts))?;
        let file = match File::create(&name) {
            // Another process has removed the folder of the parts.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.map_err(DataError::io("create", &name))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another process prepares into this folder; wait until it has ended, \
                              or give another folder";
                return Err(DataError::Prepare { folder: path.to_owned(), reason: reason.into() });
            }
            Err(TryLockError::Error(error)) => return Err(DataError::io("lock", &name)(error)),
        }
        // The process that held the lock may have removed the file.
        let ours = file.metadata().map_err(DataError::io("read", &name))?;
        if fs::metadata(&name).is_ok_and(|it| (it.ino(), it.dev()) == (ours.ino(), ours.dev())) {
            return Ok(file);
        }
    }
}

pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, DataError> {
    let bytes = fs::read(path).map_err(DataError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string());
        DataError::io("parse", path)(error)
    })
}
