//! Tests of the cache folder without a server.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{DiskCache, ENDING, TEMPORARY, files};
use crate::storage::CacheOptions;
use crate::storage::flights::BlockName;

const MIB: usize = 1 << 20;

fn open(folder: &Path) -> DiskCache {
    let bytes = CacheOptions::LEAST_BYTES;
    DiskCache::open(&CacheOptions { folder: folder.to_owned(), bytes }).unwrap()
}

fn name(number: u64) -> BlockName {
    (Arc::from("s3://bucket/a.tar\nversion"), number)
}

/// Bytes of a block, which differ between blocks and positions.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; length];
    reader.fill(&mut bytes);
    bytes
}

fn read(
    cache: &DiskCache,
    number: u64,
    length: usize,
    within: usize,
    part: usize,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; part];
    cache.read(&name(number), length as u64, &mut bytes, within).then_some(bytes)
}

fn only_block(folder: &Path) -> PathBuf {
    let mut blocks = files(folder, ENDING);
    assert_eq!(blocks.len(), 1);
    blocks.remove(0)
}

#[test]
fn any_part_of_a_block_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    for length in [1, 65_535, 65_536, 65_537, 200_000] {
        let bytes = content(length as u64, length);
        assert_eq!(read(&cache, length as u64, length, 0, length), None);
        cache.write(&name(length as u64), &bytes);
        for (within, part) in [
            (0, length),
            (0, 1),
            (length - 1, 1),
            (length / 2, length - length / 2),
            (length / 3, 1),
        ] {
            let read = read(&cache, length as u64, length, within, part).unwrap();
            assert!(read == bytes[within..within + part], "{length} {within} {part}");
        }
    }
    assert!(files(folder.path(), TEMPORARY).is_empty());
}

#[test]
fn a_damaged_block_is_removed_and_never_read() {
    let bytes = content(0, 200_000);
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("a byte", |file| *file.last_mut().unwrap() ^= 1),
        ("the header", |file| file[50] ^= 0x80),
        ("its end", |file| file.truncate(100_000)),
        ("all", |file| file.clear()),
        ("zeros", |file| file[1000..].fill(0)),
    ];
    for (what, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        cache.write(&name(0), &bytes);
        let path = only_block(folder.path());
        let mut file = fs::read(&path).unwrap();
        damage(&mut file);
        fs::write(&path, file).unwrap();
        assert_eq!(read(&cache, 0, 200_000, 190_000, 10_000), None, "{what}");
        assert!(!path.exists(), "{what}");
    }
}

#[test]
fn a_block_under_the_name_of_another_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    cache.write(&name(0), &content(0, 1000));
    let first = only_block(folder.path());
    fs::rename(&first, cache.path(&name(1))).unwrap();
    assert_eq!(read(&cache, 1, 1000, 0, 1000), None);
}

#[test]
fn the_bound_holds_and_the_blocks_used_last_stay() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "of the user").unwrap();
    let cache = open(folder.path());
    let bytes = content(0, 8 * MIB);
    let mut largest = 0;
    for number in 0..30 {
        cache.write(&name(number), &bytes);
        let blocks = files(folder.path(), ENDING);
        largest = largest.max(blocks.iter().map(|path| fs::metadata(path).unwrap().len()).sum());
        // Blocks 0 and 1 are used all the time; each other one is older than its successor.
        let hour = Duration::from_secs(3600);
        let age = if number < 2 { hour } else { hour * 2 };
        let used =
            SystemTime::from(vljepa_recipes::clock::now()) - age + Duration::from_secs(number);
        File::open(cache.path(&name(number))).unwrap().set_modified(used).unwrap();
        assert!(read(&cache, 0, 8 * MIB, 0, 1).is_some(), "{number}");
    }
    assert!(largest <= CacheOptions::LEAST_BYTES, "{largest}");
    assert!(largest > CacheOptions::LEAST_BYTES / 2, "most of the bound is used: {largest}");
    assert!(read(&cache, 29, 8 * MIB, 0, 1).is_some() && read(&cache, 2, 8 * MIB, 0, 1).is_none());
    assert!(folder.path().join("notes.txt").exists());
}

#[test]
fn temporary_files_of_ended_processes_are_removed_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(format!("{name}{TEMPORARY}"));
    fs::write(path("left"), "x").unwrap();
    let held = File::create(path("held")).unwrap();
    held.lock().unwrap();
    open(folder.path());
    assert_eq!(files(folder.path(), TEMPORARY), [path("held")]);
    drop(held);
    open(folder.path());
    assert!(files(folder.path(), TEMPORARY).is_empty());
}

#[test]
fn a_folder_that_cannot_be_written_pauses_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    cache.write(&name(0), &content(0, 1000));
    // Root may write to read-only folders, so the folder is replaced by a file.
    let moved = folder.path().with_extension("moved");
    fs::rename(folder.path(), &moved).unwrap();
    fs::write(folder.path(), "no folder").unwrap();
    cache.write(&name(1), &content(1, 1000));
    assert!(cache.is_paused());
    fs::remove_file(folder.path()).unwrap();
    fs::rename(&moved, folder.path()).unwrap();
    assert!(read(&cache, 0, 1000, 0, 1000).is_some(), "blocks are still read");
}

#[test]
fn a_cache_that_is_too_small_is_refused() {
    let options = CacheOptions { folder: "/nowhere/cache".into(), bytes: 1 << 20 };
    let error = DiskCache::open(&options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("/nowhere/cache") && error.contains("128 MiB"), "{error}");
}
