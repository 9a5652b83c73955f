//! Locations of files: local paths and URLs of object stores and web servers.

use std::fmt;
use std::path::{Path, PathBuf};

use object_store::path::Path as ObjectPath;

/// Location of a file: a local path, or a URL (`s3://`, `gs://`, `http://`, `https://`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// Path in the file system.
    Local(PathBuf),
    /// URL of a remote file.
    Remote(RemoteUrl),
}

/// Protocol of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// Amazon S3, or a server that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Web server without encryption.
    Http,
    /// Web server with encryption.
    Https,
}

impl Scheme {
    const ALL: [Self; 4] = [Self::S3, Self::Gs, Self::Http, Self::Https];

    /// Name of the scheme in a URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Whether files under a prefix can be listed.
    #[must_use]
    pub fn can_list(self) -> bool {
        matches!(self, Self::S3 | Self::Gs)
    }
}

/// URL of a file, or of a prefix if it ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteUrl {
    /// Protocol.
    pub scheme: Scheme,
    /// Bucket, or host with an optional port.
    pub authority: String,
    /// Key in the bucket, or path on the host, without the first `/`. Keys are written as they
    /// are; paths on a web server may contain `%20` and the like.
    pub key: String,
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme.name(), self.authority, self.key)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Remote(url) => url.fmt(f),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Local(path.to_owned())
    }
}

/// Whether `text` is written as a URL of any scheme.
pub(super) fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

impl Location {
    /// Parses a path or URL.
    ///
    /// # Errors
    /// What is wrong with the URL, without its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if is_url(text) {
            Ok(Self::Remote(RemoteUrl::parse(text)?))
        } else {
            Ok(Self::Local(PathBuf::from(text)))
        }
    }

    /// Location of the file `name` in the same folder or under the same prefix.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.with_file_name(name)),
            Self::Remote(url) => {
                Self::Remote(RemoteUrl { key: format!("{}{name}", url.folder()), ..url.clone() })
            }
        }
    }
}

impl RemoteUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// What is wrong with the URL, without its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("it is not a URL".to_owned());
        };
        let Some(scheme) = Scheme::ALL.into_iter().find(|known| known.name() == scheme) else {
            return Err(format!(
                "the scheme `{scheme}` is not supported: give a local path, or a URL that starts \
                 with s3://, gs://, http:// or https://"
            ));
        };
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return Err(format!("the URL names no {}", scheme.authority_name()));
        }
        if authority.contains('@') {
            return Err(
                "a URL must not contain a user or password, because URLs are logged".to_owned()
            );
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:[]".contains(&byte);
        if !authority.bytes().all(plain) {
            return Err(format!("`{authority}` is no {}", scheme.authority_name()));
        }
        if !scheme.can_list() && key.contains(['?', '#']) {
            return Err("a URL must not contain `?` or `#`: signatures in a query expire during \
                        a run, and URLs are logged"
                .to_owned());
        }
        let url = Self { scheme, authority: authority.to_owned(), key: key.to_owned() };
        url.object_path()?;
        Ok(url)
    }

    /// Path of the object in `object_store`'s form.
    pub(super) fn object_path(&self) -> Result<ObjectPath, String> {
        let unusable = |reason: &str| format!("the path `{}` cannot be used: {reason}", self.key);
        if self.key.starts_with('/') {
            return Err(unusable("it contains an empty segment (`//`)"));
        }
        let parsed = match self.scheme {
            Scheme::S3 | Scheme::Gs => ObjectPath::parse(&self.key),
            Scheme::Http | Scheme::Https => ObjectPath::from_url_path(&self.key),
        };
        parsed.map_err(|error| match error {
            object_store::path::Error::EmptySegment { .. } => {
                unusable("it contains an empty segment (`//`)")
            }
            other => unusable(&other.to_string()),
        })
    }

    /// Part of the key up to the last `/`, which is included.
    pub(super) fn folder(&self) -> &str {
        &self.key[..self.key.rfind('/').map_or(0, |slash| slash + 1)]
    }
}

impl Scheme {
    fn authority_name(self) -> &'static str {
        if self.can_list() { "bucket" } else { "host" }
    }
}

#[cfg(test)]
mod tests {
    use super::{Location, RemoteUrl, Scheme};

    fn remote(text: &str) -> RemoteUrl {
        match Location::parse(text) {
            Ok(Location::Remote(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn urls_are_split_and_written_back() {
        for (text, scheme, authority, key) in [
            ("s3://bucket/a/b c.tar", Scheme::S3, "bucket", "a/b c.tar"),
            ("gs://b.u-c_ket/x%20y.tar", Scheme::Gs, "b.u-c_ket", "x%20y.tar"),
            ("http://127.0.0.1:8080/a.tar", Scheme::Http, "127.0.0.1:8080", "a.tar"),
            ("https://host/x%20y.tar", Scheme::Https, "host", "x%20y.tar"),
            ("s3://bucket/", Scheme::S3, "bucket", ""),
        ] {
            let url = remote(text);
            assert_eq!((url.scheme, &*url.authority, &*url.key), (scheme, authority, key));
            assert_eq!(url.to_string(), text);
        }
        // A web server's path is decoded, a key in a bucket is not.
        assert_eq!(remote("https://host/x%20y.tar").object_path().unwrap().as_ref(), "x y.tar");
        assert_eq!(remote("s3://b/x%20y.tar").object_path().unwrap().as_ref(), "x%20y.tar");
    }

    #[test]
    fn texts_without_a_scheme_are_paths() {
        for text in ["a/b.tar", "/data/x.tar", "C:/x", "a b://c", "://x", ""] {
            assert_eq!(Location::parse(text), Ok(Location::Local(text.into())), "{text}");
        }
    }

    #[test]
    fn urls_that_cannot_be_used_say_why() {
        for (text, said) in [
            ("ftp://host/a.tar", "`ftp` is not supported"),
            ("file:///data/a.tar", "give a local path"),
            ("s3:///a.tar", "names no bucket"),
            ("https:///a.tar", "names no host"),
            ("https://user:hunter2@host/a.tar", "user or password"),
            ("s3://buc ket/a.tar", "is no bucket"),
            ("https://host/a.tar?token=1", "`?`"),
            ("s3://bucket/a//b.tar", "empty segment"),
            ("s3://bucket//b.tar", "empty segment"),
            ("s3://bucket/a/../b.tar", "cannot be used"),
        ] {
            let reason = Location::parse(text).unwrap_err();
            assert!(reason.contains(said), "{text}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn a_sibling_lies_in_the_same_folder() {
        for (text, sibling) in [
            ("a/b.tar", "a/x.json"),
            ("s3://bucket/a/b.tar", "s3://bucket/a/x.json"),
            ("s3://bucket/b.tar", "s3://bucket/x.json"),
        ] {
            assert_eq!(Location::parse(text).unwrap().sibling("x.json").to_string(), sibling);
        }
    }
}
