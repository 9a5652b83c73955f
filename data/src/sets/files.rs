//! Files of a set below its root: annotations, and the paths of pictures and videos.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use vljepa_recipes::file_kind::FileKind;

use super::table::{self, Dialect, Row, Table};
use crate::error::DataError;
use crate::json;

/// Extensions of videos, in the order in which they are tried for a template that ends in `.*`.
const VIDEO_EXTENSIONS: [&str; 5] = ["mp4", "mkv", "webm", "avi", "mov"];

/// Annotation file that was read.
#[derive(Debug)]
pub(super) struct Annotations {
    path: PathBuf,
    text: String,
}

impl Annotations {
    /// Reads a file below the root of a set.
    ///
    /// # Errors
    /// If it cannot be read, is obviously something else than annotations, or is not UTF-8.
    pub(super) fn read(root: &Path, name: &Path) -> Result<Self, DataError> {
        let path = root.join(name);
        let bytes = fs::read(&path).map_err(DataError::io("read", &path))?;
        if let Some(FileKind { what, advice }) = FileKind::of(&bytes) {
            return Err(wrong(&path, format!("it {what}; {advice}")));
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| wrong(&path, format!("it is not UTF-8: {}", error.utf8_error())))?;
        Ok(Self { path, text })
    }

    /// Text without a byte order mark.
    pub(super) fn text(&self) -> &str {
        self.text.strip_prefix('\u{feff}').unwrap_or(&self.text)
    }

    /// Parses the file as one JSON value.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, DataError> {
        let parsed = json::parse(self.text.as_bytes());
        parsed.map_err(|error| self.wrong(format!("it cannot be parsed: {error}")))
    }

    /// Parses every line that is not blank as a JSON value. Lines are counted from 1.
    pub(super) fn json_lines<T: DeserializeOwned>(&self) -> Result<Vec<(usize, T)>, DataError> {
        let lines = (1..).zip(self.text().lines()).filter(|(_, line)| !line.trim().is_empty());
        let parsed = lines.map(|(number, line)| {
            let parsed = json::parse(line.as_bytes());
            let wrong = |error| self.wrong(format!("line {number} cannot be parsed: {error}"));
            Ok((number, parsed.map_err(wrong)?))
        });
        parsed.collect()
    }

    /// Parses the file as a table with a header.
    pub(super) fn table(&self, dialect: Dialect) -> Result<Table, DataError> {
        Table::parse(self.text(), dialect).map_err(|reason| self.wrong(reason))
    }

    /// Parses the file as rows of exactly `columns` values separated by commas, without a header.
    pub(super) fn rows(&self, columns: usize) -> Result<Vec<Row>, DataError> {
        let rows =
            table::rows(self.text(), Dialect::Commas).map_err(|reason| self.wrong(reason))?;
        for Row { line, values } in &rows {
            if values.len() != columns {
                let found = values.len();
                return Err(self.wrong(format!("line {line} has {found} values, not {columns}")));
            }
        }
        Ok(rows)
    }

    /// An error about the content of the file.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> DataError {
        wrong(&self.path, reason)
    }
}

fn wrong(path: &Path, reason: impl Into<String>) -> DataError {
    DataError::BadLocation { location: path.display().to_string(), reason: reason.into() }
}

/// Path of a template below the root. `{field}` is replaced by the field, and `{field:06}` by the
/// field with zeros in front, up to 6 characters.
///
/// # Errors
/// A message if the template names an unknown field, or the path would leave the root.
pub(super) fn fill(template: &str, fields: &[(&str, &str)]) -> Result<PathBuf, String> {
    let mut parts = template.split('{');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (field, rest) =
            part.split_once('}').ok_or_else(|| format!("`{template}` has a `{{` without `}}`"))?;
        let (name, width) = field.split_once(':').unwrap_or((field, "0"));
        let width: usize = width
            .parse()
            .map_err(|_| format!("`{width}` in `{template}` is no number of digits"))?;
        let value = fields.iter().find(|(known, _)| *known == name);
        let (_, value) = value.ok_or_else(|| {
            let known: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            format!("`{{{name}}}` is no field of the annotations; there are {}", known.join(", "))
        })?;
        path += &format!("{value:0>width$}{rest}");
    }
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || path.contains('\0') || !Path::new(&path).components().all(inside) {
        return Err(format!("`{path}` is not a path below the folder of the set"));
    }
    Ok(PathBuf::from(path))
}

/// The file at a path that may end in `.*`.
///
/// # Errors
/// A message if there is no such file.
pub(super) fn existing(path: &Path) -> Result<PathBuf, String> {
    if path.extension().is_none_or(|extension| extension != "*") {
        let found = path.is_file().then(|| path.to_owned());
        return found.ok_or_else(|| format!("there is no file {}", path.display()));
    }
    let mut tried = VIDEO_EXTENSIONS.iter().map(|extension| {
        // The name of a video may itself hold a dot.
        let mut name = path.as_os_str().to_owned().into_encoded_bytes();
        name.pop();
        PathBuf::from(format!("{}{extension}", String::from_utf8_lossy(&name)))
    });
    tried.find(|path| path.is_file()).ok_or_else(|| {
        format!("there is no file {} with {}", path.display(), VIDEO_EXTENSIONS.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{existing, fill};

    #[test]
    fn a_template_takes_fields_and_zeros_and_stays_below_the_root() {
        let fields = [("id", "a.b"), ("start", "7"), ("up", "../x")];
        let path = |template| fill(template, &fields);
        assert_eq!(path("v/{id}_{start:06}.mp4").as_deref(), Ok(Path::new("v/a.b_000007.mp4")));
        assert_eq!(path("{start}").as_deref(), Ok(Path::new("7")));
        for (template, said) in [
            ("{end}", "is no field of the annotations; there are id, start, up"),
            ("{id", "without `}`"),
            ("{id:x}", "no number of digits"),
            ("v/{up}.mp4", "not a path below"),
            ("/{id}", "not a path below"),
            ("", "not a path below"),
        ] {
            let error = path(template).unwrap_err();
            assert!(error.contains(said), "{template}: {error}");
        }
    }

    #[test]
    fn any_extension_of_a_video_is_found_also_after_a_dot_in_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.b.webm");
        std::fs::write(&path, "").unwrap();
        assert_eq!(existing(&folder.path().join("a.b.*")), Ok(path.clone()));
        assert_eq!(existing(&path), Ok(path));
        let error = existing(&folder.path().join("a.*")).unwrap_err();
        assert!(error.contains("mp4, mkv, webm"), "{error}");
        assert!(existing(folder.path()).is_err(), "a folder is no file");
    }
}
