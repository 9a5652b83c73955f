//! Damaged tars and catalogues, and names that other tools would pair in another way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use vljepa_data::catalogue::Catalogue;
use vljepa_data::decode::Media;
use vljepa_data::sample::RawSample;
use vljepa_data::shard_index::ShardIndex;
use vljepa_data::shards::ShardSet;
use vljepa_data::storage::Storage;

use super::draw::Draw;
use super::fuzz;
use crate::programs::repository;

/// A tar of the given names. Each member says its name.
fn tar(names: &[String], header: fn() -> tar::Header) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = header();
        header.set_size(name.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, name.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Tars of the formats that tools write: ustar, GNU with a long name, and the committed cases.
fn tars() -> Vec<Vec<u8>> {
    let long = format!("{}/{}", "folder".repeat(20), "name".repeat(20));
    let keys = ["a", "b", "folder/c", &long];
    let names = |keys: &[&str]| -> Vec<String> {
        let fields = ["png", "txt", "json"];
        keys.iter().flat_map(|key| fields.map(|field| format!("{key}.{field}"))).collect()
    };
    let mut tars = vec![
        tar(&names(&keys[..3]), tar::Header::new_ustar),
        tar(&names(&keys), tar::Header::new_gnu),
    ];
    for entry in std::fs::read_dir(repository().join("data/tests/cases")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            tars.push(std::fs::read(path).unwrap());
        }
    }
    assert!(tars.len() > 6);
    tars
}

/// The picture or clip and the caption of each sample, by key. Both are whole members that say
/// their names, unless they are damaged.
type Contents = BTreeMap<String, [Option<String>; 2]>;

/// Deletes the catalogue after some inputs: the tables of earlier inputs stay in it.
fn clear_sometimes(catalogue: &Path, draw: &mut Draw) {
    if draw.below(50) == 0 && catalogue.exists() {
        std::fs::remove_dir_all(catalogue).unwrap();
    }
}

/// Reads all samples of the shard as a run does. `None` if it is refused.
fn read_all(shard: &Path, catalogue: &Path) -> Option<Contents> {
    let storage = Storage::default();
    let entry = shard.to_str().unwrap();
    let catalogue = Arc::new(Catalogue::open(&storage, entry, Some(catalogue)).ok()?);
    let shard = ShardSet::new(storage, Arc::clone(&catalogue)).shard(0).unwrap();
    assert_eq!(catalogue.lengths().sum::<u64>(), shard.index.samples.len() as u64);
    let sample = |number| {
        let raw = RawSample::read(&shard, number, &[Media::Video, Media::Image]).unwrap();
        let visual = raw.visual.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned());
        let caption = raw.texts.caption().ok().flatten().map(str::to_owned);
        (raw.key, [visual, caption])
    };
    Some((0..shard.index.samples.len()).map(sample).collect())
}

/// Key and field of a member as webdataset 1.0.2 splits its name: the key ends at the first dot of
/// the last component, fields are in lower case, and `__…__` in front marks metadata.
fn split(name: &str) -> Option<(String, String)> {
    let (folder, base) = name.rsplit_once('/').map_or(("", name), |(folder, base)| (folder, base));
    let (stem, field) = base.split_once('.')?;
    let top = name.split('/').next()?;
    if stem.is_empty() || (top.starts_with("__") && top.ends_with("__")) {
        return None;
    }
    let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
    Some((key, field.to_lowercase()))
}

/// Part of a field before its extension: `0` of `0.png`.
fn prefix(field: &str) -> &str {
    field.rsplit_once('.').map_or("", |(prefix, _)| prefix)
}

/// Checks that picture and caption of each sample come from members of this sample, and belong to
/// each other.
fn check_pairs(contents: &Contents, names: &BTreeSet<String>) {
    for (key, members) in contents {
        let known = members.iter().flatten().filter(|content| names.contains(*content));
        let parts: Vec<_> = known.filter_map(|name| split(name)).collect();
        for (key_of_member, _) in &parts {
            assert_eq!(key_of_member, key, "{members:?}");
        }
        if let [(_, visual), (_, caption)] = &parts[..] {
            assert_eq!(prefix(visual), prefix(caption), "{key}: {members:?}");
        }
    }
}

#[test]
fn a_damaged_tar_is_refused_or_gives_whole_samples() {
    let tars = tars();
    let test = "fuzzing::shards::a_damaged_tar_is_refused_or_gives_whole_samples";
    fuzz(test, 10_000, |folder, draw| {
        let shard = folder.join("shard.tar");
        let bytes = draw.pick(&tars).clone();
        let bytes = draw.damaged(&bytes);
        std::fs::write(&shard, &bytes).unwrap();
        let Ok(index) = ShardIndex::read(&shard) else { return false };
        let keys: BTreeSet<&str> = index.samples.iter().map(|sample| &*sample.key).collect();
        assert_eq!(keys.len(), index.samples.len(), "a key occurs once");
        for member in index.samples.iter().flat_map(|sample| &sample.members) {
            let end = member.offset.checked_add(member.length).unwrap();
            assert!(end <= bytes.len() as u64, "a member lies in the shard");
            assert!(usize::from(member.field) < index.fields.len());
        }
        clear_sometimes(&folder.join("catalogue"), draw);
        // The catalogue of the last input is there: it must not be believed.
        if draw.below(4) == 0
            && let Some(contents) = read_all(&shard, &folder.join("catalogue"))
        {
            assert_eq!(contents.len(), index.samples.len());
            assert!(contents.keys().all(|key| keys.contains(&**key)));
        }
        !keys.is_empty()
    });
}

#[test]
fn members_of_any_names_are_paired_by_key_or_dropped_by_name() {
    const KEYS: [&str; 10] =
        ["a", "b", "A", "c d", "d/a", "d.e/a", "e/__f__/a", "__meta__/a", "é", "-"];
    const FIELDS: [&str; 14] = [
        "jpg", "png", "txt", "json", "TXT", "0.jpg", "0.txt", "5.txt", "1.0.png", "1.0.txt", "mp4",
        "seg.png", "cls", "",
    ];
    let test = "fuzzing::shards::members_of_any_names_are_paired_by_key_or_dropped_by_name";
    fuzz(test, 1500, |folder, draw| {
        let keys = *draw.pick(&[1, 2, KEYS.len()]);
        let name = |draw: &mut Draw| format!("{}.{}", draw.pick(&KEYS[..keys]), draw.pick(&FIELDS));
        let names: Vec<String> = (0..=draw.below(12)).map(|_| name(draw)).collect();
        let shard = folder.join("shard.tar");
        std::fs::write(&shard, tar(&names, tar::Header::new_gnu)).unwrap();
        clear_sometimes(&folder.join("catalogue"), draw);
        let index = ShardIndex::read(&shard).unwrap();
        let read = index.samples.iter().map(|sample| sample.key.to_string());
        let dropped = index.dropped.iter().map(|dropped| dropped.key.clone());
        let found: BTreeSet<String> = read.chain(dropped).collect();
        let expected: BTreeSet<String> =
            names.iter().filter_map(|name| Some(split(name)?.0)).collect();
        assert_eq!(found, expected, "{names:?}: each sample is read or dropped by name");
        let contents = read_all(&shard, &folder.join("catalogue"));
        if let Some(contents) = &contents {
            check_pairs(contents, &names.into_iter().collect());
            let has_visual = |sample: &&[Option<String>; 2]| sample[0].is_some();
            let count = contents.values().filter(has_visual).count();
            let expected = index.samples.iter().filter(|sample| {
                let fields =
                    sample.members.iter().map(|member| &*index.fields[usize::from(member.field)]);
                fields
                    .filter_map(|field| field.rsplit('.').next())
                    .any(|extension| Media::of_extension(extension).is_some())
            });
            assert_eq!(count, expected.count(), "no picture is lost");
        }
        contents.is_some() && index.dropped.is_empty()
    });
}

#[test]
fn a_damaged_catalogue_costs_time_and_changes_nothing() {
    let test = "fuzzing::shards::a_damaged_catalogue_costs_time_and_changes_nothing";
    let names: Vec<String> =
        (0..9).flat_map(|n| ["png", "txt", "json"].map(|field| format!("{n}.{field}"))).collect();
    let bytes = tar(&names, tar::Header::new_gnu);
    fuzz(test, 300, |folder, draw| {
        let (shard, catalogue) = (folder.join("shard.tar"), folder.join("catalogue"));
        if !shard.exists() {
            std::fs::write(&shard, &bytes).unwrap();
        }
        clear_sometimes(&catalogue, draw);
        let truth = read_all(&shard, &catalogue).unwrap();
        assert_eq!(truth.len(), 9);
        check_pairs(&truth, &names.iter().cloned().collect());
        let files = std::fs::read_dir(&catalogue).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
        files.sort();
        let file = draw.pick(&files);
        let content = std::fs::read(file).unwrap();
        std::fs::write(file, draw.damaged(&content)).unwrap();
        assert_eq!(read_all(&shard, &catalogue), Some(truth));
        // A catalogue that is believed stays as it is.
        std::fs::read(file).is_ok_and(|now| now != content)
    });
}
