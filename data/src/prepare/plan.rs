//! Plan of a preparation: how the set is divided, and with which options and which set it was
//! begun.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::item::Item;
use super::options::Options;
use super::sets::RawSet;
use super::visual::Encoder;
use crate::error::DataError;

/// Version of the rules by which items become samples. A build with another version does not go on
/// with a preparation.
const VERSION: u32 = 1;

/// Number of parts of the set of which items are tried to find out how large samples become.
const TRIED_PARTS: usize = 8;

/// Number of items that are tried of each of these parts.
const TRIED_ITEMS: usize = 8;

/// Bytes of tried items in memory above which no more are read.
const TRIED_BYTES: usize = 256 << 20;

/// Number of items of the parts from which the tried items come.
const TRIED_PART_ITEMS: usize = 1000;

/// Most items of a part.
const MOST_ITEMS: u64 = 100_000;

/// Bytes of a sample in a tar beside its contents: three headers, and half a block behind each of
/// the three files.
const TAR_BYTES: u64 = 3 * 512 + 3 * 256;

/// Plan of a preparation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    version: u32,
    pub(super) options: Options,
    /// What tells the set from another one: names with values.
    pub(super) set: BTreeMap<String, String>,
    /// Number of items of a part, about.
    pub(super) items_per_part: usize,
    /// Number of parts.
    pub(super) parts: usize,
}

impl Plan {
    /// Tries some items of the set to choose the number of items that fill a shard. The same set
    /// and options give the same plan.
    pub(super) fn make(
        set: &RawSet,
        options: &Options,
        pool: &rayon::ThreadPool,
    ) -> Result<Self, DataError> {
        let items = tried_items(set)?;
        let sizes = pool.install(|| {
            let sizes = items.par_iter().map_init(
                || Encoder::new(options),
                |encoder, item| {
                    let encoder = encoder.as_mut().ok()?;
                    let encoded = encoder.encode(&item.visual).ok()?;
                    let text = item.caption.as_ref().map_or(0, String::len);
                    let json = serde_json::to_vec(&item.json).map_or(0, |json| json.len());
                    u64::try_from(encoded.bytes.len() + text + json).ok()
                },
            );
            sizes
                .flatten()
                .map(|size| (size + TAR_BYTES, 1))
                .reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
        });
        // If no item became a sample, the size does not matter.
        let (bytes, count) = sizes;
        let mean = bytes.checked_div(count).unwrap_or(1).max(1);
        let items = (options.shard_bytes() / mean).clamp(1, MOST_ITEMS);
        let items_per_part = usize::try_from(items).unwrap_or(1);
        let parts = set.parts(items_per_part)?.len();
        let (options, set) = (options.clone(), set.identity());
        Ok(Self { version: VERSION, options, set, items_per_part, parts })
    }

    /// Checks that the folder was begun with the same options and the same set.
    pub(super) fn check(
        self,
        folder: &Folder,
        options: &Options,
        set: &RawSet,
    ) -> Result<Self, DataError> {
        let mut changes = Vec::new();
        if self.version != VERSION {
            changes.push("it was begun by another version of this program".to_owned());
        }
        let known = self.options.named().into_iter().zip(options.named());
        for ((name, then), (_, now)) in known.filter(|(then, now)| then != now) {
            changes.push(format!("{name} was {then} and is {now} now"));
        }
        let identity = set.identity();
        let names = self.set.keys().chain(identity.keys().filter(|it| !self.set.contains_key(*it)));
        for name in names {
            let value = |of: &BTreeMap<String, String>| match of.get(name) {
                Some(value) => value.clone(),
                None => "absent".to_owned(),
            };
            let (then, now) = (value(&self.set), value(&identity));
            if then != now {
                changes.push(format!("{name}: {then} then, {now} now"));
            }
        }
        if changes.is_empty() {
            return Ok(self);
        }
        Err(folder.refusal(format!(
            "it was begun with another set or other options ({}); give those again, or another \
             folder",
            changes.join("; ")
        )))
    }
}

/// Some items from places all over the set.
fn tried_items(set: &RawSet) -> Result<Vec<Item>, DataError> {
    let parts = set.parts(TRIED_PART_ITEMS)?;
    let mut items = Vec::new();
    let step = parts.len().div_ceil(TRIED_PARTS).max(1);
    let mut bytes = 0;
    for part in parts.iter().step_by(step) {
        let mut count = 0;
        let read = set.read(part, &mut |item| {
            bytes += item.as_ref().map_or(0, Item::held_bytes);
            items.extend(item.ok());
            count += 1;
            if count < TRIED_ITEMS && bytes < TRIED_BYTES {
                Ok(())
            } else {
                Err(DataError::Ended("enough".to_owned()))
            }
        });
        if count < TRIED_ITEMS && bytes < TRIED_BYTES {
            read?;
        }
        if bytes >= TRIED_BYTES {
            break;
        }
    }
    Ok(items)
}
