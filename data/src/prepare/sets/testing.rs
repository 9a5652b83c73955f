//! What the tests of the adapters share.

use std::path::Path;

use super::Give;
use crate::error::DataError;
use crate::prepare::item::{Item, LeftOut, MediaSource, Visual};

/// What a set gives: an item, or the reason why it is left out.
pub(super) type Given = Result<Item, LeftOut>;

/// Everything that a set gives, part by part.
pub(super) fn all<P>(
    parts: &[P],
    read: impl Fn(&P, &mut Give<'_>) -> Result<(), DataError>,
) -> Vec<Given> {
    let mut given = Vec::new();
    for part in parts {
        let mut give = |item| {
            given.push(item);
            Ok(())
        };
        read(part, &mut give).unwrap();
    }
    given
}

/// Keys of the items and `item: class` of those that are left out.
pub(super) fn outline(given: &[Given]) -> Vec<String> {
    let line = |item: &Given| match item {
        Ok(item) => item.key.clone(),
        Err(left_out) => format!("{}: {}", left_out.item, left_out.class),
    };
    given.iter().map(line).collect()
}

/// Writes an empty file, with its folders.
pub(super) fn touch(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, b"").unwrap();
}

/// A clip of the file at `path`.
pub(super) fn clip(path: &Path, seconds: Option<std::ops::Range<f64>>) -> Visual {
    Visual::Clip { video: MediaSource::File(path.to_owned()), seconds }
}
