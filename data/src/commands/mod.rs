//! The commands `prepare`, `inspect`, `index` and `bench` of `vljepa-shards`.

mod bench;
mod prepare;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use vljepa_data::DataError;
use vljepa_data::catalogue::{CatalogueFolder, Expanded, Unlisted, Updated, update};
use vljepa_data::shard_index::ShardIndex;
use vljepa_data::storage::Storage;

pub(crate) use self::bench::{BenchArgs, bench};
pub(crate) use self::prepare::prepare;

/// Prints for each shard the number of samples, the size of each field, the first `shown` samples,
/// the dropped samples with the reason, and warnings. Fails at the end with all shards that cannot
/// be used.
pub(crate) fn inspect(entries: &[String], shown: usize, output: &mut impl Write) -> Result<()> {
    let (mut samples, mut dropped, mut usable) = (0, 0, 0);
    let (storage, mut errors) = (Storage::default(), Vec::new());
    for entry in entries {
        for shard in storage.expand(entry)? {
            let path = shard.location.to_string();
            let read = storage.open(&shard.location).and_then(|tar| ShardIndex::of(&tar));
            let index = match read {
                Ok(index) => index,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            usable += 1;
            samples += index.samples.len();
            dropped += index.dropped.len();
            let (samples, dropped) = (index.samples.len(), index.dropped.len());
            writeln!(output, "{path}: {samples} samples, {dropped} dropped")?;
            print_index(&index, shown, output)?;
        }
    }
    writeln!(output, "{samples} samples in {usable} shards, {dropped} dropped")?;
    refuse(&errors, usable)
}

/// Updates the catalogue of each entry in the folder `chosen`, or beside its shards. Prints the
/// warnings about each shard, and how far the update is. Fails at the end with all shards that
/// cannot be used.
pub(crate) fn index(
    entries: &[String],
    chosen: Option<&Path>,
    output: &mut impl Write,
) -> Result<()> {
    let storage = Storage::default();
    let (mut errors, mut usable) = (Vec::new(), 0);
    for entry in entries {
        let set = Expanded::of(&storage, entry)?;
        let folder = CatalogueFolder::of(&set, chosen)?;
        let count = set.shards.len();
        let updated = update(&storage, &set.shards, &folder, Unlisted::Ask, &|done| {
            // A terminal that is gone does not stop the update.
            drop(writeln!(
                std::io::stderr(),
                "{entry}: {done} of at most {count} shards were read"
            ));
        });
        let Updated { shards, made, unwritten, .. } = updated;
        for (path, record) in shards.iter().filter(|(_, record)| record.remarks > 0) {
            for remark in folder.open_shard(&storage, path, record)?.1.remarks() {
                writeln!(output, "{path}: warning: {remark}")?;
            }
        }
        let folder = folder.path.display();
        if let Some(error) = unwritten {
            anyhow::bail!(
                "the catalogue {folder} cannot be written: {error}; name another folder with \
                 --catalogue, and in the recipe with the key `catalogue` beside `shards`"
            );
        }
        let samples: u64 = shards.iter().map(|(_, record)| record.samples).sum();
        writeln!(
            output,
            "{folder}: {samples} samples in {} shards, of which {made} were read now",
            shards.len()
        )?;
        usable += shards.len();
        errors.extend(updated.errors);
    }
    refuse(&errors, usable)
}

/// An error that lists every shard that cannot be used, if there is one.
fn refuse(errors: &[DataError], usable: usize) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let lines: String = errors.iter().map(|error| format!("\n- {error}")).collect();
    let bad = errors.len();
    anyhow::bail!("{bad} of {} shards cannot be used:{lines}", usable + bad)
}

fn print_index(index: &ShardIndex, shown: usize, output: &mut impl Write) -> Result<()> {
    let mut by_field: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for member in index.samples.iter().flat_map(|sample| &sample.members) {
        let (count, bytes) = by_field.entry(&index.fields[usize::from(member.field)]).or_default();
        *count += 1;
        *bytes += member.length;
    }
    for (field, (count, bytes)) in by_field {
        writeln!(output, "  {count:>8} × {field} ({bytes} bytes)")?;
    }
    for sample in index.samples.iter().take(shown) {
        let member = |member: &vljepa_data::shard_index::IndexedMember| {
            format!("{} {}", index.fields[usize::from(member.field)], member.length)
        };
        let members: Vec<String> = sample.members.iter().map(member).collect();
        writeln!(output, "  {}: {}", sample.key, members.join(", "))?;
    }
    for dropped in &index.dropped {
        writeln!(output, "  dropped {}: {}", dropped.key, dropped.reason)?;
    }
    for warning in &index.warnings {
        writeln!(output, "  warning: {warning}")?;
    }
    Ok(())
}
