//! Set of shards: the bytes of any of its samples.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalogue::Catalogue;
use crate::error::DataError;
use crate::shard_index::{IndexedMember, IndexedSample, ShardIndex};
use crate::storage::{Storage, StoredFile};

/// Number of shards that a set keeps open at a time. Well below the usual limit of 1,024 open files
/// per process.
const OPEN_SHARDS: usize = 128;

/// Set of shards that are read by sample. Threads may share a set.
#[derive(Debug)]
pub struct ShardSet {
    storage: Storage,
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
    file: StoredFile,
}

impl ShardSet {
    /// Set of the shards of a catalogue.
    #[must_use]
    pub fn new(storage: Storage, catalogue: Arc<Catalogue>) -> Self {
        Self { storage, catalogue, open: Mutex::default() }
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
        let (file, index) = self.catalogue.open_shard(&self.storage, number)?;
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
            .map_err(|error| match error.kind() {
                // A remote shard has another version than its record.
                ErrorKind::InvalidData => {
                    let advice = "`vljepa-shards index` compares all shards with the catalogue";
                    std::io::Error::new(ErrorKind::InvalidData, format!("{error}; {advice}"))
                }
                _ => error,
            })
            .map_err(DataError::io("read", &*self.path))?;
        Ok(bytes)
    }
}
