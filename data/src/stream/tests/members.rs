//! Tests that the members of a shard become the right samples and texts, and that only what a rule
//! needs can make a sample bad.

use std::fs;

use serde_json::json;
use vljepa_recipes::Recipe;

use super::{batches, first_error, folder, opened};
use crate::error::DataError;
use crate::fixtures::{case, png, recipe, write_tar};

/// All six samples have a good `txt`. Their json members, which no rule uses, hold what Python's
/// `json` reads or writes: a byte order mark, `null`, a number as an answer, half of a surrogate
/// pair.
#[test]
fn a_json_that_no_rule_uses_costs_no_sample() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (number, json) in ["{\"caption\"", "[]", "\u{0}", "{\"questions\": 3}"].iter().enumerate() {
        files.push((format!("{number}.png"), png(8, 8, 1)));
        files.push((format!("{number}.txt"), b"a picture".to_vec()));
        files.push((format!("{number}.json"), json.as_bytes().to_vec()));
    }
    files.push(("4.png".to_owned(), png(8, 8, 1)));
    files.push(("4.txt".to_owned(), b"a picture".to_vec()));
    files.push(("4.json.gz".to_owned(), b"no gzip".to_vec()));
    files.push(("5.png".to_owned(), png(8, 8, 1)));
    files.push(("5.txt".to_owned(), b"a picture".to_vec()));
    files.push(("5.json".to_owned(), vec![b' '; (64 << 20) + 1]));
    let broken = folder.path().join("broken.tar");
    write_tar(&broken, &files);
    for (shard, count) in [(case("unused_fields.tar", folder.path()), 6), (broken, 6)] {
        let mut recipe = recipe(folder.path(), &shard, count, 3);
        let rules = |recipe: &mut Recipe, rules| {
            let source = recipe.data.sources.get_mut("pictures").unwrap();
            source.targets = serde_json::from_value(rules).unwrap();
        };
        rules(&mut recipe, json!([{"from": "caption"}]));
        for batch in batches(&recipe, 0, 1, 0) {
            assert_eq!(batch.skipped, []);
        }
        // A rule that needs the questions makes the samples without them bad.
        rules(&mut recipe, json!([{"from": "questions"}]));
        recipe.data.bad_samples.max_consecutive = 0;
        first_error(&recipe);
    }
}

/// `a` and `b` have the same caption but for a byte order mark. The caption of `c` is in its json,
/// and its txt is empty.
#[test]
fn byte_order_marks_and_empty_txt_members_do_not_change_a_caption() {
    let folder = tempfile::tempdir().unwrap();
    let shard = case("bom.tar", folder.path());
    let mut recipe = recipe(folder.path(), &shard, 3, 1);
    let source = recipe.data.sources.get_mut("pictures").unwrap();
    source.targets = serde_json::from_value(json!([{"from": "caption"}])).unwrap();
    let batch = &batches(&recipe, 0, 1, 0)[0];
    assert_eq!(batch.target_texts, ["a red circle"; 3]);
    assert_eq!(batch.skipped, []);
    let mut keys: Vec<_> = batch.samples.iter().map(|sample| sample.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["a", "b", "c"]);
}

#[test]
fn a_folder_with_bad_shards_names_every_one_of_them() {
    let folder = folder();
    let base = recipe(folder.path(), folder.path(), 8, 5);
    case("lfs_pointer.tar", folder.path());
    let error = opened(&base).err().unwrap();
    assert!(matches!(error, DataError::BadShard { .. }) && error.to_string().contains("Git LFS"));
    fs::write(folder.path().join("empty.tar"), b"").unwrap();
    let error = opened(&base).err().unwrap().to_string();
    for said in ["2 of the 4 shards", "lfs_pointer.tar", "Git LFS", "empty.tar", "0 bytes"] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn members_with_a_common_prefix_are_read_and_others_beside_plain_members_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("a.tar");
    let text = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    write_tar(
        &shard,
        &[
            ("x.0.png".to_owned(), png(8, 8, 1)),
            text("x.0.txt", "one"),
            ("y.seg.png".to_owned(), png(8, 8, 9)),
            ("y.png".to_owned(), png(8, 8, 2)),
            text("y.alt.json", "{\"caption\": \"nine\"}"),
            text("y.txt", "two"),
        ],
    );
    let mut recipe = recipe(folder.path(), &shard, 2, 1);
    let source = recipe.data.sources.get_mut("pictures").unwrap();
    source.targets = serde_json::from_value(json!([{"from": "caption"}])).unwrap();
    let batch = &batches(&recipe, 0, 1, 0)[0];
    for (row, sample) in batch.samples.iter().enumerate() {
        let (shade, caption) = if sample.key == "x" { (1, "one") } else { (2, "two") };
        assert_eq!(batch.target_texts[row], caption);
        assert_eq!(batch.frames[row * 384 + 2], shade, "{}", sample.key);
    }
}
