//! Tests of files that are no shards, and of shards of which something is not read.

use std::fs;
use std::path::Path;

use super::{indexed_case, samples};
use crate::error::DataError;
use crate::fixtures::{case, numbered, write_tar};
use crate::shard_index::ShardIndex;

/// GNU tar 1.34 lists six members. `c.jpg` is a hard link and `d.jpg` a symbolic link.
#[test]
fn a_sample_with_a_link_is_dropped_by_name() {
    let index = indexed_case("links.tar");
    assert_eq!(samples(&index), [("b".to_owned(), vec!["jpg".to_owned(), "txt".to_owned()])]);
    let dropped: Vec<_> = index.dropped.iter().map(|dropped| dropped.key.as_str()).collect();
    assert_eq!(dropped, ["c", "d"]);
    assert!(index.dropped.iter().all(|dropped| dropped.reason.contains("`jpg` is a link")));
}

/// GNU tar 1.34 lists four members with `--ignore-zeros`, and two without. The second tar has
/// 10,240 bytes.
#[test]
fn bytes_after_the_end_marker_are_a_warning_with_their_number() {
    let index = indexed_case("concatenated.tar");
    assert_eq!(index.samples.len(), 2);
    let [warning] = &index.warnings[..] else { panic!("{:?}", index.warnings) };
    assert!(warning.contains("its last 10240 bytes are not read"), "{warning}");
    // Zeros after the end marker are padding.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("padded.tar");
    write_tar(&path, &numbered(0, 2));
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(bytes.len() + 100_000, 0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(ShardIndex::read(&path).unwrap().warnings, <[String; 0]>::default());
    *bytes.last_mut().unwrap() = 1;
    fs::write(&path, &bytes).unwrap();
    let index = ShardIndex::read(&path).unwrap();
    assert!(index.warnings[0].contains("its last 1 bytes are not read"), "{:?}", index.warnings);
}

#[test]
fn a_shard_that_is_cut_or_damaged_warns_even_if_no_sample_is_at_the_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    write_tar(&path, &[("README".to_owned(), "1"), ("a.jpg".to_owned(), "2")]);
    let mut bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..1024]).unwrap();
    let index = ShardIndex::read(&path).unwrap();
    assert!(index.dropped.is_empty());
    assert!(index.warnings[0].contains("is cut short at byte 1024"), "{:?}", index.warnings);
    bytes[1030] ^= 1;
    let length = bytes.len();
    fs::write(&path, &bytes).unwrap();
    let index = ShardIndex::read(&path).unwrap();
    let lost = format!("is damaged at byte 1024; the last {} bytes are not read", length - 1024);
    assert!(index.warnings[0].contains(&lost), "{:?}", index.warnings);
}

#[test]
fn a_file_that_is_no_shard_is_refused_with_its_name_the_cause_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    write_tar(&folder.path().join("whole.tar"), &[("a.png".to_owned(), [1; 700])]);
    let whole = fs::read(folder.path().join("whole.tar")).unwrap();
    let refused = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = ShardIndex::read(&path).unwrap_err();
        assert!(matches!(error, DataError::BadShard { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(name), "{said}");
        said
    };
    let pointer = fs::read(case("lfs_pointer.tar", folder.path())).unwrap();
    for (name, bytes, said) in [
        ("pointer.tar", &pointer[..], "is a Git LFS pointer, not the file itself"),
        ("empty.tar", b"", "is empty (0 bytes)"),
        ("page.tar", b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML or XML page"),
        ("a.tar.gz", &[0x1f, 0x8b, 8, 0, 0], "is gzip-compressed; decompress it with `gunzip`"),
        ("bz2.tar", b"BZh91AY&SY", "`bunzip2`"),
        ("xz.tar", b"\xfd7zXZ\0\0\x04", "`unxz`"),
        ("zip.tar", b"PK\x03\x04\x0a", "`unzip`"),
        ("zstd.tar", b"\x28\xb5\x2f\xfd\x04", "`unzstd`"),
        ("text.tar", &[b'x'; 2000], "does not start with a tar header"),
        ("short.tar", b"abc", "does not start with a tar header"),
        ("cut.tar", &whole[..600], "cut short at byte 600, before the end of its first member"),
        ("zeros.tar", &[0; 20_000], "holds 20000 zero bytes"),
        ("late.tar", &[&[0; 1024][..], &whole].concat(), "starts with an end marker"),
    ] {
        assert!(refused(name, bytes).contains(said), "{name}: {}", refused(name, bytes));
    }
    for name in ["sparse_gnu.tar", "sparse_pax.tar"] {
        let error = ShardIndex::read(&case(name, folder.path())).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("`a.png` is stored sparse"), "{error}");
    }
    let missing = ShardIndex::read(Path::new("missing.tar")).unwrap_err().to_string();
    assert!(missing.contains("missing.tar"), "{missing}");
}

/// As `tar -cf empty.tar -T /dev/null` writes it.
#[test]
fn a_tar_without_members_is_an_empty_shard_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.tar");
    fs::write(&path, [0; 10_240]).unwrap();
    let index = ShardIndex::read(&path).unwrap();
    assert_eq!(index.samples.len(), 0);
    assert_eq!(index.remarks(), ["the shard is a tar without members"]);
}
