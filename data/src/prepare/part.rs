//! Makes the shards of one part of a set.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Progress;
use super::folder::Folder;
use super::item::{Item, LeftOut, MediaSource, Visual};
use super::options::Options;
use super::sets::{Part, RawSet};
use super::spool::{ShardRecord, Spool};
use super::stats::Stats;
use super::visual::{Encoded, Encoder, Failure};
use crate::error::DataError;
use crate::tar::key_and_field;

/// Bytes of items at hand above which they are encoded before more are read.
const BATCH_BYTES: usize = 32 << 20;

/// Number of clips of one video file that are encoded at a time. They are in memory together, a MiB
/// or two each.
const CLIPS_OF_A_VIDEO: usize = 32;

/// Field of the json for what the preparation knows about a sample.
const OWN_FIELD: &str = "vljepa";

/// Finished part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    pub(super) shards: Vec<ShardRecord>,
    pub(super) left_out: Vec<LeftOutRecord>,
    pub(super) stats: Stats,
}

/// Item that did not become a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftOutRecord {
    item: String,
    class: String,
    reason: String,
}

/// Makes parts. Threads may share it.
pub(super) struct PartMaker<'a> {
    pub(super) set: &'a RawSet,
    pub(super) options: &'a Options,
    pub(super) folder: &'a Folder,
    pub(super) pool: &'a rayon::ThreadPool,
    /// Number of items that are encoded at a time.
    pub(super) batch: usize,
    pub(super) progress: &'a Progress,
}

impl PartMaker<'_> {
    /// Makes a part, unless `stop` is set meanwhile.
    pub(super) fn make(
        &self,
        number: usize,
        part: &Part,
        stop: &AtomicBool,
    ) -> Result<(), DataError> {
        let path = self.folder.part(number, ".tar.tmp");
        let mut making = Making {
            maker: self,
            spool: Spool::create(&path)?,
            keys: BTreeSet::new(),
            left_out: Vec::new(),
            stats: Stats::default(),
        };
        let made = making.read(part, stop);
        let Making { spool, left_out, stats, .. } = making;
        let shards = made.and_then(|()| {
            let name = |nth: usize| self.folder.part(number, &format!("-{nth:03}.tar"));
            spool.finish(self.options.shard_bytes(), &name)
        });
        // A full disk needs the space.
        let shards = shards.inspect_err(|_| drop(fs::remove_file(&path)))?;
        let record = PartRecord { shards, left_out, stats };
        let json =
            serde_json::to_vec(&record).map_err(|error| self.folder.refusal(error.to_string()))?;
        self.folder.write_bytes(&self.folder.part(number, ".json"), &json)?;
        Progress::add(&self.progress.finished, 1);
        Ok(())
    }

    /// Encodes items on the threads of the pool. Items of the same video are encoded by one thread,
    /// which opens the video once.
    fn encode(&self, items: &[Result<Item, LeftOut>]) -> Vec<Result<Encoded, Failure>> {
        let groups: Vec<_> = items.chunk_by(is_same_video).collect();
        let encoded: Vec<Vec<_>> = self.pool.install(|| {
            groups
                .par_iter()
                .map(|group| {
                    let mut encoder = Encoder::new(self.options);
                    let items = group.iter().filter_map(|item| item.as_ref().ok());
                    items.map(|item| encode(&mut encoder, item, self.options)).collect()
                })
                .collect()
        });
        encoded.into_iter().flatten().collect()
    }
}

/// Encodes an item. An item that makes a decoder panic is left out.
fn encode<'a>(
    encoder: &mut Result<Encoder<'a>, String>,
    item: &Item,
    options: &'a Options,
) -> Result<Encoded, Failure> {
    let encoded = catch_unwind(AssertUnwindSafe(|| match encoder {
        Ok(encoder) => encoder.encode(&item.visual),
        Err(reason) => Err(Failure::Fatal(reason.clone())),
    }));
    encoded.unwrap_or_else(|_| {
        *encoder = Encoder::new(options);
        Err(Failure::item("panic", "decoding it panicked"))
    })
}

fn is_same_video(one: &Result<Item, LeftOut>, other: &Result<Item, LeftOut>) -> bool {
    fn file(item: &Result<Item, LeftOut>) -> Option<&PathBuf> {
        match &item.as_ref().ok()?.visual {
            Visual::Clip { video: MediaSource::File(path), .. } => Some(path),
            Visual::Clip { .. } | Visual::Picture(_) | Visual::Pictures(_) => None,
        }
    }
    file(one).is_some_and(|path| file(other) == Some(path))
}

/// Part that is being made.
struct Making<'a> {
    maker: &'a PartMaker<'a>,
    spool: Spool,
    keys: BTreeSet<String>,
    left_out: Vec<LeftOutRecord>,
    stats: Stats,
}

impl Making<'_> {
    fn read(&mut self, part: &Part, stop: &AtomicBool) -> Result<(), DataError> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        self.maker.set.read(part, &mut |item| {
            // A video is opened once for many of its clips.
            let goes_on = batch.last().is_some_and(|last| is_same_video(last, &item));
            let most =
                if goes_on { self.maker.batch.max(CLIPS_OF_A_VIDEO) } else { self.maker.batch };
            if batch.len() >= most || bytes >= BATCH_BYTES {
                self.write(&std::mem::take(&mut batch), stop)?;
                bytes = 0;
            }
            bytes += item.as_ref().map_or(0, Item::held_bytes);
            batch.push(item);
            Ok(())
        })?;
        self.write(&batch, stop)
    }

    /// Encodes items and writes them in their order.
    fn write(
        &mut self,
        items: &[Result<Item, LeftOut>],
        stop: &AtomicBool,
    ) -> Result<(), DataError> {
        if stop.load(Ordering::Relaxed) {
            return Err(DataError::Ended("another part has failed".to_owned()));
        }
        let mut encoded = self.maker.encode(items).into_iter();
        for item in items {
            let left_out = match item {
                Ok(item) => {
                    let encoded = encoded.next();
                    let encoded = encoded.ok_or_else(|| DataError::Ended("an item".to_owned()))?;
                    self.write_one(item, encoded)?
                }
                Err(left_out) => Some(left_out.clone()),
            };
            if let Some(left_out) = left_out {
                Progress::add(&self.maker.progress.left_out, 1);
                self.stats.leave_out(&left_out);
                let LeftOut { item, class, reason } = left_out;
                self.left_out.push(LeftOutRecord { item, class: class.to_owned(), reason });
            }
        }
        Ok(())
    }

    /// Writes a sample, or says why it is left out.
    fn write_one(
        &mut self,
        item: &Item,
        encoded: Result<Encoded, Failure>,
    ) -> Result<Option<LeftOut>, DataError> {
        let left_out =
            |class, reason: String| Ok(Some(LeftOut { item: item.key.clone(), class, reason }));
        let encoded = match encoded {
            Ok(encoded) => encoded,
            Err(Failure::Item { class, reason }) => return left_out(class, reason),
            Err(Failure::Fatal(reason)) => return Err(self.maker.folder.refusal(reason)),
        };
        if !is_key(&item.key) {
            let reason = "its key cannot be the key of a sample: it is empty or no relative path, \
                          its name has a dot, or it starts with `__`";
            return left_out("key", reason.to_owned());
        }
        if !self.keys.insert(item.key.clone()) {
            return left_out("key", "an item before it has the same key".to_owned());
        }
        let json = json(item, &encoded);
        let caption = item.caption.as_ref().map(|text| ("txt", text.as_bytes()));
        let members = [(encoded.extension, &encoded.bytes[..])].into_iter().chain(caption);
        let written = self.spool.write(&item.key, members.chain([("json", &json[..])]));
        written.map_err(DataError::io("write", &self.spool.path))?;
        Progress::add(&self.maker.progress.samples, 1);
        Progress::add(&self.maker.progress.bytes, encoded.bytes.len());
        encoded.count(&mut self.stats);
        self.stats.captions += u64::from(item.caption.is_some());
        Ok(None)
    }
}

/// Whether a reader of the tar finds the key again.
fn is_key(key: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let name = format!("{key}.json");
    key.split('/').all(plain) && key_and_field(&name) == Some((key, "json".to_owned()))
}

/// Content of the `json` member: the fields of the set, and one of our own.
fn json(item: &Item, encoded: &Encoded) -> Vec<u8> {
    let mut fields = item.json.clone();
    let mut own = encoded.facts.clone();
    // The set was prepared before.
    if let Some(earlier) = fields.remove(OWN_FIELD) {
        own.insert("earlier".to_owned(), earlier);
    }
    fields.insert(OWN_FIELD.to_owned(), Value::Object(own));
    Value::Object(fields).to_string().into_bytes()
}
