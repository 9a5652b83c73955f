//! Turns an entry of a recipe into the files that it names.

use std::fs;
use std::path::Path;

use super::braces::expand_braces;
use super::client::wait_for;
use super::location::{Location, RemoteUrl, is_url};
use super::{Storage, Version, io_error};
use crate::error::DataError;

/// File that an entry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Path or URL of the file.
    pub location: Location,
    /// Version of the file if a listing of its prefix gave it.
    pub version: Option<Version>,
}

impl From<Location> for Found {
    fn from(location: Location) -> Self {
        Self { location, version: None }
    }
}

impl Storage {
    /// Files named by an entry, in order:
    /// - a folder or a remote prefix that ends in `/`: its `*.tar`, sorted by name;
    /// - a path or URL with brace ranges (`clips-{000000..000127}.tar`, `{a,b}.tar`): each of them,
    ///   without asking whether it exists;
    /// - a list, whose name ends in `.txt`: each path or URL in it, one per line;
    /// - one path or URL.
    ///
    /// # Errors
    /// [`DataError::NoShards`] if the entry matches no file, [`DataError::BadRange`] if a brace
    /// range cannot be parsed or is too long, [`DataError::BadLocation`] if a URL or a line of a
    /// list cannot be used, [`DataError::Io`] if a folder or list cannot be read.
    pub fn expand(&self, entry: &str) -> Result<Vec<Found>, DataError> {
        let path = Path::new(entry);
        if !is_url(entry) && path.is_dir() {
            return local_folder(entry);
        }
        // If a file with braces in its name exists, the entry means that file.
        let braces = entry.contains('{') && (is_url(entry) || !path.exists());
        let names = if braces {
            expand_braces(entry)
                .map_err(|reason| DataError::BadRange { shards: entry.to_owned(), reason })?
        } else {
            vec![entry.to_owned()]
        };
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let location = Location::parse(&name)
                .map_err(|reason| DataError::BadLocation { location: name.clone(), reason })?;
            match &location {
                _ if is_list(&name) => found.extend(self.listed(&location)?),
                Location::Remote(url) if url.key.is_empty() || url.key.ends_with('/') => {
                    found.extend(self.remote_folder(url, entry)?);
                }
                Location::Local(path) if !braces && !path.is_file() => {
                    return Err(DataError::NoShards { shards: entry.to_owned() });
                }
                Location::Local(_) | Location::Remote(_) => found.push(location.into()),
            }
        }
        Ok(found)
    }

    /// Shards directly under a remote prefix.
    fn remote_folder(&self, url: &RemoteUrl, entry: &str) -> Result<Vec<Found>, DataError> {
        if !url.scheme.can_list() {
            let reason = "files of a web server cannot be listed: name them by a range such as \
                          clips-{000000..000127}.tar, or in a .txt file, one URL per line";
            let location = url.to_string();
            return Err(DataError::BadLocation { location, reason: reason.to_owned() });
        }
        let listed = wait_for(self.remote(url, "list")?.list());
        let listed = listed.map_err(io_error("list", &Location::Remote(url.clone())))?;
        let mut found: Vec<Found> = listed
            .into_iter()
            .filter(|meta| meta.location.as_ref().ends_with(".tar"))
            .map(|meta| {
                let key = meta.location.as_ref().to_owned();
                let location = Location::Remote(RemoteUrl { key, ..url.clone() });
                Found { location, version: Some(Version::remote(&meta)) }
            })
            .collect();
        if found.is_empty() {
            return Err(DataError::NoShards { shards: entry.to_owned() });
        }
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Files in the list at `list`.
    fn listed(&self, list: &Location) -> Result<Vec<Found>, DataError> {
        let bytes = self.read(list)?;
        let unusable = |location: String, reason: &str| DataError::BadLocation {
            location,
            reason: reason.to_owned(),
        };
        let text = str::from_utf8(&bytes)
            .map_err(|error| unusable(list.to_string(), &format!("it is no text: {error}")))?;
        // Some editors write a mark before the first line.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut found = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let location = in_list(list, line)
                .map_err(|reason| unusable(format!("{list}:{number}: {line}"), &reason))?;
            found.push(location.into());
        }
        if found.is_empty() {
            return Err(unusable(list.to_string(), "the list names no shard"));
        }
        Ok(found)
    }
}

/// Whether the entry names a list of shards.
fn is_list(name: &str) -> bool {
    name.ends_with(".txt")
}

/// Location that a line of `list` names.
fn in_list(list: &Location, line: &str) -> Result<Location, String> {
    if line.ends_with('/') || is_list(line) {
        return Err("a list names single shards, no folders and no other lists".to_owned());
    }
    if is_url(line) {
        return Location::parse(line);
    }
    match list {
        Location::Local(path) => {
            Ok(Location::Local(path.parent().unwrap_or(Path::new("")).join(line)))
        }
        Location::Remote(_) if line.starts_with('/') => {
            Err("a remote list names URLs and relative paths, no local files".to_owned())
        }
        Location::Remote(url) => {
            let beside = list.sibling(line);
            let Location::Remote(parsed) = Location::parse(&beside.to_string())? else {
                return Err(format!("it is not under {}", url.folder()));
            };
            Ok(Location::Remote(parsed))
        }
    }
}

fn local_folder(entry: &str) -> Result<Vec<Found>, DataError> {
    let folder = Path::new(entry);
    let mut paths = Vec::new();
    for item in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let path = item.map_err(DataError::io("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "tar") && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(DataError::NoShards { shards: entry.to_owned() });
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| Location::Local(path).into()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::storage::{Storage, StorageOptions};

    fn expand(entry: &str) -> Result<Vec<String>, String> {
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let found = storage.expand(entry).map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|found| found.location.to_string()).collect())
    }

    #[test]
    fn a_folder_names_its_tars_in_order_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name).display().to_string();
        for file in ["b.tar", "a.tar", "a.tar.index", "notes.txt", "{0..1}.tar"] {
            fs::write(name(file), b"x").unwrap();
        }
        let all = [name("a.tar"), name("b.tar"), name("{0..1}.tar")];
        assert_eq!(expand(folder.path().to_str().unwrap()).unwrap(), all);
        assert_eq!(expand(&name("{0..1}.tar")).unwrap(), [name("{0..1}.tar")]);
        assert_eq!(expand(&name("{2..3}.tar")).unwrap(), [name("2.tar"), name("3.tar")]);
        let error = expand("no/such/folder").unwrap_err();
        assert!(error.contains("no/such/folder") && error.contains("working directory"), "{error}");
    }

    #[test]
    fn ranges_of_urls_expand_without_a_request() {
        let names = expand("s3://no-such-bucket/c-{08..09}.tar").unwrap();
        assert_eq!(names, ["s3://no-such-bucket/c-08.tar", "s3://no-such-bucket/c-09.tar"]);
        assert_eq!(expand("https://h/a.tar").unwrap(), ["https://h/a.tar"]);
        for (entry, said) in [
            ("https://host/shards/", "cannot be listed"),
            ("https://host/{a,b}/", "cannot be listed"),
            ("s3://bucket/{1..0}.tar", "empty or too long"),
            ("ftp://host/a.tar", "`ftp` is not supported"),
        ] {
            let error = expand(entry).unwrap_err();
            assert!(error.contains(said) && error.contains("host") | error.contains("bucket"));
        }
    }

    #[test]
    fn a_list_names_shards_one_per_line() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("train.txt");
        let text = "\u{feff}# shards\r\n\na.tar\n  /data/b c.tar \ns3://bucket/c.tar\n";
        fs::write(&list, text).unwrap();
        let beside = folder.path().join("a.tar").display().to_string();
        let names = expand(list.to_str().unwrap()).unwrap();
        assert_eq!(names, [&beside, "/data/b c.tar", "s3://bucket/c.tar"]);
    }

    #[test]
    fn a_bad_line_of_a_list_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("train.txt");
        for (text, said) in [
            ("a.tar\n\nftp://h/b.tar\n", "train.txt:3: ftp://h/b.tar: the scheme `ftp`"),
            ("a.tar\nfolder/\n", "train.txt:2: folder/: a list names single shards"),
            ("other.txt", "train.txt:1: other.txt: a list names single shards"),
            ("# nothing\n", "names no shard"),
        ] {
            fs::write(&list, text).unwrap();
            let error = expand(list.to_str().unwrap()).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        fs::write(&list, [0xff, 0xfe]).unwrap();
        assert!(expand(list.to_str().unwrap()).unwrap_err().contains("no text"));
        let error = expand("no-such-list.txt").unwrap_err();
        assert!(error.contains("no-such-list.txt"), "{error}");
    }
}
