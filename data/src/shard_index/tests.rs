//! Tests that members are grouped by WebDataset's rules.

use std::fs;

use super::{Dropped, ShardIndex};
use crate::fixtures::{case, numbered, write_tar};
use crate::tar::key_and_field;

fn samples(index: &ShardIndex) -> Vec<(String, Vec<String>)> {
    let fields = |sample: &super::IndexedSample| {
        let name = |member: &super::IndexedMember| index.fields[usize::from(member.field)].clone();
        sample.members.iter().map(name).collect()
    };
    index.samples.iter().map(|sample| (sample.key.to_string(), fields(sample))).collect()
}

fn indexed(files: &[(&str, &str)]) -> ShardIndex {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), *text)).collect();
    write_tar(&path, &files);
    ShardIndex::read(&path).unwrap()
}

/// Each expected value was checked against `base_plus_ext` and `tar_file_iterator` of webdataset
/// 1.0.2.
#[test]
fn names_split_as_webdataset_splits_them() {
    let split = |name| key_and_field(name).map(|(key, field)| (key.to_owned(), field));
    let is = |key: &str, field: &str| Some((key.to_owned(), field.to_owned()));
    assert_eq!(split("a/x.0.jpg"), is("a/x", "0.jpg"));
    assert_eq!(split("x.JPG"), is("x", "jpg"));
    assert_eq!(split("a.b/c.txt"), is("a.b/c", "txt"));
    assert_eq!(split("./c.txt"), is("./c", "txt"));
    assert_eq!(split("c."), is("c", ""));
    for skipped in ["README", "a/.hidden", ".hidden.txt", "__meta__", "__meta__/x.json", "a.b/c"] {
        assert_eq!(split(skipped), None, "{skipped}");
    }
    assert_eq!(split("__init.py"), is("__init", "py"));
}

#[test]
fn interleaved_keys_give_whole_samples() {
    let index = indexed(&[
        ("a.jpg", "1"),
        ("b.jpg", "2"),
        ("__meta__", "x"),
        ("a.TXT", "3"),
        ("b.txt", "4"),
    ]);
    let both = |key: &str| (key.to_owned(), vec!["jpg".to_owned(), "txt".to_owned()]);
    assert_eq!(samples(&index), [both("a"), both("b")]);
    assert!(index.dropped.is_empty());
}

#[test]
fn a_field_that_comes_twice_drops_the_sample() {
    let index = indexed(&[("a.jpg", "1"), ("a.txt", "2"), ("b.jpg", "3"), ("a.jpg", "4")]);
    assert_eq!(samples(&index), [("b".to_owned(), vec!["jpg".to_owned()])]);
    let reason = "the shard holds two `jpg` members of this sample".to_owned();
    assert_eq!(index.dropped, [Dropped { key: "a".to_owned(), reason }]);
}

#[test]
fn offsets_are_those_of_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let long = format!("{}/deep.txt", "folder".repeat(40));
    let files =
        [("a.txt".to_owned(), "first"), (long, "named by an extension"), ("b.txt".to_owned(), "")];
    write_tar(&path, &files);
    let bytes = fs::read(&path).unwrap();
    let index = ShardIndex::read(&path).unwrap();
    let member = |n: usize| index.samples[n].members[0];
    let text = |n: usize| {
        let start = usize::try_from(member(n).offset).unwrap();
        &bytes[start..start + usize::try_from(member(n).length).unwrap()]
    };
    assert_eq!([text(0), text(1), text(2)], [&b"first"[..], b"named by an extension", b""]);
    assert!(index.samples[1].key.ends_with("folder/deep"));
}

/// Compares the index with a second implementation, which uses the entries of the crate `tar` and
/// splits names at the first dot.
#[test]
fn grouping_agrees_with_the_tar_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    write_tar(&path, &numbered(0, 20));
    let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
    type Members = Vec<(String, u64, u64)>;
    let mut expected: Vec<(String, Members)> = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let (key, field) = name.split_once('.').unwrap();
        let member = (field.to_owned(), entry.raw_file_position(), entry.size());
        match expected.last_mut() {
            Some((last, members)) if last == key => members.push(member),
            _ => expected.push((key.to_owned(), vec![member])),
        }
    }
    let index = ShardIndex::read(&path).unwrap();
    let members = |sample: &super::IndexedSample| {
        let one = |member: &super::IndexedMember| {
            (index.fields[usize::from(member.field)].clone(), member.offset, member.length)
        };
        sample.members.iter().map(one).collect()
    };
    let ours: Vec<_> =
        index.samples.iter().map(|sample| (sample.key.to_string(), members(sample))).collect();
    assert_eq!(ours, expected);
}

#[test]
fn a_truncated_tar_drops_its_last_sample_wherever_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.tar");
    write_tar(&whole, &numbered(0, 3));
    let bytes = fs::read(&whole).unwrap();
    let ends: Vec<usize> = ShardIndex::read(&whole)
        .unwrap()
        .samples
        .iter()
        .map(|sample| {
            let last = sample.members.last().unwrap();
            usize::try_from((last.offset + last.length).next_multiple_of(512)).unwrap()
        })
        .collect();
    let cut = folder.path().join("cut.tar");
    for length in (ends[0]..ends[2]).step_by(256) {
        fs::write(&cut, &bytes[..length]).unwrap();
        let index = ShardIndex::read(&cut).unwrap();
        // The sample at the cut is dropped, and the samples before it are kept.
        let complete = ends.iter().filter(|&&end| end < length).count();
        let kept = index.samples.len();
        assert!(kept == complete || kept + 1 == complete, "cut at {length}: {kept} of {complete}");
        assert!(index.samples.iter().all(|sample| sample.members.len() == 3), "cut at {length}");
        assert!(index.dropped.len() <= 1);
        assert!(index.dropped.iter().all(|d| d.reason.contains("is cut short at byte")));
        assert_eq!(kept + index.dropped.len(), keys_with_header(&bytes, length));
    }
    let mut damaged = bytes.clone();
    damaged[ends[1] + 20] ^= 1;
    fs::write(&cut, &damaged).unwrap();
    let index = ShardIndex::read(&cut).unwrap();
    assert_eq!(index.samples.len(), 1);
    assert!(index.dropped[0].reason.contains("is damaged at byte"), "{:?}", index.dropped);
}

/// Number of keys that have a complete header before the cut.
fn keys_with_header(bytes: &[u8], length: usize) -> usize {
    let mut archive = tar::Archive::new(bytes);
    let mut keys = std::collections::BTreeSet::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if entry.raw_file_position() <= u64::try_from(length).unwrap() {
            keys.insert(entry.path().unwrap().to_string_lossy()[..3].to_owned());
        }
    }
    keys.len()
}

/// Index of `data/tests/cases/<name>`.
fn indexed_case(name: &str) -> ShardIndex {
    let folder = tempfile::tempdir().unwrap();
    ShardIndex::read(&case(name, folder.path())).unwrap()
}

/// webdataset 1.0.2 gives all members of each of these tars one key, `clip_1` or `video_000`.
#[test]
fn members_of_several_samples_with_one_key_are_dropped_by_name() {
    let dots = indexed_case("dots.tar");
    assert_eq!(
        samples(&dots),
        [("z".to_owned(), vec!["png".to_owned(), "txt".to_owned()])],
        "clip_1.0.png and clip_1.5.txt are two samples"
    );
    let segments = indexed_case("segments.tar");
    assert_eq!(samples(&segments), []);
    for (index, key, member) in
        [(&dots, "clip_1", "`5.txt`"), (&segments, "video_000", "`00-04.00.png`")]
    {
        let [Dropped { key: dropped, reason }] = &index.dropped[..] else { panic!("{index:?}") };
        assert_eq!(dropped, key);
        assert!(reason.contains(member) && reason.contains("rename"), "{reason}");
    }
}

#[test]
fn members_with_a_prefix_are_a_sample_if_all_share_it() {
    let kept = |names: &[&str]| {
        let files: Vec<_> = names.iter().map(|field| format!("x.{field}")).collect();
        let files: Vec<_> = files.iter().map(|name| (name.as_str(), "1")).collect();
        indexed(&files).dropped.is_empty()
    };
    for whole in [
        &["0.png", "0.txt"][..],
        &["0.png", "0.txt.gz", "0.json"],
        &["1.0.png", "1.0.json", "npy"],
        &["jpg", "txt", "seg.png"],
        &["jpg", "seg.png"],
        &["jpg", "0.jpg", "1.jpg", "json", "alt.txt"],
    ] {
        assert!(kept(whole), "{whole:?}");
    }
    for mixed in [
        &["0.png", "5.txt"][..],
        &["png", "5.txt"],
        &["0.png", "txt"],
        &["0.png", "1.png", "0.txt"],
        &["png", "txt", "5.png", "5.txt"],
        &["0.png", "0.txt", "1.0.json"],
        &["0.png", "0.txt", "json"],
    ] {
        assert!(!kept(mixed), "{mixed:?}");
    }
}

/// Two names that differ only in bytes that are not UTF-8, as in Latin-1.
#[test]
fn names_that_are_not_utf_8_stay_different() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    write_tar(&path, &[("?a.jpg".to_owned(), "1"), ("?b.txt".to_owned(), "2")]);
    let mut bytes = fs::read(&path).unwrap();
    for (header, letter) in [(0, 0xe9_u8), (1024, 0xe8)] {
        // Both letters of the name become one byte, and the checksum follows.
        let block = &mut bytes[header..header + 512];
        block[..2].copy_from_slice(&[letter, b'.']);
        block.copy_within(3..7, 2);
        block[5] = 0;
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let index = ShardIndex::read(&path).unwrap();
    let keys: Vec<_> = index.samples.iter().map(|sample| &*sample.key).collect();
    assert_eq!(keys, ["\\xE9", "\\xE8"]);
}

mod damaged;
