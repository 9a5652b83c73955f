//! Files of a raw set: its annotations, and the pictures and videos that they name.

use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use vljepa_recipes::file_kind::{FileKind, HEAD_BYTES};

use super::left_out::{BAD_PATH, BAD_TIMES, NO_VIDEO, Reason};
use crate::error::DataError;
use crate::storage::{Location, Storage, StoredFile, Version};

/// Annotation file, with the version that it had when the set was opened.
#[derive(Debug, Clone)]
pub(super) struct Annotations {
    location: Location,
    version: Version,
}

impl Annotations {
    /// Opens the file at a path or URL, and refuses one that is obviously something else than
    /// annotations.
    pub(super) fn find(storage: &Storage, path: &str) -> Result<Self, DataError> {
        let unusable =
            |reason: String| DataError::BadLocation { location: path.to_owned(), reason };
        let location = Location::parse(path).map_err(unusable)?;
        let file = storage.open(&location)?;
        let length = usize::try_from(file.length()).unwrap_or(usize::MAX).min(HEAD_BYTES);
        let mut head = vec![0; length];
        file.read_exact_at(&mut head, 0).map_err(read_error(&file))?;
        if let Some(kind) = FileKind::of(&head) {
            return Err(unusable(format!("it {}; {}", kind.what, kind.advice)));
        }
        let version = file.version().clone();
        Ok(Self { location, version })
    }

    /// Opens the file again, and refuses it if it has changed.
    pub(super) fn open(&self, storage: &Storage) -> Result<StoredFile, DataError> {
        storage.open_known(&self.location, &self.version)
    }

    /// Hash of the names and versions of files.
    pub(super) fn hash<'a>(files: impl Iterator<Item = &'a Self>) -> String {
        let mut hasher = blake3::Hasher::new();
        for Self { location, version } in files {
            hasher.update(format!("{location}\n{version:?}\n").as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// An error about the content of the file.
    pub(super) fn unusable(&self, reason: impl Into<String>) -> DataError {
        DataError::BadLocation { location: self.location.to_string(), reason: reason.into() }
    }
}

/// Returns a closure for `map_err` that makes an error about reading `file`.
pub(super) fn read_error(file: &StoredFile) -> impl FnOnce(io::Error) -> DataError + use<> {
    DataError::io("read", file.path().to_string())
}

/// Folder of pictures or videos on a local disk.
#[derive(Debug, Clone)]
pub(super) struct MediaFolder(PathBuf);

impl MediaFolder {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        if path.is_dir() {
            return Ok(Self(path.to_owned()));
        }
        let reason =
            "it is not a folder on this machine; name the folder of the pictures or videos";
        let location = path.display().to_string();
        Err(DataError::BadLocation { location, reason: reason.to_owned() })
    }

    /// The file at a relative path below the folder. `missing` is the class of the reason if there
    /// is no such file.
    pub(super) fn file(&self, name: &str, missing: &'static str) -> Result<PathBuf, Reason> {
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if name.is_empty() || name.contains('\0') || !Path::new(name).components().all(inside) {
            let text = format!("`{name}` is not a path below {}", self.0.display());
            return Err(Reason::new(BAD_PATH, text));
        }
        let path = self.0.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Reason::new(missing, format!("there is no file {}", path.display())))
    }

    /// The video of this name in the folder, with the first of the `extensions` that exists.
    pub(super) fn video(&self, name: &str, extensions: &[&str]) -> Result<PathBuf, Reason> {
        if name.contains('/') {
            return Err(Reason::new(BAD_PATH, format!("`{name}` is not the name of a video")));
        }
        for extension in extensions {
            match self.file(&format!("{name}.{extension}"), NO_VIDEO) {
                Err(reason) if reason.class() == NO_VIDEO => {}
                found => return found,
            }
        }
        let (folder, extensions) = (self.0.display(), extensions.join(", "));
        Err(Reason::new(NO_VIDEO, format!("{folder} has no file {name} with {extensions}")))
    }
}

/// The stretch of a video between two times in seconds, if it is one.
pub(super) fn span(start: f64, end: f64) -> Result<Range<f64>, Reason> {
    if start.is_finite() && start >= 0.0 && start < end {
        return Ok(start..end);
    }
    Err(Reason::new(BAD_TIMES, format!("it lasts from {start} s to {end} s")))
}

/// A field that must be a number.
pub(super) fn number(fields: &Map<String, Value>, name: &str) -> Result<f64, Reason> {
    optional_number(fields, name)?.ok_or_else(|| Reason::broken(format!("it has no `{name}`")))
}

/// A field that must be a number if it is there and not `null`.
pub(super) fn optional_number(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<f64>, Reason> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_f64();
            number.map(Some).ok_or_else(|| Reason::broken(format!("`{name}` is not a number")))
        }
    }
}
