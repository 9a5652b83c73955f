//! Tests of the expansion of a `shards` entry into files.

use super::{expand, expand_braces};

#[test]
fn braces_expand_with_their_width_and_in_order() {
    let names = expand_braces("a-{08..11}.tar").unwrap();
    assert_eq!(names, ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
    let names = expand_braces("{x,y}/{0..1}.tar").unwrap();
    assert_eq!(names, ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]);
}

#[test]
fn braces_that_cannot_be_read_are_refused() {
    for (text, said) in [
        ("a-{0..3.tar", "has no `}`"),
        ("a-{a..b}.tar", "`a` in `{a..b}` is not a number"),
        ("a-{3..1}.tar", "empty or too long"),
        ("a-{0..99999999999}.tar", "empty or too long"),
        ("{0..9999999}{0..9999999}", "too many files"),
    ] {
        let reason = expand_braces(text).unwrap_err();
        assert!(reason.contains(said), "{text}: {reason}");
    }
}

#[test]
fn a_folder_names_its_tars_in_order_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.tar", "a.tar", "a.tar.index", "notes.txt"] {
        std::fs::write(folder.path().join(name), b"x").unwrap();
    }
    let set = expand(folder.path().to_str().unwrap()).unwrap();
    let expected = ["a.tar", "b.tar"].map(|name| folder.path().join(name).display().to_string());
    assert_eq!(set.shards, expected.map(String::into_boxed_str));
    assert_eq!(set.base, folder.path());
    let error = expand("no/such/folder").unwrap_err().to_string();
    assert!(error.contains("no/such/folder") && error.contains("working directory"), "{error}");
}

#[test]
fn the_folder_of_a_range_is_the_last_one_before_its_braces() {
    for (entry, base) in [
        ("x/y/a-{0..1}.tar", "x/y"),
        ("/{0..1}.tar", "/"),
        ("{0..1}.tar", "."),
        ("x/{a,b}/{0..1}.tar", "x"),
    ] {
        assert_eq!(expand(entry).unwrap().base, std::path::Path::new(base), "{entry}");
    }
}
