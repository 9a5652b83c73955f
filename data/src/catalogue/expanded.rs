//! Shards that an entry names, and the folder in which their catalogue is.

use std::path::PathBuf;

use crate::error::DataError;
use crate::storage::{Found, Location, Storage};

/// Files that a `shards` entry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// The entry.
    pub entry: String,
    /// The shards in their order.
    pub shards: Vec<Found>,
    /// Folder of local shards: the folder that the entry names, or that of the shards. With braces
    /// in names of folders, it is the last folder before the first brace. `None` if the entry is a
    /// URL.
    pub base: Option<PathBuf>,
}

impl Expanded {
    /// Finds the shards of an entry, see [`Storage::expand`].
    ///
    /// # Errors
    /// The errors of [`Storage::expand`].
    pub fn of(storage: &Storage, entry: &str) -> Result<Self, DataError> {
        let shards = storage.expand(entry)?;
        let base = match Location::parse(entry) {
            Ok(Location::Local(path)) if path.is_dir() => Some(path),
            Ok(Location::Local(path)) if path.exists() => Some(folder_of(entry)),
            Ok(Location::Local(_)) => Some(folder_of(entry.split('{').next().unwrap_or(entry))),
            Ok(Location::Remote(_)) | Err(_) => None,
        };
        Ok(Self { entry: entry.to_owned(), shards, base })
    }
}

/// The folder in a path: all before the last slash, or the working directory.
fn folder_of(path: &str) -> PathBuf {
    match path.rsplit_once('/') {
        Some(("", _)) => PathBuf::from("/"),
        Some((folder, _)) => PathBuf::from(folder),
        None => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
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
}
