//! Makes the records that a catalogue lacks, in parallel.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::CatalogueFolder;
use super::file::{Record, Writer, read_head};
use crate::error::DataError;
use crate::shard_index::ShardIndex;
use crate::storage::{Found, Location, Storage, Version};

/// Time between two writes of the head. A process that is killed loses the records of at most this
/// time.
const PUBLISHED_EVERY: Duration = Duration::from_secs(10);

/// Shards of a set after an update of their catalogue.
#[derive(Debug)]
pub struct Updated {
    /// Shards that can be used, in the order of the set.
    pub shards: Vec<(Box<str>, Record)>,
    /// An error for each shard that cannot be used.
    pub errors: Vec<DataError>,
    /// Number of records that were made.
    pub made: usize,
    /// Why the catalogue could not be written, if it could not.
    pub unwritten: Option<io::Error>,
}

/// How an update finds out whether a remote shard that no listing named has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// It asks the server for the first and the last of them, so that a start takes no request per
    /// shard. A change of the others is an error when they are read.
    Believe,
    /// It asks the server for each of them.
    Ask,
}

/// Makes the records of shards that are missing in the catalogue, or whose tar has changed.
///
/// Records are written while the update goes on, so that an update that is killed and started again
/// does not begin anew. `progress` is called now and then with the number of shards that were read
/// so far.
pub fn update(
    storage: &Storage,
    shards: &[Found],
    folder: &CatalogueFolder,
    unlisted: Unlisted,
    progress: &(dyn Fn(usize) + Sync),
) -> Updated {
    update_and_publish(storage, shards, folder, unlisted, PUBLISHED_EVERY, progress)
}

/// Like [`update`], with another time between two writes of the head.
pub(super) fn update_and_publish(
    storage: &Storage,
    shards: &[Found],
    folder: &CatalogueFolder,
    unlisted: Unlisted,
    every: Duration,
    progress: &(dyn Fn(usize) + Sync),
) -> Updated {
    let known = read_head(&folder.path);
    let fresh = Mutex::new(Fresh {
        writer: Writer::new(&folder.path),
        folder,
        made: Vec::new(),
        published: 0,
        every,
        last: Instant::now(),
        failed: None,
    });
    let record_of = |number: usize, path: &str| -> Result<Record, DataError> {
        let shard = &shards[number];
        let is_asked = unlisted == Unlisted::Ask || number == 0 || number + 1 == shards.len();
        let version = match (&shard.version, &shard.location) {
            (None, Location::Local(local)) => {
                Some(Version::of_local(local).map_err(DataError::io("open", path))?)
            }
            (None, Location::Remote(_)) if is_asked => {
                Some(storage.open(&shard.location)?.version().clone())
            }
            (listed, _) => listed.clone(),
        };
        let record = known.get(folder.name(path)).filter(|record| {
            version.as_ref().is_none_or(|version| record.version.change(version).is_none())
        });
        if let Some(record) = record {
            return Ok(record.clone());
        }
        // The tar is open while its headers are read: its version is that of the beginning.
        let tar = storage.open(&shard.location)?;
        let index = ShardIndex::of(&tar)?;
        let record = Record::new(&tar, &index).map_err(DataError::io("read", path))?;
        let mut fresh = fresh.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(fresh.add(path, &index, record, progress))
    };
    let found: Vec<Result<(Box<str>, Record), DataError>> = shards
        .par_iter()
        .enumerate()
        .map(|(number, shard)| {
            let path = shard.location.to_string().into_boxed_str();
            let record = record_of(number, &path)?;
            Ok((path, record))
        })
        .collect();
    let mut fresh = fresh.into_inner().unwrap_or_else(PoisonError::into_inner);
    fresh.publish();
    if !fresh.made.is_empty() && fresh.failed.is_none() {
        fresh.failed = fresh.writer.delete_unused().err();
    }
    let (mut usable, mut errors) = (Vec::with_capacity(found.len()), Vec::new());
    for shard in found {
        match shard {
            Ok(shard) => usable.push(shard),
            Err(error) => errors.push(error),
        }
    }
    Updated { shards: usable, errors, made: fresh.made.len(), unwritten: fresh.failed }
}

/// Records that were made by this update.
struct Fresh<'a> {
    writer: Writer,
    folder: &'a CatalogueFolder,
    made: Vec<(Box<str>, Record)>,
    /// Number of these records that are in the head.
    published: usize,
    every: Duration,
    last: Instant,
    /// First error of writing. Nothing is written after it.
    failed: Option<io::Error>,
}

impl Fresh<'_> {
    fn add(
        &mut self,
        path: &str,
        index: &ShardIndex,
        mut record: Record,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Record {
        if self.failed.is_none() {
            self.failed = self.writer.append(index, &mut record).err();
        }
        self.made.push((path.into(), record.clone()));
        if self.last.elapsed() > self.every {
            self.publish();
            self.last = Instant::now();
            progress(self.made.len());
        }
        record
    }

    /// Writes the records that are not in the head.
    fn publish(&mut self) {
        if self.failed.is_some() || self.published == self.made.len() {
            return;
        }
        let new = self.made[self.published..].iter();
        let named = new.map(|(path, record)| (self.folder.name(path), record));
        match self.writer.publish(named) {
            Ok(()) => self.published = self.made.len(),
            Err(error) => self.failed = Some(error),
        }
    }
}
