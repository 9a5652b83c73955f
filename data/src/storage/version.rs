//! Versions of files, by which a file that changed is recognised.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};

/// Version of a file. Two versions of a file differ if the file was changed between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// Version of a local file.
    Local {
        /// Length of the file in bytes.
        length: u64,
        /// Time of the last change, in nanoseconds since 1970.
        modified_ns: i64,
    },
    /// Version of a remote file. The server gives an ETag, a time or both.
    Remote {
        /// Length of the file in bytes.
        length: u64,
        /// ETag of the server, without quotes.
        etag: Option<String>,
        /// Time of the last change, in seconds since 1970.
        modified_s: Option<i64>,
    },
}

impl Version {
    /// Length of the file in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Local { length, .. } | Self::Remote { length, .. } => *length,
        }
    }

    /// Version of the local file at `path`.
    ///
    /// # Errors
    /// If there is no such file.
    pub(crate) fn of_local(path: &Path) -> io::Result<Self> {
        Ok(Self::local(&fs::metadata(path)?))
    }

    pub(super) fn local(metadata: &Metadata) -> Self {
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec();
        Self::Local { length: metadata.len(), modified_ns }
    }

    /// Version that a server's answer describes.
    pub(super) fn remote(meta: &ObjectMeta) -> Self {
        let plain = |etag: &String| etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let etag = meta.e_tag.as_ref().map(plain).filter(|etag| !etag.is_empty());
        // `object_store` writes 1970 for a missing time.
        let modified_s = Some(meta.last_modified.timestamp()).filter(|&seconds| seconds != 0);
        Self::Remote { length: meta.size, etag, modified_s }
    }

    /// Whether the version tells a changed file from an unchanged one.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self, Self::Remote { etag: None, modified_s: None, .. })
    }

    /// How `now` differs from this version, or `None` if it is the same. ETags decide if both
    /// have one, otherwise times do.
    pub(crate) fn change(&self, now: &Self) -> Option<String> {
        if self.length() != now.length() {
            return Some(format!("{} bytes before, {} now", self.length(), now.length()));
        }
        let (Self::Remote { etag, modified_s, .. }, Self::Remote { etag: e, modified_s: m, .. }) =
            (self, now)
        else {
            return (self != now).then(|| "another time of change".to_owned());
        };
        match (etag, e, modified_s, m) {
            (Some(before), Some(now), ..) => {
                (before != now).then(|| format!("ETag {before} before, {now} now"))
            }
            (_, _, Some(before), Some(now)) => (before != now)
                .then(|| format!("last modified {before} s after 1970 before, {now} now")),
            _ => Some("the server no longer gives an ETag or a time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    fn version(length: u64, etag: Option<&str>, modified_s: Option<i64>) -> Version {
        Version::Remote { length, etag: etag.map(str::to_owned), modified_s }
    }

    #[test]
    fn a_version_differs_by_length_etag_or_time() {
        let first = version(10, Some("a"), Some(5));
        // The ETag decides: servers behind one name may have copies of different times.
        assert_eq!(first.change(&version(10, Some("a"), Some(6))), None);
        assert_eq!(first.change(&version(10, None, Some(5))), None);
        for (other, said) in [
            (version(11, Some("a"), Some(5)), "10 bytes before, 11 now"),
            (version(10, Some("b"), Some(5)), "ETag a before, b now"),
            (version(10, None, Some(6)), "5 s after 1970 before, 6 now"),
            (version(10, None, None), "no longer"),
        ] {
            let change = first.change(&other).unwrap();
            assert!(change.contains(said), "{change}");
        }
        assert!(first.is_known() && !version(10, None, None).is_known());
    }
}
