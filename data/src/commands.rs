//! The commands `inspect` and `index` of `vljepa-shards`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use vljepa_data::shard_index::{Loaded, ShardIndex, index_path, load_or_make};
use vljepa_data::shards::expand;

/// Prints for each shard the number of samples, the size of each field, the first `shown` samples,
/// the dropped samples with the reason, and warnings. Fails at the end if a shard cannot be used.
pub(crate) fn inspect(entries: &[String], shown: usize, output: &mut impl Write) -> Result<()> {
    let (mut samples, mut dropped) = (0, 0);
    let errors = for_each_shard(entries, output, |path, loaded, output| {
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
    let shards = errors.shards - errors.bad;
    writeln!(output, "{samples} samples in {shards} shards, {dropped} dropped")?;
    errors.into_result()
}

/// Makes the indexes that are missing or out of date, and prints their paths. Fails at the end if a
/// shard cannot be used.
pub(crate) fn index(entries: &[String], output: &mut impl Write) -> Result<()> {
    let errors = for_each_shard(entries, output, |path, loaded, output| {
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
    errors.into_result()
}

/// Number of shards, and of those that cannot be used.
struct Errors {
    shards: usize,
    bad: usize,
}

impl Errors {
    fn into_result(self) -> Result<()> {
        let Self { shards, bad } = self;
        anyhow::ensure!(bad == 0, "{bad} of {shards} shards cannot be used; each is named above");
        Ok(())
    }
}

/// Calls `show` with each shard of `entries`. Prints the error of each shard that cannot be used.
fn for_each_shard<W: Write>(
    entries: &[String],
    output: &mut W,
    mut show: impl FnMut(&Path, &Loaded, &mut W) -> Result<()>,
) -> Result<Errors> {
    let mut paths = Vec::new();
    for entry in entries {
        paths.extend(expand(entry)?);
    }
    let mut errors = Errors { shards: paths.len(), bad: 0 };
    for path in &paths {
        match load_or_make(path) {
            Ok(loaded) => show(path, &loaded, output)?,
            Err(error) => {
                errors.bad += 1;
                writeln!(output, "error: {error}")?;
            }
        }
    }
    Ok(errors)
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
