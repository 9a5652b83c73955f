//! The disk of the run: room for checkpoints, and the rate at which they are written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vljepa_recipes::RunDirectory;
use vljepa_recipes::cost::parameters;
use vljepa_recipes::node;
use vljepa_recipes::protocol::CheckName;
use vljepa_recipes::schema::Recipe;

use super::finding::{Fact, Finding};
use super::machine::within;
use crate::platform::health::advice;
use crate::terminal;

/// How long blocks are written and synced. A slow disk writes few of them.
const MEASURED: Duration = Duration::from_secs(1);
/// Size of a write.
const BLOCK_BYTES: usize = 4 << 20;
/// Most bytes that are written: enough for a rate, and little beside a checkpoint.
const MOST_BYTES: u64 = 256 << 20;
/// How long the file system may take to say how much room it has, before it counts as hung.
const ROOM_LIMIT: Duration = Duration::from_secs(10);
/// How long the writing may take before the disk counts as hung: one block at 140 kB/s.
const RATE_LIMIT: Duration = Duration::from_secs(30);

/// Judges the disk that holds the run directory `run`, which need not exist. `nodes` is the number
/// of nodes that measure their disks at the same time.
pub(super) async fn look(run: &Path, recipe: Option<&Recipe>, nodes: usize) -> Vec<Finding> {
    let hung = |fact, why: String| {
        let found = format!("{}: {why}", run.display());
        Finding::fail(fact, found, advice(CheckName::RunDirectory))
    };
    let (folder, wanted) = (run.to_owned(), recipe.cloned());
    let room = match within(ROOM_LIMIT, move || room(&folder, wanted.as_ref())).await {
        Ok(room) => room,
        // A test of the rate would only leave another thread behind.
        Err(why) => return vec![hung(Fact::Room, why)],
    };
    let (folder, wanted) = (run.to_owned(), recipe.cloned());
    let rate = within(RATE_LIMIT, move || rate(&existing(&folder), wanted.as_ref(), nodes)).await;
    vec![room, rate.unwrap_or_else(|why| hung(Fact::DiskRate, why))]
}

/// The folder, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let found = folder.ancestors().find(|ancestor| ancestor.is_dir());
    found.unwrap_or_else(|| Path::new("/")).to_owned()
}

/// Bytes of one checkpoint, and the largest number of them on the disk at once, with the one that
/// is being written. A run that trains nothing writes none.
fn checkpoints(recipe: Option<&Recipe>) -> (u64, u64) {
    let trained = recipe.filter(|recipe| !recipe.stages.is_empty());
    trained.map_or((0, 0), |recipe| {
        let bytes = parameters(&recipe.model).checkpoint_bytes();
        (bytes, recipe.most_checkpoints() as u64 + 1)
    })
}

/// Judges the room for the checkpoints of the run directory `run`.
fn room(run: &Path, recipe: Option<&Recipe>) -> Finding {
    let folder = existing(run);
    let (bytes, most) = checkpoints(recipe);
    let help = advice(CheckName::Room);
    let found = match node::room(&folder, bytes) {
        Ok(found) => format!("{}: {found}", folder.display()),
        Err(found) => {
            return Finding::fail(Fact::Room, format!("{}: {found}", folder.display()), help);
        }
    };
    // A run that continues has written some of them.
    let written = RunDirectory::open(run).map_or(0, |run| run.checkpoint_steps().len() as u64);
    let needed = bytes.saturating_mul(most.saturating_sub(written).max(1));
    let is_tight = node::space(&folder).is_ok_and(|[free, _]| free <= needed && needed > 0);
    if is_tight {
        let there = match written {
            0 => String::new(),
            written => format!(", of which {written} are there"),
        };
        let found = format!(
            "{found}; up to {most} exist at once{there}: {} MiB more are needed",
            needed >> 20
        );
        return Finding::warn(Fact::Room, found, help);
    }
    Finding::pass(Fact::Room, found)
}

/// Writes blocks to a file without a name, so that nothing is left behind even if the program is
/// killed.
fn rate(folder: &Path, recipe: Option<&Recipe>, nodes: usize) -> Finding {
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
        timed(MOST_BYTES.min(quarter), || {
            file.write_all(&block)?;
            file.sync_data()
        })
    };
    match written() {
        Ok((bytes, time)) => judge_rate(folder, bytes, time.as_secs_f64(), nodes, recipe),
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

/// Writes blocks for [`MEASURED`], at least one and `most` bytes at most. Returns the bytes that
/// were written and how long it took. Each block is synced before the next one, so that a slow disk
/// ends in time instead of syncing what the memory has taken.
fn timed(
    most: u64,
    mut write: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<(u64, Duration)> {
    let (start, mut bytes) = (Instant::now(), 0);
    while bytes == 0 || (bytes < most && start.elapsed() < MEASURED) {
        write()?;
        bytes += BLOCK_BYTES as u64;
    }
    Ok((bytes, start.elapsed()))
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
fn judge_rate(
    folder: &Path,
    bytes: u64,
    seconds: f64,
    nodes: usize,
    recipe: Option<&Recipe>,
) -> Finding {
    let rate = bytes as f64 / seconds.max(1e-6);
    let found = format!("{}: {:.0} MB/s written and synced", folder.display(), rate / 1e6);
    let (checkpoint, _) = checkpoints(recipe);
    let Some(recipe) = recipe.filter(|_| checkpoint > 0) else {
        return Finding::pass(Fact::DiskRate, found);
    };
    // All nodes write their parts of a checkpoint at the same time, as they measure.
    let save_s = checkpoint as f64 / (rate * nodes.max(1) as f64);
    let writers = match nodes {
        0 | 1 => "a checkpoint takes".to_owned(),
        nodes => format!("{nodes} nodes write a checkpoint in"),
    };
    let found = format!("{found}; {writers} {}", terminal::duration(save_s));
    let limit_s = recipe.cluster.start_timeout_s;
    if save_s > limit_s as f64 {
        let help = format!(
            "choose a faster disk (--set runs=FOLDER), or raise cluster.start_timeout_s: the \
             first save counts as hung after {limit_s} s"
        );
        return Finding::warn(Fact::DiskRate, found, help);
    }
    Finding::pass(Fact::DiskRate, found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use vljepa_recipes::Recipe;

    use super::{BLOCK_BYTES, MOST_BYTES, checkpoints, existing, judge_rate, look, room, timed};
    use crate::doctor::finding::{Fact, State};

    fn recipe(name: &str, sets: &[String]) -> Recipe {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes").join(name);
        vljepa_recipes::load(&recipe, sets).unwrap().recipe
    }

    #[tokio::test]
    async fn a_disk_is_measured_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/deep");
        let found = look(&run, None, 1).await;
        let states: Vec<(Fact, State)> = found.iter().map(|one| (one.fact, one.state)).collect();
        assert_eq!(states, [(Fact::Room, State::Pass), (Fact::DiskRate, State::Pass)], "{found:?}");
        let name = folder.path().display().to_string();
        assert!(found.iter().all(|one| one.found.starts_with(&name)), "{found:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        // Not even root can write there.
        let refused = look(Path::new("/proc/self"), None, 1).await;
        assert_eq!(refused.last().unwrap().state, State::Fail);
        assert!(refused.last().unwrap().found.contains("/proc/self"), "{refused:?}");
    }

    #[test]
    fn a_slow_disk_writes_less_and_a_fast_one_no_more_than_needed() {
        let (_held, never) = std::sync::mpsc::channel::<()>();
        let slow = || {
            never.recv_timeout(Duration::from_millis(300)).unwrap_err();
            Ok(())
        };
        let (bytes, time) = timed(MOST_BYTES, slow).unwrap();
        // A block takes 300 ms or more, so a second ends with the fourth one.
        assert!((1..=4).contains(&(bytes / BLOCK_BYTES as u64)), "{bytes}");
        assert!(time >= Duration::from_millis(300));
        assert!(timed(2 * BLOCK_BYTES as u64, || Ok(())).unwrap().0 <= 2 * BLOCK_BYTES as u64);
        assert_eq!(timed(0, || Ok(())).unwrap().0, BLOCK_BYTES as u64);
        assert!(timed(MOST_BYTES, || Err(std::io::ErrorKind::StorageFull.into())).is_err());
    }

    #[test]
    fn a_folder_that_does_not_exist_is_measured_where_it_would_be_made() {
        assert_eq!(existing(Path::new("/proc/no/such/folder")), Path::new("/proc"));
        assert_eq!(existing(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn a_disk_on_which_a_save_counts_as_hung_is_a_warning() {
        let recipe = recipe("pretrain.yaml", &[]);
        let judged = |bytes, nodes, recipe| judge_rate(Path::new("/d"), bytes, 1.0, nodes, recipe);
        assert_eq!(judged(1 << 30, 1, Some(&recipe)).state, State::Pass);
        let slow = judged(1 << 20, 1, Some(&recipe));
        assert_eq!(slow.state, State::Warn, "{slow:?}");
        assert_eq!(judged(1 << 20, 1, None).state, State::Pass);
        // Nodes that measure at the same time share the disk, and also the checkpoint.
        let shared = judged(1 << 20, 1024, Some(&recipe));
        assert_eq!(shared.state, State::Pass, "{shared:?}");
        assert!(shared.found.contains("1024 nodes write a checkpoint in"), "{shared:?}");
    }

    #[test]
    fn checkpoints_that_a_run_has_written_need_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let [free, _] = vljepa_recipes::node::space(folder.path()).unwrap();
        // 200 more than the disk has room for, because other programs write too.
        let bytes = checkpoints(Some(&recipe("quickstart.yaml", &[]))).0;
        let keep = free / bytes + 200;
        let recipe = recipe("quickstart.yaml", &[format!("checkpoints.keep={keep}")]);
        let tight = room(folder.path(), Some(&recipe));
        assert_eq!(tight.state, State::Warn, "{tight:?}");
        let most = checkpoints(Some(&recipe)).1;
        assert!(tight.found.contains(&format!("up to {most} exist at once: ")), "{tight:?}");
        std::fs::write(folder.path().join("recipe.yaml"), "").unwrap();
        let run = vljepa_recipes::RunDirectory::open(folder.path()).unwrap();
        for step in 0..400 {
            std::fs::create_dir_all(run.checkpoint(step)).unwrap();
        }
        let resumed = room(folder.path(), Some(&recipe));
        assert_eq!(resumed.state, State::Pass, "{resumed:?}");
    }
}
