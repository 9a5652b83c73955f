//! Counts of sets, and their missing files.

use serde_json::json;
use vljepa_recipes::check::count_problems;
use vljepa_recipes::schema::{Count, Expected, KnownCount};

use super::{OpenSet, set, write};

#[test]
fn a_count_that_differs_is_an_error_that_says_by_how_much_and_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, &[("t.csv", "video_id,sentence\na,one\nb,two\n"), ("a.webm", "")]);
    let mut set = set(
        at,
        &json!({"caption_table":
            {"table": "t.csv", "caption": "sentence", "videos": "{video_id}.*"}}),
    );
    let expect = |samples, unverified: &[Count]| Expected {
        samples: Some(samples),
        unverified: unverified.to_vec(),
        ..Expected::default()
    };
    let refused = |set: &_| OpenSet::open(set).expect_err("the count differs").to_string();
    set.expect = expect(2, &[]);
    assert!(OpenSet::open(&set).is_ok());
    set.expect = expect(5, &[]);
    let error = refused(&set);
    assert!(error.contains("the set `tiny`: it holds 2 samples, where 5 are expected: 3 fewer"));
    set.allow_subset = true;
    assert!(OpenSet::open(&set).is_ok());
    // A part is smaller than the set.
    set.expect = expect(1, &[]);
    set.expect.known =
        vec![KnownCount { count: Count::Samples, is: 2, means: "all clips".to_owned() }];
    let error = refused(&set);
    let said = "2 samples, where 1 are expected: 1 more; this is the number of all clips";
    assert!(error.contains(said), "{error}");
    set.expect = expect(1, &[Count::Samples]);
    let opened = OpenSet::open(&set).unwrap();
    let (errors, warnings) = count_problems(&set, |count| opened.count(count));
    assert!(errors.is_empty() && warnings[0].ends_with("was not verified"), "{warnings:?}");

    let (messages, samples) = opened.missing();
    assert_eq!((messages.len(), samples, opened.files()), (1, 1, 2));
    assert!(messages[0].contains("there is no file") && messages[0].contains("b.*"));
}

#[test]
fn an_annotation_file_that_is_missing_or_something_else_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let format = json!({"activity_net_captions":
        {"annotations": "val.json", "videos": "{video_id}.*"}});
    let refused = || super::refused(at, &format);
    assert!(refused().contains("cannot read") && refused().contains("val.json"));
    for (text, said) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs"),
        ("{\"a\": ", "it cannot be parsed: EOF"),
        ("{\"a\": {\"sentence\": []}}", "missing field `sentences`"),
        ("[]", "expected a map"),
    ] {
        write(at, &[("val.json", text)]);
        let error = refused();
        assert!(error.to_lowercase().contains(&said.to_lowercase()), "{text}: {error}");
    }
    std::fs::write(at.join("val.json"), b"{\"caf\xe9\": 1}").unwrap();
    assert!(refused().contains("it is not UTF-8"), "{}", refused());
}
