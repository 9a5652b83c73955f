//! The commands `inspect` and `index` of `vljepa-shards`.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use vljepa_data::shard_index::{ShardIndex, index_path, load_or_make};
use vljepa_data::shards::expand;

/// Prints for each shard the number of samples, the size of each field, the first `shown` samples,
/// and the dropped samples with the reason.
pub(crate) fn inspect(shards: &[String], shown: usize, output: &mut impl Write) -> Result<()> {
    let mut total = 0;
    let mut dropped = 0;
    let mut shard_count = 0;
    for path in shards_of(shards)? {
        let index = load_or_make(&path)?.index;
        writeln!(
            output,
            "{}: {} samples, {} dropped",
            path.display(),
            index.samples.len(),
            index.dropped.len()
        )?;
        print_index(&index, shown, output)?;
        total += index.samples.len();
        dropped += index.dropped.len();
        shard_count += 1;
    }
    writeln!(output, "{total} samples in {shard_count} shards, {dropped} dropped")?;
    Ok(())
}

/// Makes the indexes that are missing or out of date, and prints their paths.
pub(crate) fn index(shards: &[String], output: &mut impl Write) -> Result<()> {
    for path in shards_of(shards)? {
        let loaded = load_or_make(&path)?;
        let index_file = index_path(&path);
        let state = match (loaded.on_disk, loaded.made) {
            (true, true) => "written",
            (true, false) => "up to date",
            (false, _) => "cannot be written; every run makes it again",
        };
        let samples = loaded.index.samples.len();
        writeln!(output, "{}: {samples} samples, {state}", index_file.display())?;
    }
    Ok(())
}

fn shards_of(entries: &[String]) -> Result<Vec<std::path::PathBuf>> {
    let mut paths = Vec::new();
    for entry in entries {
        paths.extend(expand(entry)?);
    }
    Ok(paths)
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
    Ok(())
}
