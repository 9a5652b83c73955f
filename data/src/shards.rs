//! Set of shards: the files that an entry names, and the bytes of any sample.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalogue::Catalogue;
use crate::error::DataError;
use crate::shard_index::{IndexedMember, IndexedSample, ShardIndex};

/// Number of shards that a set keeps open at a time. Well below the usual limit of 1,024 open files
/// per process.
const OPEN_SHARDS: usize = 128;

/// Largest number of paths that the brace ranges of an entry may expand to.
const LONGEST_RANGE: u64 = 10_000_000;

/// Files that a `shards` entry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// Paths of the shards in their order.
    pub shards: Vec<Box<str>>,
    /// Folder of the set: the folder that the entry names, or the folder of the shards. With braces
    /// in names of folders, it is the last folder before the first brace.
    pub base: PathBuf,
}

/// Finds the shards of an entry: a folder (all its `*.tar`, sorted by name), one tar, or a path
/// with brace ranges (`clips-{000000..000127}.tar`, `{a,b}.tar`).
///
/// # Errors
/// [`DataError::NoShards`] if the entry matches no file, [`DataError::BadRange`] if a brace range
/// cannot be parsed or is too long, [`DataError::BadShard`] if the name of a tar is not UTF-8.
pub fn expand(entry: &str) -> Result<Expanded, DataError> {
    let path = Path::new(entry);
    if path.is_dir() {
        let mut shards: Vec<Box<str>> = Vec::new();
        for file in fs::read_dir(path).map_err(DataError::io("list", path))? {
            let path = file.map_err(DataError::io("list", path))?.path();
            if path.extension().is_some_and(|extension| extension == "tar") && path.is_file() {
                shards.push(path.to_str().map(Box::from).ok_or_else(|| DataError::BadShard {
                    path: path.clone(),
                    reason: "its name is not UTF-8; rename it".to_owned(),
                })?);
            }
        }
        shards.sort();
        if shards.is_empty() {
            return Err(DataError::NoShards { shards: entry.to_owned() });
        }
        return Ok(Expanded { shards, base: path.to_owned() });
    }
    // If a file with braces in its name exists, the entry means that file.
    if path.exists() || !entry.contains('{') {
        return if path.is_file() {
            Ok(Expanded { shards: vec![entry.into()], base: folder_of(entry) })
        } else {
            Err(DataError::NoShards { shards: entry.to_owned() })
        };
    }
    let names = expand_braces(entry)
        .map_err(|reason| DataError::BadRange { shards: entry.to_owned(), reason })?;
    let base = folder_of(entry.split('{').next().unwrap_or(entry));
    Ok(Expanded { shards: names.into_iter().map(String::into_boxed_str).collect(), base })
}

/// The folder in a path: all before the last slash, or the working directory.
fn folder_of(path: &str) -> PathBuf {
    match path.rsplit_once('/') {
        Some(("", _)) => PathBuf::from("/"),
        Some((folder, _)) => PathBuf::from(folder),
        None => PathBuf::from("."),
    }
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
    catalogue: Arc<Catalogue>,
    open: Mutex<OpenShards>,
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
    pub index: ShardIndex,
    file: File,
}

impl ShardSet {
    /// Set of the shards of a catalogue.
    #[must_use]
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self { catalogue, open: Mutex::default() }
    }

    /// Shards with their numbers of samples.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Shard number `number` with its index and an open file. If too many shards are open, the
    /// least recently used one is closed.
    ///
    /// # Errors
    /// The errors of [`Catalogue::open_shard`].
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
        let (file, index) = self.catalogue.open_shard(number)?;
        let shard = Arc::new(OpenShard { path: self.catalogue.path(number).into(), index, file });
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
