//! The job `check`: tests whether ranks could run on this node, in a second or two and without
//! communication between ranks.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use vljepa_data::DataError;
use vljepa_data::storage::{Storage, StorageOptions};
use vljepa_recipes::protocol::{Check, CheckName, Checked};
use vljepa_recipes::{Loaded, Recipe, RunDirectory, clock, schema};

use crate::rank::control::Control;
use crate::rank::device;
use crate::rank::environment::Environment;

/// Allowed clock difference, in seconds. Time stamps of logs stay comparable, and a node that was
/// asked late still passes.
const CLOCK_S: i64 = 60;
/// Space in `/dev/shm` that a rank on CPUs needs: Open MPI maps a few segments of 4 MiB.
const HOST_SHARED_BYTES: u64 = 16 << 20;
/// Space in `/dev/shm` that a rank on a GPU needs, for NCCL's buffers between processes of a node.
const CUDA_SHARED_BYTES: u64 = 32 << 20;

type CheckResult = Result<String, String>;

/// Runs every check and returns one JSON line per check.
///
/// # Errors
/// Fails if the run directory does not hold a run: then no check is possible.
pub fn check(run: &Path, expected: &Check) -> anyhow::Result<String> {
    let environment = Environment::read();
    let directory = RunDirectory::open(run)?;
    let loaded = directory.load_recipe()?;
    let lines = CheckName::ALL.map(|check| {
        let found = run_check(check, &directory, &loaded, expected, &environment);
        let (passed, detail) = match found {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        let line = Checked { host: environment.host.clone(), check, passed, detail };
        serde_json::to_string(&line)
    });
    let lines: Result<Vec<String>, _> = lines.into_iter().collect();
    Ok(lines?.join("\n"))
}

fn run_check(
    check: CheckName,
    directory: &RunDirectory,
    loaded: &Loaded,
    expected: &Check,
    environment: &Environment,
) -> CheckResult {
    let recipe = &loaded.recipe;
    match check {
        CheckName::Binary => {
            // The build text is the version, followed by the beginning of the hash.
            let own = environment.build.rsplit(' ').next().unwrap_or_default();
            let same = !own.is_empty() && expected.binary.starts_with(own);
            let binary = &expected.binary;
            if same {
                Ok(own.to_owned())
            } else {
                Err(format!("{own}, but the supervisor has {binary}"))
            }
        }
        CheckName::Recipe => {
            let (own, supervisors) = (&loaded.hash, &expected.recipe_hash);
            if own == supervisors {
                return Ok(own.clone());
            }
            Err(format!(
                "its hash is {own}, but {supervisors} at the supervisor: this node sees other files"
            ))
        }
        CheckName::Clock => {
            let ahead_s = clock::now().as_second() - expected.time_s;
            let text = format!("{ahead_s} s ahead of the supervisor's");
            if ahead_s.abs() <= CLOCK_S { Ok(text) } else { Err(text) }
        }
        CheckName::Device => {
            device::examine(recipe, expected.ranks).map_err(|error| format!("{error:#}"))
        }
        CheckName::Cpus => cpus(recipe, environment.cpus(expected.ranks)),
        CheckName::RunDirectory => writable(directory.path(), &environment.host),
        CheckName::Room => disk_space(&directory.checkpoints(), expected.checkpoint_bytes),
        CheckName::SharedMemory => shared_memory(recipe, expected.ranks),
        CheckName::Shards => shards(recipe),
        CheckName::Control => Control::knock(&expected.control, &environment.token)
            .map(|()| expected.control.clone())
            .map_err(|error| format!("{error:#}")),
    }
}

/// Compares the CPUs of one rank with those that the recipe asks Slurm for.
fn cpus(recipe: &Recipe, found: usize) -> CheckResult {
    let cluster = &recipe.cluster;
    let asked = match cluster.scheduler {
        schema::Scheduler::Slurm => cluster.slurm.cpus_per_rank,
        schema::Scheduler::Local => 0,
    };
    if found >= asked {
        return Ok(format!("{found} for each rank"));
    }
    Err(format!("a rank may use {found}, but cluster.slurm.cpus_per_rank asks for {asked}"))
}

/// Writes, syncs, reads back and deletes a small file.
fn writable(root: &Path, host: &str) -> CheckResult {
    let file = root.join(format!(".check-{host}-{}", std::process::id()));
    let text = b"written and read back";
    let work = || -> std::io::Result<bool> {
        let mut writing = File::create(&file)?;
        writing.write_all(text)?;
        writing.sync_all()?;
        let same = std::fs::read(&file)? == text;
        std::fs::remove_file(&file)?;
        Ok(same)
    };
    match work() {
        Ok(true) => Ok(root.display().to_string()),
        Ok(false) => Err(format!("{}: a file read back differs from its source", root.display())),
        Err(error) => {
            // The file may not exist. Report the first error, not this one.
            std::fs::remove_file(&file).unwrap_or_default();
            Err(format!("{}: {error}", root.display()))
        }
    }
}

fn free_bytes(folder: &Path) -> Result<u64, String> {
    let space = statvfs(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(space.blocks_available().saturating_mul(space.fragment_size()))
}

fn disk_space(folder: &Path, needed: u64) -> CheckResult {
    let free = free_bytes(folder)?;
    let text = match needed {
        0 => format!("{} MiB free", free >> 20),
        _ => format!("{} MiB free, a checkpoint takes {} MiB", free >> 20, (needed >> 20) + 1),
    };
    if free > needed { Ok(text) } else { Err(text) }
}

fn shared_memory(recipe: &Recipe, ranks: usize) -> CheckResult {
    if ranks < 2 {
        return Ok("not needed by one rank".to_owned());
    }
    let each = match recipe.device {
        schema::Device::Host => HOST_SHARED_BYTES,
        schema::Device::Cuda => CUDA_SHARED_BYTES,
    };
    let (free, needed) = (free_bytes(Path::new("/dev/shm"))?, each * ranks as u64);
    let text =
        format!("/dev/shm has {} MiB free, {ranks} ranks need {} MiB", free >> 20, needed >> 20);
    if free >= needed { Ok(text) } else { Err(text) }
}

/// Reads the beginning of the first and the last shard of every source that a stage uses.
fn shards(recipe: &Recipe) -> CheckResult {
    let used = |name: &String| {
        recipe.stages.iter().any(|stage| stage.mixture.get(name).is_some_and(|weight| *weight > 0))
    };
    let storage = Storage::new(StorageOptions::of(&recipe.data))
        .map_err(|error| format!("data.shard_cache: {error}"))?;
    let mut count = 0;
    for (name, source) in recipe.data.sources.iter().filter(|(name, _)| used(name)) {
        let wrong = |error: DataError| format!("data.sources.{name}: {error}");
        let files = storage.expand(&source.shards).map_err(wrong)?;
        for file in files.first().into_iter().chain(files.last()) {
            let mut header = [0; 512];
            let file = storage.open(&file.location).map_err(wrong)?;
            file.read_exact_at(&mut header, 0)
                .map_err(|error| format!("data.sources.{name}: {}: {error}", file.path()))?;
        }
        count += files.len();
    }
    Ok(format!("{count} shards; the first and last of each source were read"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{disk_space, shared_memory, writable};

    #[test]
    fn a_folder_that_cannot_be_written_and_a_full_disk_fail() {
        let folder = tempfile::tempdir().unwrap();
        writable(folder.path(), "here").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        // Not even root can write there.
        let refused = writable(Path::new("/proc/self"), "here").unwrap_err();
        assert!(refused.contains("/proc/self"), "{refused}");
        disk_space(folder.path(), 1).unwrap();
        assert!(disk_space(folder.path(), u64::MAX).unwrap_err().contains("a checkpoint takes"));
        assert!(disk_space(Path::new("/nowhere"), 1).is_err());
    }

    #[test]
    fn shared_memory_is_measured_against_the_ranks_of_a_node() {
        let recipe = vljepa_recipes::load(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml"),
            &[],
        );
        let recipe = recipe.unwrap().recipe;
        shared_memory(&recipe, 1).unwrap();
        let text = shared_memory(&recipe, 1 << 30).unwrap_err();
        assert!(text.contains("/dev/shm"), "{text}");
    }
}
