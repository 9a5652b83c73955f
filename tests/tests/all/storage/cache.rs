//! The cache folder, shared by threads and processes that may be killed at any moment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use vljepa_data::storage::{CacheOptions, Storage, StorageOptions};

use super::proxy::Fault;
use super::servers::{content, gs, options, put_gs, put_s3, s3, storage};
use super::{LENGTH, at, http, part, whole};
use crate::breakage::SmallDisk;

/// Number of blocks of 8 MiB of a file of [`LENGTH`] bytes.
const BLOCKS: usize = 4;

fn cached(options: &StorageOptions, folder: &Path) -> Storage {
    let cache = CacheOptions { folder: folder.to_owned(), bytes: 1 << 30 };
    storage(&StorageOptions { cache: Some(cache), ..options.clone() })
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

#[test]
fn a_block_is_requested_once_and_then_read_from_the_folder() {
    let bytes = content(11, LENGTH);
    put_s3("cache/a.tar", &bytes);
    put_gs("cache/a.tar", &bytes);
    let (s3_proxy, s3_options) = s3();
    let (gs_proxy, gs_options) = gs();
    let folder = tempfile::tempdir().unwrap();
    for (url, options, proxy) in [
        ("s3://bucket/cache/a.tar", s3_options, s3_proxy),
        ("gs://bucket/cache/a.tar", gs_options, gs_proxy),
    ] {
        let storage = cached(&options, folder.path());
        let file = storage.open(&at(url)).unwrap();
        proxy.requests();
        for offset in [0, 100, 8_000_000, LENGTH - 1_000_000, 12_345_678, 0] {
            let length = 1_000_000.min(LENGTH - offset);
            assert!(part(&file, offset, length) == bytes[offset..offset + length], "{url}");
        }
        assert!(whole(&file) == bytes, "{url}");
        assert_eq!(proxy.requests().len(), BLOCKS, "{url}");
        // Another start, without a server.
        let again = cached(&options, folder.path());
        proxy.disturb_all(Fault::Status(403));
        let file = again.open_known(&at(url), file.version()).unwrap();
        assert!(whole(&file) == bytes && part(&file, 5, 9_000_000) == bytes[5..9_000_005]);
        assert!(proxy.requests().is_empty(), "{url}");
    }
    assert_eq!(files(folder.path(), ".vljepa-block").len(), 2 * BLOCKS);
    assert!(files(folder.path(), ".vljepa-part").is_empty());
}

#[test]
fn a_changed_file_does_not_use_the_blocks_of_its_old_version() {
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, options) = s3();
    for seed in [12, 13] {
        put_s3("cache/changed.tar", &content(seed, 500_000));
        let storage = cached(&options, folder.path());
        let file = storage.open(&at("s3://bucket/cache/changed.tar")).unwrap();
        assert!(whole(&file) == content(seed, 500_000), "{seed}");
    }
    assert_eq!(files(folder.path(), ".vljepa-block").len(), 2);
}

#[test]
fn a_damaged_block_is_fetched_again() {
    let bytes = content(14, 3_000_000);
    put_s3("cache/damaged.tar", &bytes);
    let folder = tempfile::tempdir().unwrap();
    let (proxy, options) = s3();
    let storage = cached(&options, folder.path());
    let file = storage.open(&at("s3://bucket/cache/damaged.tar")).unwrap();
    assert!(whole(&file) == bytes);
    let block = files(folder.path(), ".vljepa-block").remove(0);
    let mut damaged = std::fs::read(&block).unwrap();
    damaged[2_000_000] ^= 1;
    std::fs::write(&block, &damaged).unwrap();
    proxy.requests();
    assert!(part(&file, 0, 1000) == bytes[..1000]);
    assert!(proxy.requests().is_empty(), "another part of the block is not damaged");
    assert!(part(&file, 1_900_000, 200_000) == bytes[1_900_000..2_100_000]);
    assert_eq!(proxy.requests().len(), 1);
    assert!(whole(&file) == bytes && proxy.requests().is_empty());
}

#[test]
fn threads_that_want_the_same_block_share_one_request() {
    let bytes = content(15, 900_000);
    put_s3("cache/threads.tar", &bytes);
    let folder = tempfile::tempdir().unwrap();
    for with_folder in [true, false] {
        let (proxy, options) = s3();
        let storage = if with_folder { cached(&options, folder.path()) } else { storage(&options) };
        let file = storage.open(&at("s3://bucket/cache/threads.tar")).unwrap();
        proxy.requests();
        proxy.disturb(&[Fault::Slow(100_000)]);
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (file, bytes, barrier) = (&file, &bytes, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let offset = number * 100_000;
                    assert!(part(file, offset, 99_000) == bytes[offset..offset + 99_000]);
                });
            }
        });
        assert_eq!(proxy.requests().len(), 1, "{with_folder}");
    }
}

#[test]
fn a_full_disk_is_no_error() {
    let bytes = content(16, LENGTH);
    put_s3("cache/full.tar", &bytes);
    let folder = tempfile::tempdir().unwrap();
    let _disk = SmallDisk::mount(folder.path(), 12);
    let (proxy, options) = s3();
    let storage = cached(&options, folder.path());
    let file = storage.open(&at("s3://bucket/cache/full.tar")).unwrap();
    assert!(whole(&file) == bytes);
    assert_eq!(files(folder.path(), ".vljepa-block").len(), 1, "one block fits");
    assert!(files(folder.path(), ".vljepa-part").is_empty());
    proxy.requests();
    assert!(part(&file, 0, 9_000_000) == bytes[..9_000_000]);
    let rest = 8_388_608;
    assert_eq!(proxy.ranges(), [format!("{rest}-8999999")], "the block is used, the rest is read");
}

#[test]
fn a_folder_that_is_read_only_is_no_error() {
    let bytes = content(17, LENGTH);
    put_s3("cache/read-only.tar", &bytes);
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(folder.path(), 64);
    let (proxy, options) = s3();
    let url = at("s3://bucket/cache/read-only.tar");
    let file = cached(&options, folder.path()).open(&url).unwrap();
    assert!(part(&file, 0, 1000) == bytes[..1000]);
    disk.make_read_only();
    let file = cached(&options, folder.path()).open(&url).unwrap();
    proxy.requests();
    assert!(whole(&file) == bytes);
    assert_eq!(proxy.requests().len(), BLOCKS - 1, "the first block is in the folder");
    assert_eq!(files(folder.path(), "").len(), 1);
}

/// Starts a process that reads `url` through the cache `folder`.
#[expect(clippy::disallowed_methods, reason = "starts the program under test")]
fn reader(url: &str, folder: &Path, bytes: u64, rounds: u32) -> Child {
    Command::new(env!("CARGO_BIN_EXE_read_storage"))
        .arg(url)
        .arg(folder)
        .args([bytes.to_string(), rounds.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Output of a finished reader: a line for each round.
fn hashes(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn processes_share_the_folder() {
    let bytes = content(18, LENGTH);
    put_s3("cache/shared.tar", &bytes);
    let folder = tempfile::tempdir().unwrap();
    let (proxy, _, start) = http();
    let url = format!("{start}/cache/shared.tar");
    let readers: Vec<_> = (0..3).map(|_| reader(&url, folder.path(), 1 << 30, 2)).collect();
    let expected = vec![crc32c::crc32c(&bytes).to_string(); 2];
    for reader in readers {
        assert_eq!(hashes(reader), expected);
    }
    let requests = proxy.ranges().into_iter().filter(|range| range != "0-0").count();
    assert!((BLOCKS..=3 * BLOCKS).contains(&requests), "{requests}");
    assert_eq!(files(folder.path(), "").len(), BLOCKS);
    // All blocks are there now.
    assert_eq!(hashes(reader(&url, folder.path(), 1 << 30, 1)), expected[..1]);
    assert_eq!(proxy.ranges(), ["0-0"]);
}

#[test]
fn the_bound_holds_with_several_processes() {
    let bytes = content(19, 160 << 20);
    put_s3("cache/large.tar", &bytes);
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, _, start) = http();
    let url = format!("{start}/cache/large.tar");
    let bound = CacheOptions::LEAST_BYTES;
    let mut readers: Vec<_> = (0..2).map(|_| reader(&url, folder.path(), bound, 1)).collect();
    let mut largest = 0;
    while readers.iter_mut().any(|reader| reader.try_wait().unwrap().is_none()) {
        let sizes = files(folder.path(), "").into_iter().filter_map(|path| path.metadata().ok());
        largest = largest.max(sizes.map(|metadata| metadata.len()).sum::<u64>());
        std::thread::park_timeout(Duration::from_millis(5));
    }
    for reader in readers {
        assert_eq!(hashes(reader), [crc32c::crc32c(&bytes).to_string()]);
    }
    assert!(largest <= bound && largest > bound / 2, "{largest}");
}

#[test]
fn killed_processes_leave_nothing_wrong() {
    let bytes = content(20, LENGTH);
    put_s3("cache/killed.tar", &bytes);
    let (proxy, _, start) = http();
    let url = format!("{start}/cache/killed.tar");
    let mut unfinished = 0;
    for round in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        // A block takes 640 ms, so the kills are spread over the first one and a half blocks.
        proxy.disturb_all(Fault::Slow(1 << 18));
        proxy.requests();
        let mut child = reader(&url, folder.path(), 1 << 30, 1000);
        let (mut requests, begun) = (0, Instant::now());
        while requests < 2 && begun.elapsed() < Duration::from_secs(60) {
            std::thread::park_timeout(Duration::from_millis(1));
            requests += proxy.requests().len();
        }
        std::thread::park_timeout(Duration::from_millis(150 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        proxy.disturb_all(Fault::Pass);
        unfinished += usize::from(files(folder.path(), ".vljepa-block").len() < BLOCKS);
        // What a process leaves that is killed between two writes to a block.
        std::fs::write(folder.path().join("01234567-1-0.vljepa-part"), &bytes[..99]).unwrap();
        let storage = cached(&options(&[]), folder.path());
        assert!(files(folder.path(), ".vljepa-part").is_empty());
        let file = storage.open(&at(&url)).unwrap();
        assert!(whole(&file) == bytes && part(&file, 3, LENGTH - 3) == bytes[3..]);
        assert_eq!(files(folder.path(), "").len(), BLOCKS);
    }
    assert!(unfinished > 0, "no process was killed while it filled the cache");
}
