//! Cache folder: blocks of remote files, which all processes of a node share.
//!
//! A block is one file. It is written under a temporary name and renamed, so a process that is
//! killed leaves at most a temporary file. The writer holds a lock on it, which the kernel releases
//! when the process ends; the next start removes temporary files without a lock. Checksums in the
//! file find what a crash of the machine or a bad disk leaves.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::flights::BlockName;
use super::options::CacheOptions;
use crate::error::DataError;

mod format;

use format::{Header, encoded_header};

/// Ending of the files that hold blocks.
const ENDING: &str = ".vljepa-block";

/// Ending of files that are being written.
const TEMPORARY: &str = ".vljepa-part";

/// Time without writing to the folder after a write fails, for example because the disk is full.
const PAUSE: Duration = Duration::from_secs(60);

/// Share of the bound that is kept free for what other processes write between two looks at the
/// folder. 16 processes that each write 1/256 of the bound between two looks stay within 1/16.
const RESERVE: u64 = 8;

/// Share of the bound that a process writes before it looks at the folder again.
const LOOK: u64 = 256;

/// Cache folder of this process.
pub(super) struct DiskCache {
    folder: PathBuf,
    bound: u64,
    /// Number of this process's next temporary file.
    next: AtomicU64,
    /// Until when nothing is written.
    paused_until: Mutex<Option<Instant>>,
    /// Bytes that may be written before the next look at the folder.
    allowance: Mutex<u64>,
}

impl DiskCache {
    /// Opens the folder, creates it if necessary, and removes what killed processes left.
    pub(super) fn open(options: &CacheOptions) -> Result<Self, DataError> {
        let folder = options.folder.clone();
        if options.bytes < CacheOptions::LEAST_BYTES {
            let reason = format!(
                "its size is {} bytes, but must be at least {} (128 MiB)",
                options.bytes,
                CacheOptions::LEAST_BYTES
            );
            let location = format!("cache folder {}", folder.display());
            return Err(DataError::BadLocation { location, reason });
        }
        fs::create_dir_all(&folder).map_err(DataError::io("create the cache folder", &folder))?;
        for path in files(&folder, TEMPORARY) {
            // Errors: another process removed the file, or the folder is read-only.
            if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                drop(fs::remove_file(&path));
            }
        }
        Ok(Self {
            folder,
            bound: options.bytes,
            next: AtomicU64::new(0),
            paused_until: Mutex::default(),
            allowance: Mutex::default(),
        })
    }

    fn path(&self, name: &BlockName) -> PathBuf {
        self.folder.join(format!("{}{ENDING}", Header::name(name).to_hex()))
    }

    /// Fills `part` with the bytes from `within` of the block, which has `length` bytes. Returns
    /// `false` if the block is not in the folder. A damaged block is removed.
    pub(super) fn read(
        &self,
        name: &BlockName,
        length: u64,
        part: &mut [u8],
        within: usize,
    ) -> bool {
        let path = self.path(name);
        let Ok(file) = File::open(&path) else { return false };
        match Header::read(&file, name, length).and_then(|header| header.part(&file, part, within))
        {
            Ok(()) => {
                touch(&file);
                true
            }
            Err(error) => {
                tracing::warn!(
                    block = %path.display(),
                    file = %name.0,
                    reason = %error,
                    "a block of the cache is damaged; it is removed and fetched again"
                );
                drop(fs::remove_file(&path));
                false
            }
        }
    }

    /// Whether writing failed a moment ago.
    pub(super) fn is_paused(&self) -> bool {
        let paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        paused.is_some_and(|until| Instant::now() < until)
    }

    /// Writes a block. If that fails, the cache is not written to for [`PAUSE`].
    pub(super) fn write(&self, name: &BlockName, bytes: &[u8]) {
        if self.is_paused() {
            return;
        }
        if let Err(error) = self.make_room(bytes.len()).and_then(|()| self.try_write(name, bytes)) {
            let until = Instant::now() + PAUSE;
            *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
            tracing::warn!(
                folder = %self.folder.display(),
                reason = %error,
                "the cache folder cannot be written; remote files are read without it for 60 s"
            );
        }
    }

    fn try_write(&self, name: &BlockName, bytes: &[u8]) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let hash = Header::name(name).to_hex();
        let temporary = self.folder.join(format!("{}-{process}-{number}{TEMPORARY}", &hash[..16]));
        let written = || {
            let mut file = File::create_new(&temporary)?;
            // Without support for locks, the next start of a process removes the file.
            drop(file.try_lock());
            file.write_all(&encoded_header(name, bytes))?;
            file.write_all(bytes)?;
            fs::rename(&temporary, self.path(name))
        };
        match written() {
            // A process that started between the two first lines has removed the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.folder.is_dir() => Ok(()),
            Err(error) => {
                drop(fs::remove_file(&temporary));
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Removes the blocks that were used least recently if the bound is near.
    fn make_room(&self, length: usize) -> io::Result<()> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rest) = allowance.checked_sub(length) {
            *allowance = rest;
            return Ok(());
        }
        let limit = self.bound - self.bound / RESERVE;
        let mut blocks = Vec::new();
        let mut total = length;
        for path in files(&self.folder, ENDING).into_iter().chain(files(&self.folder, TEMPORARY)) {
            // A file that another process has just removed is not counted.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            total += metadata.len();
            if path.to_string_lossy().ends_with(ENDING) {
                blocks.push((metadata.modified()?, metadata.len(), path));
            }
        }
        if total > limit {
            blocks.sort();
            for (_, length, path) in blocks {
                if total <= limit - self.bound / RESERVE {
                    break;
                }
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => total -= length,
                }
            }
        }
        *allowance = self.bound / LOOK;
        Ok(())
    }
}

/// Notes that a block was used. The time of change is the time of the last use, because many
/// file systems do not keep the time of access.
fn touch(file: &File) {
    let now = SystemTime::from(vljepa_recipes::clock::now());
    let is_old = |used: SystemTime| now.duration_since(used).is_ok_and(|age| age.as_secs() > 0);
    if file.metadata().and_then(|metadata| metadata.modified()).is_ok_and(is_old) {
        // A file of another user keeps its time, and is removed earlier.
        drop(file.set_modified(now));
    }
}

/// Files of the cache with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

#[cfg(test)]
mod tests;
