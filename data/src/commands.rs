//! The commands `inspect` and `index` of `vljepa-shards`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use vljepa_data::DataError;
use vljepa_data::shard_index::{Loaded, ShardIndex, index_path, load_or_make};
use vljepa_data::shards::expand;

/// Prints for each shard the number of samples, the size of each field, the first `shown` samples,
/// the dropped samples with the reason, and warnings. Fails at the end with all shards that cannot
/// be used.
pub(crate) fn inspect(entries: &[String], shown: usize, output: &mut impl Write) -> Result<()> {
    let (mut samples, mut dropped) = (0, 0);
    let shards = for_each_shard(entries, output, |path, loaded, output| {
        let index = &loaded.index;
        samples += index.samples.len();
        dropped += index.dropped.len();
        writeln!(
            output,
            "{}: {} samples, {} dropped",
            path.display(),
            index.samples.len(),
            index.dropped.len()
        )?;
        print_index(index, shown, output)
    })?;
    writeln!(output, "{samples} samples in {} shards, {dropped} dropped", shards.usable)?;
    shards.into_result()
}

/// Makes the indexes that are missing or out of date, and prints their paths. Fails at the end with
/// all shards that cannot be used.
pub(crate) fn index(entries: &[String], output: &mut impl Write) -> Result<()> {
    let shards = for_each_shard(entries, output, |path, loaded, output| {
        let state = match (loaded.on_disk, loaded.made) {
            (true, true) => "written",
            (true, false) => "up to date",
            (false, _) => "cannot be written; every run makes it again",
        };
        let samples = loaded.index.samples.len();
        writeln!(output, "{}: {samples} samples, {state}", index_path(path).display())?;
        for remark in loaded.index.remarks() {
            writeln!(output, "  warning: {remark}")?;
        }
        Ok(())
    })?;
    shards.into_result()
}

/// Shards that a command has read.
struct Shards {
    usable: usize,
    errors: Vec<DataError>,
}

impl Shards {
    /// An error that lists every shard that cannot be used, if there is one.
    fn into_result(self) -> Result<()> {
        let Self { usable, errors } = self;
        if errors.is_empty() {
            return Ok(());
        }
        let lines: String = errors.iter().map(|error| format!("\n- {error}")).collect();
        let bad = errors.len();
        anyhow::bail!("{bad} of {} shards cannot be used:{lines}", usable + bad)
    }
}

/// Calls `show` with each shard of `entries` that can be used.
fn for_each_shard<W: Write>(
    entries: &[String],
    output: &mut W,
    mut show: impl FnMut(&Path, &Loaded, &mut W) -> Result<()>,
) -> Result<Shards> {
    let mut shards = Shards { usable: 0, errors: Vec::new() };
    for entry in entries {
        for path in expand(entry)? {
            match load_or_make(&path) {
                Ok(loaded) => {
                    shards.usable += 1;
                    show(&path, &loaded, output)?;
                }
                Err(error) => shards.errors.push(error),
            }
        }
    }
    Ok(shards)
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
