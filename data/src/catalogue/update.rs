//! Makes the records that a catalogue lacks, in parallel.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Location;
use super::file::{Record, TarVersion, Writer, read_head};
use crate::error::DataError;
use crate::shard_index::ShardIndex;

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

/// Makes the records of shards that are missing in the catalogue, or whose tar has another size or
/// modification time. Records are written while the update goes on, so that an update that is
/// killed and started again does not begin anew. `progress` is called now and then with the number
/// of shards that were read so far.
pub fn update(
    shards: &[Box<str>],
    location: &Location,
    progress: &(dyn Fn(usize) + Sync),
) -> Updated {
    let known = read_head(&location.folder);
    let fresh = Mutex::new(Fresh {
        writer: Writer::new(&location.folder),
        location,
        made: Vec::new(),
        published: 0,
        last: Instant::now(),
        failed: None,
    });
    let record_of = |path: &str| -> Result<Record, DataError> {
        let version = TarVersion::of(Path::new(path)).map_err(DataError::io("open", path))?;
        if let Some(record) = known.get(location.name(path))
            && record.version == version
        {
            return Ok(record.clone());
        }
        let (index, record) = read(path)?;
        let mut fresh = fresh.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(fresh.add(path, &index, record, progress))
    };
    let found: Vec<Result<(Box<str>, Record), DataError>> =
        shards.par_iter().map(|path| Ok((path.clone(), record_of(path)?))).collect();
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

/// Index and record of the shard at `path`.
fn read(path: &str) -> Result<(ShardIndex, Record), DataError> {
    let tar = File::open(path).map_err(DataError::io("open", path))?;
    // The version is taken before the headers are read: if the tar changes meanwhile, the record
    // does not fit and is made again.
    let version = TarVersion::of_open(&tar).map_err(DataError::io("read", path))?;
    let index = ShardIndex::read_tar(Path::new(path), &tar)?;
    let record = Record::new(&tar, version, &index).map_err(DataError::io("read", path))?;
    Ok((index, record))
}

/// Records that were made by this update.
struct Fresh<'a> {
    writer: Writer,
    location: &'a Location,
    made: Vec<(Box<str>, Record)>,
    /// Number of these records that are in the head.
    published: usize,
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
        if self.last.elapsed() > PUBLISHED_EVERY {
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
        let named = new.map(|(path, record)| (self.location.name(path), record));
        match self.writer.publish(named) {
            Ok(()) => self.published = self.made.len(),
            Err(error) => self.failed = Some(error),
        }
    }
}
