//! Tests of files that Action100M refuses.

use std::fs;
use std::path::{Path, PathBuf};

use super::{cases, open, options, videos};
use crate::error::DataError;
use crate::prepare::sets::action100m::{Action100m, Action100mOptions};
use crate::storage::Storage;

/// Opens a file, splits it and reads all parts. Returns the number of what was given.
fn try_read(annotations: &Path, videos: &Path) -> Result<usize, DataError> {
    let set = Action100m::open(&Storage::default(), &options(annotations, videos.to_owned()))?;
    let mut count = 0;
    for part in set.parts(10)? {
        set.read(&part, &mut |_| {
            count += 1;
            Ok(())
        })?;
    }
    Ok(count)
}

#[test]
fn a_file_with_another_schema_is_refused_with_the_name_of_the_column() {
    let folder = tempfile::tempdir().unwrap();
    for (name, said) in [
        ("wrong_start", "the column `start` is not a number"),
        ("wrong_nodes", "it has no column `nodes`"),
        ("wrong_list", "the column `nodes` is not a list of structs"),
        ("wrong_gpt", "its nodes have no column `gpt.action.brief`"),
        ("wrong_date", "the column `metadata.day` has a type that cannot be read"),
    ] {
        let path = cases().join(format!("{name}.parquet"));
        let error = try_read(&path, folder.path()).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(name), "{name}: {error}");
    }
    let mut other = options(&cases().join("snappy.parquet"), folder.path().to_owned());
    other.texts = vec!["gpt.action.actors".to_owned()];
    let error = open(&other).parts(1).unwrap_err().to_string();
    assert!(error.contains("no column `gpt.action.actors`"), "{error}");
    other.texts = vec!["gpt.action".to_owned()];
    let error = open(&other).parts(1).unwrap_err().to_string();
    assert!(error.contains("`gpt.action` is not a string"), "{error}");
}

#[test]
fn a_damaged_file_is_an_error_that_names_it_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let videos = videos(folder.path());
    let path = folder.path().join("x.parquet");
    for name in ["snappy.parquet", "zstd.parquet"] {
        let whole = fs::read(cases().join(name)).unwrap();
        let rows = try_read(&cases().join(name), &videos).unwrap();
        for length in (0..whole.len()).step_by(97) {
            fs::write(&path, &whole[..length]).unwrap();
            let error = try_read(&path, &videos).unwrap_err().to_string();
            assert!(error.contains("x.parquet"), "{length}: {error}");
        }
        let mut refused = 0;
        for (at, bit) in (0..whole.len()).step_by(61).zip((0..8).cycle()) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            fs::write(&path, &damaged).unwrap();
            match try_read(&path, &videos) {
                Ok(count) => assert!(count <= 2 * rows, "{at}: {count}"),
                Err(error) => {
                    refused += 1;
                    let error = error.to_string();
                    assert!(error.contains("x.parquet") && error.len() < 600, "{at}: {error}");
                }
            }
        }
        assert!(refused > 10, "{refused}");
    }
    // Bytes of the footer, a page and its levels that make the crate `parquet` panic.
    for (at, bits) in [(14, 64), (52, 255), (238, 64), (421, 32), (663, 128)] {
        let mut damaged = fs::read(cases().join("snappy.parquet")).unwrap();
        damaged[at] ^= bits;
        fs::write(&path, &damaged).unwrap();
        let error = try_read(&path, &videos).unwrap_err().to_string();
        assert!(error.contains("x.parquet: ") && error.contains("it is damaged"), "{at}: {error}");
    }
    for (content, said) in [
        (&b""[..], "empty"),
        (b"PAR1", "x.parquet"),
        (b"not a parquet file, but a text", "x.parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "HTML"),
    ] {
        fs::write(&path, content).unwrap();
        let error = try_read(&path, &videos).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn annotations_that_cannot_be_found_or_that_change_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_owned();
    for (annotations, said) in [
        (here.join("none.parquet"), "none.parquet"),
        (here.clone(), "no .parquet, .jsonl or .json file"),
        (PathBuf::from("ftp://host/x.parquet"), "`ftp` is not supported"),
    ] {
        let error = Action100m::open(&Storage::default(), &options(&annotations, here.clone()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let other = here.join("x.csv");
    fs::write(&other, "a,b").unwrap();
    let error = Action100m::open(&Storage::default(), &options(&other, here.clone())).unwrap_err();
    assert!(error.to_string().contains("does not end in"), "{error}");
    let lines = here.join("x.jsonl");
    fs::write(&lines, "{}\n").unwrap();
    let error = Action100m::open(&Storage::default(), &options(&lines, here.join("none")));
    assert!(error.unwrap_err().to_string().contains("is not a folder"));
    let good = options(&lines, here.clone());
    for (wrong, said) in [
        (Action100mOptions { texts: vec![], ..good.clone() }, "no text is wanted"),
        (Action100mOptions { levels: Some((2, 1)), ..good.clone() }, "first level"),
        (Action100mOptions { seconds: Some((2.0, 1.0)), ..good.clone() }, "shortest length"),
        (Action100mOptions { seconds: Some((f64::NAN, 1.0)), ..good.clone() }, "shortest length"),
    ] {
        let error = Action100m::open(&Storage::default(), &wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let set = open(&options(&lines, here));
    let parts = set.parts(1).unwrap();
    fs::write(&lines, "{}\n{}\n").unwrap();
    let error = set.read(&parts[0], &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("changed"), "{error}");
}
