//! Set of shards: its files, the number of samples in each, and the bytes of any sample.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::DataError;
use crate::shard_index::{IndexedMember, IndexedSample, ShardIndex, known_length, load_or_make};

/// Number of shards that a set keeps open at a time. Well below the usual limit of 1,024 open files
/// per process.
const OPEN_SHARDS: usize = 128;

/// Largest number of paths that the brace ranges of an entry may expand to.
const LONGEST_RANGE: u64 = 10_000_000;

/// Files named by a `shards` entry: a folder (all its `*.tar`, sorted by name), one tar, or a path
/// with brace ranges (`clips-{000000..000127}.tar`, `{a,b}.tar`).
///
/// # Errors
/// [`DataError::NoShards`] if the entry matches no file, [`DataError::BadRange`] if a brace range
/// cannot be parsed or is too long.
pub fn expand(shards: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(shards);
    if path.is_dir() {
        let mut paths = Vec::new();
        for entry in fs::read_dir(path).map_err(DataError::io("list", path))? {
            let path = entry.map_err(DataError::io("list", path))?.path();
            if path.extension().is_some_and(|extension| extension == "tar") && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        if paths.is_empty() {
            return Err(DataError::NoShards { shards: shards.to_owned() });
        }
        return Ok(paths);
    }
    // If a file with braces in its name exists, the entry means that file.
    if path.exists() || !shards.contains('{') {
        return if path.is_file() {
            Ok(vec![path.to_owned()])
        } else {
            Err(DataError::NoShards { shards: shards.to_owned() })
        };
    }
    let names = expand_braces(shards)
        .map_err(|reason| DataError::BadRange { shards: shards.to_owned(), reason })?;
    Ok(names.into_iter().map(PathBuf::from).collect())
}

fn expand_braces(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.to_owned()]) };
    let (inside, after) = rest.split_once('}').ok_or("a `{` has no `}`")?;
    let choices: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            let number = |text: &str| -> Result<u64, String> {
                text.parse().map_err(|_| format!("`{text}` in `{{{inside}}}` is not a number"))
            };
            let (from, to) = (number(first)?, number(last)?);
            if to < from || to - from >= LONGEST_RANGE {
                return Err(format!("`{{{inside}}}` is empty or too long"));
            }
            let width = first.len();
            (from..=to).map(|n| format!("{n:0width$}")).collect()
        }
        None => inside.split(',').map(str::to_owned).collect(),
    };
    let endings = expand_braces(after)?;
    let count = u64::try_from(choices.len().saturating_mul(endings.len())).unwrap_or(u64::MAX);
    if count > LONGEST_RANGE {
        return Err("its ranges expand to too many files".to_owned());
    }
    let joined = |choice: &String| {
        endings.iter().map(|ending| format!("{before}{choice}{ending}")).collect::<Vec<_>>()
    };
    Ok(choices.iter().flat_map(joined).collect())
}

/// Set of shards that are read by sample. Threads may share a set.
#[derive(Debug)]
pub struct ShardSet {
    shards: Vec<Shard>,
    open: Mutex<OpenShards>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    length: u64,
    /// Index in memory, if it cannot be written next to the shard.
    index: Option<Arc<ShardIndex>>,
}

#[derive(Debug, Default)]
struct OpenShards {
    clock: u64,
    by_number: BTreeMap<usize, (u64, Arc<OpenShard>)>,
}

/// Shard with an open file and its index.
#[derive(Debug)]
pub struct OpenShard {
    /// Path of the shard, as shown in errors and reports.
    pub path: Arc<str>,
    /// Location of the samples in the shard.
    pub index: Arc<ShardIndex>,
    file: File,
}

impl ShardSet {
    /// Finds the shards and their lengths. Makes the indexes that are missing or out of date.
    ///
    /// # Errors
    /// The errors of [`expand`] and [`load_or_make`], and [`DataError::NoSamples`] if the shards
    /// hold no complete sample.
    pub fn open(shards: &str) -> Result<Self, DataError> {
        let paths = expand(shards)?;
        let shard_count = paths.len();
        let opened: Vec<_> = paths.into_par_iter().map(Shard::find).collect();
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for shard in opened {
            match shard {
                Ok(shard) => found.push(shard),
                Err(error) => errors.push(error),
            }
        }
        match errors.len() {
            0 => {}
            1 => return Err(errors.remove(0)),
            _ => {
                let shards = shards.to_owned();
                return Err(DataError::BadShards { shards, shard_count, errors });
            }
        }
        let set = Self { shards: found, open: Mutex::default() };
        if set.shards.iter().all(|shard| shard.length == 0) {
            return Err(DataError::NoSamples { shards: shards.to_owned(), shard_count });
        }
        Ok(set)
    }

    /// Number of samples in each shard.
    #[must_use]
    pub fn lengths(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.length).collect()
    }

    /// Path of shard number `shard`.
    #[must_use]
    pub fn path(&self, shard: usize) -> &Path {
        &self.shards[shard].path
    }

    /// Shard number `number` with its index and an open file. If too many shards are open, the
    /// least recently used one is closed.
    ///
    /// # Errors
    /// [`DataError::Io`] if the shard cannot be opened, or if it has changed since the set was
    /// opened.
    pub fn shard(&self, number: usize) -> Result<Arc<OpenShard>, DataError> {
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.clock += 1;
            let clock = open.clock;
            if let Some((used, shard)) = open.by_number.get_mut(&number) {
                *used = clock;
                return Ok(Arc::clone(shard));
            }
        }
        // The lock is not held while the shard is opened. If two threads open the same shard, the
        // second one replaces the first.
        let shard = Arc::new(self.shards[number].open()?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.by_number.len() >= OPEN_SHARDS {
            let oldest = open.by_number.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(&number, _)| number) {
                open.by_number.remove(&oldest);
            }
        }
        let clock = open.clock;
        open.by_number.insert(number, (clock, Arc::clone(&shard)));
        Ok(shard)
    }
}

impl Shard {
    /// Finds out the number of samples in the shard `path`, and logs what is not used of it.
    fn find(path: PathBuf) -> Result<Self, DataError> {
        if let Some(length) = known_length(&path) {
            return Ok(Self { path, length, index: None });
        }
        let loaded = load_or_make(&path)?;
        for warning in &loaded.index.warnings {
            tracing::warn!(shard = %path.display(), "{warning}");
        }
        for dropped in &loaded.index.dropped {
            tracing::warn!(
                shard = %path.display(),
                sample = dropped.key,
                reason = dropped.reason,
                "sample dropped"
            );
        }
        let length = u64::try_from(loaded.index.samples.len()).unwrap_or(u64::MAX);
        let index = (!loaded.on_disk).then(|| Arc::new(loaded.index));
        Ok(Self { path, length, index })
    }

    fn open(&self) -> Result<OpenShard, DataError> {
        let file = File::open(&self.path).map_err(DataError::io("open", &self.path))?;
        let index = match &self.index {
            Some(kept) => Arc::clone(kept),
            None => Arc::new(load_or_make(&self.path)?.index),
        };
        if u64::try_from(index.samples.len()) != Ok(self.length) {
            let changed = std::io::Error::other("the shard changed while it was in use");
            return Err(DataError::io("read", &self.path)(changed));
        }
        Ok(OpenShard { path: self.path.to_string_lossy().into(), index, file })
    }
}

impl OpenShard {
    /// Location of sample number `number`.
    #[must_use]
    pub fn sample(&self, number: usize) -> &IndexedSample {
        &self.index.samples[number]
    }

    /// Field name of a member.
    #[must_use]
    pub fn field(&self, member: &IndexedMember) -> &str {
        &self.index.fields[usize::from(member.field)]
    }

    /// Reads the bytes of a member.
    ///
    /// # Errors
    /// [`DataError::Io`] if the bytes cannot be read.
    pub fn read(&self, member: &IndexedMember) -> Result<Vec<u8>, DataError> {
        let length = usize::try_from(member.length).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, member.offset)
            .map_err(DataError::io("read", &*self.path))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
