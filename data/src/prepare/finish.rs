//! Ends a preparation: names the shards, and writes their catalogue, the lists and the manifest.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Prepared;
use super::folder::{Folder, MANIFEST};
use super::options::Options;
use super::plan::Plan;
use super::spool::ShardRecord;
use super::stats::Stats;
use crate::catalogue::Catalogue;
use crate::error::DataError;
use crate::storage::Storage;

/// Contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Manifest {
    /// Program that wrote the set, with its version.
    program: String,
    options: Options,
    /// What the set was.
    set: std::collections::BTreeMap<String, String>,
    samples: u64,
    bytes: u64,
    shards: Vec<NamedShard>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NamedShard {
    name: String,
    #[serde(flatten)]
    record: ShardRecord,
}

/// The result, if the folder holds it. Removes what is left of the parts.
pub(super) fn finished(folder: &Folder) -> Result<Option<Prepared>, DataError> {
    if !folder.path().join(MANIFEST).exists() {
        return Ok(None);
    }
    let manifest: Manifest = read(folder, MANIFEST)?;
    for NamedShard { name, record } in &manifest.shards {
        let path = folder.path().join(name);
        let length = fs::metadata(&path).map_err(DataError::io("read", &path))?.len();
        if length != record.bytes {
            return Err(folder.refusal(format!(
                "{name} has {length} bytes, but the manifest says {}; prepare the set into another \
                 folder",
                record.bytes
            )));
        }
    }
    folder.remove_parts()?;
    let stats = read(folder, "stats.json")?;
    Ok(Some(Prepared { up_to_date: true, shards: manifest.shards.len(), stats }))
}

/// Ends a preparation whose parts are finished. After an interruption it can be repeated.
pub(super) fn finish(
    folder: &Folder,
    plan: &Plan,
    storage: &Storage,
) -> Result<Prepared, DataError> {
    let mut stats = Stats::default();
    let mut left_out = Vec::new();
    let mut shards = Vec::new();
    for number in 0..plan.parts {
        let record = folder.record(number)?;
        stats.add(&record.stats);
        for item in &record.left_out {
            serde_json::to_writer(&mut left_out, item)
                .map_err(|error| folder.refusal(error.to_string()))?;
            left_out.push(b'\n');
        }
        let named = |(nth, shard)| (folder.part(number, &format!("-{nth:03}.tar")), shard);
        shards.extend(record.shards.into_iter().enumerate().map(named));
    }
    folder.write_bytes(&folder.path().join("left-out.jsonl"), &left_out)?;
    folder.write("stats.json", &stats)?;
    if shards.is_empty() {
        return Err(folder.refusal(format!(
            "no item of the set became a sample; left-out.jsonl gives the reason of each of the {} \
             items",
            stats.left_out.values().sum::<u64>()
        )));
    }
    let shards = name_shards(folder, &plan.options.name, shards)?;
    // Opening the catalogue writes it.
    let entry = folder.path().to_string_lossy();
    let catalogue = Catalogue::open(storage, &entry, None)?;
    let samples: u64 = catalogue.lengths().sum();
    if samples != stats.samples {
        return Err(folder.refusal(format!(
            "its shards hold {samples} samples, but {} were written; another program has changed \
             them",
            stats.samples
        )));
    }
    let bytes = shards.iter().map(|shard| shard.record.bytes).sum();
    let count = shards.len();
    let manifest = Manifest {
        program: format!("vljepa-shards {}", env!("CARGO_PKG_VERSION")),
        options: plan.options.clone(),
        set: plan.set.clone(),
        samples,
        bytes,
        shards,
    };
    folder.write(MANIFEST, &manifest)?;
    folder.remove_parts()?;
    Ok(Prepared { up_to_date: false, shards: count, stats })
}

/// Moves the shards of the parts to their names in the folder.
fn name_shards(
    folder: &Folder,
    name: &str,
    shards: Vec<(PathBuf, ShardRecord)>,
) -> Result<Vec<NamedShard>, DataError> {
    // Shards sort by name in their order.
    let digits = shards.len().to_string().len().max(6);
    let mut named = Vec::with_capacity(shards.len());
    for (number, (from, record)) in shards.into_iter().enumerate() {
        let name = format!("{name}-{number:0digits$}.tar");
        let to = folder.path().join(&name);
        // A run that was killed may have moved it already.
        if from.exists() {
            fs::rename(&from, &to).map_err(DataError::io("rename", &from))?;
        }
        let length = fs::metadata(&to).map_err(DataError::io("read", &to))?.len();
        if length != record.bytes {
            return Err(folder.refusal(format!(
                "{name} has {length} bytes, but {} were written; remove the folder and start again",
                record.bytes
            )));
        }
        named.push(NamedShard { name, record });
    }
    Ok(named)
}

fn read<T: serde::de::DeserializeOwned>(folder: &Folder, name: &str) -> Result<T, DataError> {
    super::folder::read(&folder.path().join(name))
}
