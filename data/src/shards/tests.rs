//! Tests of the folder of a set of shards.

use std::path::PathBuf;

use super::Expanded;
use crate::fixtures::storage;

#[test]
fn the_folder_of_a_range_is_the_last_one_before_its_braces() {
    for (entry, base) in [
        ("x/y/a-{0..1}.tar", "x/y"),
        ("/{0..1}.tar", "/"),
        ("{0..1}.tar", "."),
        ("x/{a,b}/{0..1}.tar", "x"),
    ] {
        let set = Expanded::of(&storage(), entry).unwrap();
        assert_eq!(set.base, Some(PathBuf::from(base)), "{entry}");
    }
    let remote = Expanded::of(&storage(), "s3://bucket/a-{0..1}.tar").unwrap();
    assert_eq!((remote.base, remote.shards.len()), (None, 2));
}
