//! Tests of the layouts that img2dataset, DataComp, YFCC-100M and video2dataset publish
//! (`make_published_tars.py`), and of shards with faults.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Prefix, WebDataset, WebDatasetArgs, prefixes};
use crate::error::DataError;
use crate::fixtures::{case, numbered, png, write_tar};
use crate::prepare::item::{Item, LeftOut, MediaSource, Visual};

fn layout(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/published_tars").join(name)
}

fn open(entries: &[&Path], work: &Path) -> Result<WebDataset, DataError> {
    let shards = entries.iter().map(|entry| entry.display().to_string()).collect();
    WebDataset::open(&WebDatasetArgs { shards }, work)
}

/// All items of a set, read in parts of `length` items.
fn items(set: &WebDataset, length: usize) -> Vec<Result<Item, LeftOut>> {
    let mut items = Vec::new();
    for part in set.parts(length) {
        set.read(&part, &mut |item| {
            items.push(item);
            Ok(())
        })
        .unwrap();
    }
    items
}

fn keys(items: &[Result<Item, LeftOut>]) -> Vec<&str> {
    items.iter().filter_map(|item| item.as_ref().ok()).map(|item| item.key.as_str()).collect()
}

#[test]
fn img2datasets_samples_keep_key_caption_and_fields() {
    let work = tempfile::tempdir().unwrap();
    let set = open(&[&layout("img2dataset")], work.path()).unwrap();
    let items = items(&set, 100);
    assert_eq!(keys(&items), ["000000000", "000000002", "000010000"]);
    let first = items[0].as_ref().unwrap();
    assert_eq!(first.caption.as_deref(), Some("a red square"));
    assert_eq!(first.json["url"], "https://example.org/0.jpg");
    assert_eq!(first.json["license"], "https://creativecommons.org/licenses/by/2.0/");
    assert_eq!(first.json["uid"], "5f1c3a0000000000aa00000000000000");
    assert_eq!(first.json["original_width"], 64);
    assert!(matches!(&first.visual, Visual::Picture(MediaSource::Bytes(_))));
}

#[test]
fn video2datasets_clips_are_clips_and_failed_rows_are_listed() {
    let work = tempfile::tempdir().unwrap();
    let set = open(&[&layout("video2dataset")], work.path()).unwrap();
    let items = items(&set, 100);
    assert_eq!(keys(&items), ["000000000_00000", "000000000_00001"]);
    let clip = items[0].as_ref().unwrap();
    assert!(matches!(&clip.visual, Visual::Clip { seconds: None, .. }));
    assert_eq!(clip.json["clips"], json!([[0.0, 0.72]]));
    assert_eq!(clip.json["yt_meta_dict"]["info"]["title"], "moving test picture");
    let left_out: Vec<_> = items.iter().filter_map(|item| item.as_ref().err()).collect();
    assert_eq!(left_out.len(), 1);
    assert_eq!(left_out[0].class, "no picture or clip");
    assert!(left_out[0].item.ends_with("00000.tar: 000000001"), "{}", left_out[0].item);
}

#[test]
fn a_set_gives_the_same_items_in_parts_of_any_length() {
    let work = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for shard in 0..4_u8 {
        let name = folder.path().join(format!("a-{shard}.tar"));
        write_tar(&name, &numbered(7 * shard, [7, 0, 1, 5][usize::from(shard)]));
    }
    let set = open(&[folder.path()], work.path()).unwrap();
    let all = items(&set, 1000);
    assert_eq!(all.len(), 14, "13 samples, and a shard without any");
    for length in [1, 2, 3, 5, 13] {
        assert_eq!(items(&set, length), all, "parts of {length}");
        let parts = set.parts(length);
        let lengths = parts.iter().map(|part| part.units.end - part.units.start);
        let (least, most) = (lengths.clone().min().unwrap(), lengths.max().unwrap());
        assert!(most - least <= 1 && most <= u64::try_from(length).unwrap(), "{length}");
    }
}

#[test]
fn keys_that_begin_anew_in_each_shard_become_unique() {
    let work = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["a-0.tar", "a-1.tar", "b/a-0.tar", "b/a-1.tar"] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_tar(&path, &numbered(0, 2));
    }
    let one = open(&[folder.path()], work.path()).unwrap();
    assert_eq!(keys(&items(&one, 9)), ["a-0/000", "a-0/001", "a-1/000", "a-1/001"]);
    // The names of the shards of both folders are the same.
    let both = open(&[folder.path(), &folder.path().join("b")], work.path()).unwrap();
    let expected = ["000000/000", "000000/001", "000001/000", "000001/001", "000002/000"];
    assert_eq!(keys(&items(&both, 9))[..5], expected);
    let of = |paths: &[&str]| prefixes(paths.iter().copied());
    let name = |name: &str| Prefix::Name(name.to_owned());
    assert_eq!(of(&["s3://b/x.y.tar", "z/x.z.tar"]), [name("x-y"), name("x-z")]);
    // `1` + `2/3` could be the same key as `12` + `3`.
    assert!(of(&["1.tar", "12.tar"]).iter().all(|it| matches!(it, Prefix::Number(_))));
    assert!(of(&["__a__.tar"]).iter().all(|it| matches!(it, Prefix::Number(_))));
}

#[test]
fn what_is_not_kept_is_listed_with_shard_key_and_reason() {
    let work = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    write_tar(
        &path,
        &[
            file("a/good.png", &png(4, 4, 1)),
            file("a/good.cls", b"7"),
            file("a/text_only.txt", b"a text"),
            file("a/latin.png", &png(4, 4, 2)),
            file("a/latin.txt", b"caf\xe9"),
            file("a/broken.png", &png(4, 4, 3)),
            file("a/broken.json", b"{\"url\": "),
            file("a/twice.png", &png(4, 4, 4)),
            file("a/twice.png", &png(4, 4, 5)),
        ],
    );
    let bom = case("bom.tar", folder.path());
    let set = open(&[&path, &bom], work.path()).unwrap();
    let items = items(&set, 100);
    let said = |class: &str, item: &str, reason: &str| {
        items.iter().filter_map(|it| it.as_ref().err()).any(|left_out| {
            left_out.class == class
                && left_out.item.ends_with(item)
                && left_out.reason.contains(reason)
        })
    };
    assert!(said("dropped sample", "a.tar: a/twice", "two `png` members"), "{items:?}");
    assert!(said("other members", "a.tar", "1 members `cls` are not kept"), "{items:?}");
    assert!(said("no picture or clip", "a.tar: a/text_only", ""), "{items:?}");
    assert!(said("text", "a.tar: a/latin", "caption"), "{items:?}");
    assert!(said("text", "a.tar: a/broken", "json"), "{items:?}");
    assert!(keys(&items).contains(&"000000/a/good"));
}

#[test]
fn the_identity_changes_with_the_set_and_a_file_that_is_no_tar_stops() {
    let work = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    write_tar(&path, &numbered(0, 2));
    let before = open(&[&path], work.path()).unwrap().identity();
    assert_eq!(open(&[&path], work.path()).unwrap().identity(), before);
    write_tar(&path, &numbered(0, 3));
    let after = open(&[&path], work.path()).unwrap().identity();
    assert_eq!((&*before["number of samples"], &*after["number of samples"]), ("2", "3"));
    std::fs::write(&path, b"no tar").unwrap();
    let error = open(&[&path], work.path()).unwrap_err().to_string();
    assert!(error.contains("a.tar") && error.contains("not a tar"), "{error}");
    assert!(open(&[Path::new("no/such")], work.path()).is_err());
}

#[test]
fn parts_of_equal_length_cover_the_set() {
    let ranges = |units, length| {
        super::UnitRange::equal(units, length)
            .into_iter()
            .map(|part| part.units)
            .collect::<Vec<_>>()
    };
    assert_eq!(ranges(10, 4), [0..3, 3..6, 6..10]);
    assert_eq!(ranges(8, 4), [0..4, 4..8]);
    assert_eq!(ranges(3, 100), vec![0..3; 1]);
    assert!(ranges(0, 4).is_empty());
    assert_eq!(ranges(u64::MAX, usize::MAX), vec![0..u64::MAX; 1]);
}
