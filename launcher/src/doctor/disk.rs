//! The disk of the run: room for checkpoints, and the rate at which they are written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vljepa_recipes::cost::parameters;
use vljepa_recipes::node;
use vljepa_recipes::protocol::CheckName;
use vljepa_recipes::schema::Recipe;

use super::finding::{Fact, Finding};
use super::machine::within;
use crate::platform::health::advice;
use crate::terminal;

/// How long blocks are written. Syncing them comes on top.
const MEASURED: Duration = Duration::from_secs(1);
/// Size of a write.
const BLOCK_BYTES: usize = 4 << 20;
/// Most bytes that are written: enough for a rate, and little beside a checkpoint.
const MOST_BYTES: u64 = 256 << 20;
/// How long all of it may take before the disk counts as hung.
const LIMIT: Duration = Duration::from_secs(30);

/// Judges the disk that holds the run directory `run`, which need not exist.
pub(super) async fn look(run: &Path, recipe: Option<&Recipe>) -> Vec<Finding> {
    let (run, recipe) = (run.to_owned(), recipe.cloned());
    let looked = within(LIMIT, move || {
        let folder = existing(&run);
        vec![room(&folder, recipe.as_ref()), rate(&folder, recipe.as_ref())]
    });
    looked.await.unwrap_or_else(|why| {
        vec![Finding::fail(Fact::DiskRate, why, advice(CheckName::RunDirectory))]
    })
}

/// The folder, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let found = folder.ancestors().find(|ancestor| ancestor.is_dir());
    found.unwrap_or_else(|| Path::new("/")).to_owned()
}

/// Bytes of one checkpoint, and the largest number of them on the disk at once. A run that trains
/// nothing writes none.
fn checkpoints(recipe: Option<&Recipe>) -> (u64, u64) {
    let trained = recipe.filter(|recipe| !recipe.stages.is_empty());
    trained.map_or((0, 0), |recipe| {
        let bytes = parameters(&recipe.model).checkpoint_bytes();
        // One more is written while the others are there.
        (bytes, recipe.most_checkpoints() as u64 + 1)
    })
}

fn room(folder: &Path, recipe: Option<&Recipe>) -> Finding {
    let (bytes, most) = checkpoints(recipe);
    let help = advice(CheckName::Room);
    let found = match node::room(folder, bytes) {
        Ok(found) => format!("{}: {found}", folder.display()),
        Err(found) => {
            return Finding::fail(Fact::Room, format!("{}: {found}", folder.display()), help);
        }
    };
    let needed = bytes.saturating_mul(most);
    let is_tight = node::space(folder).is_ok_and(|[free, _]| free <= needed && needed > 0);
    if is_tight {
        let found = format!("{found}; up to {most} are kept, {} MiB", needed >> 20);
        return Finding::warn(Fact::Room, found, help);
    }
    Finding::pass(Fact::Room, found)
}

/// Writes blocks to a file without a name, so that nothing is left behind even if the program is
/// killed.
fn rate(folder: &Path, recipe: Option<&Recipe>) -> Finding {
    let written = || -> std::io::Result<(u64, Duration)> {
        let mut file = tempfile::tempfile_in(folder)?;
        // A quarter of a small disk is enough.
        let quarter = node::space(folder).map_or(MOST_BYTES, |[free, _]| free / 4);
        // Numbers that no file system compresses.
        let mut block = vec![0_u8; BLOCK_BYTES];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for part in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            part.copy_from_slice(&state.to_le_bytes());
        }
        let (start, mut bytes) = (Instant::now(), 0);
        while bytes == 0 || (bytes < MOST_BYTES.min(quarter) && start.elapsed() < MEASURED) {
            file.write_all(&block)?;
            bytes += BLOCK_BYTES as u64;
        }
        file.sync_all()?;
        Ok((bytes, start.elapsed()))
    };
    match written() {
        Ok((bytes, time)) => judge_rate(bytes, time.as_secs_f64(), recipe),
        Err(error) => {
            let found = format!("{}: writing a file failed: {error}", folder.display());
            let help = match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => CheckName::Room,
                _ => CheckName::RunDirectory,
            };
            Finding::fail(Fact::DiskRate, found, advice(help))
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
fn judge_rate(bytes: u64, seconds: f64, recipe: Option<&Recipe>) -> Finding {
    let rate = bytes as f64 / seconds.max(1e-6);
    let found = format!("{:.0} MB/s written and synced", rate / 1e6);
    let (checkpoint, _) = checkpoints(recipe);
    let Some(recipe) = recipe.filter(|_| checkpoint > 0) else {
        return Finding::pass(Fact::DiskRate, found);
    };
    // All ranks of all nodes write their parts to the same disk.
    let save_s = checkpoint as f64 / rate;
    let found = format!("{found}; a checkpoint takes {}", terminal::duration(save_s));
    let limit_s = recipe.cluster.start_timeout_s;
    if save_s > limit_s as f64 {
        let help = format!(
            "choose a faster disk (--set runs=FOLDER), or raise cluster.start_timeout_s, after \
             whose {limit_s} s a save counts as hung"
        );
        return Finding::warn(Fact::DiskRate, found, help);
    }
    Finding::pass(Fact::DiskRate, found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{existing, judge_rate, look};
    use crate::doctor::finding::{Fact, State};

    #[tokio::test]
    async fn a_disk_is_measured_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/deep");
        let found = look(&run, None).await;
        let states: Vec<(Fact, State)> = found.iter().map(|one| (one.fact, one.state)).collect();
        assert_eq!(states, [(Fact::Room, State::Pass), (Fact::DiskRate, State::Pass)], "{found:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        // Not even root can write there.
        let refused = look(Path::new("/proc/self"), None).await;
        assert_eq!(refused.last().unwrap().state, State::Fail);
        assert!(refused.last().unwrap().found.contains("/proc/self"), "{refused:?}");
    }

    #[test]
    fn a_folder_that_does_not_exist_is_measured_where_it_would_be_made() {
        assert_eq!(existing(Path::new("/proc/no/such/folder")), Path::new("/proc"));
        assert_eq!(existing(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn a_disk_on_which_a_save_counts_as_hung_is_a_warning() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/pretrain.yaml");
        let recipe = vljepa_recipes::load(&recipe, &[]).unwrap().recipe;
        assert_eq!(judge_rate(1 << 30, 1.0, Some(&recipe)).state, State::Pass);
        let slow = judge_rate(1 << 20, 1.0, Some(&recipe));
        assert_eq!(slow.state, State::Warn, "{slow:?}");
        assert_eq!(judge_rate(1 << 20, 1.0, None).state, State::Pass);
    }
}
