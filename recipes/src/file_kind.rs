//! Recognises by its first bytes a file that is something else than its name says: a download that
//! failed, a pointer, a compressed archive.

/// Number of bytes at the start of a file that [`FileKind::of`] looks at.
pub const HEAD_BYTES: usize = 512;

/// Kind of a file that can be neither a tar, nor weights, nor JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileKind {
    /// Predicate of a sentence about the file, such as `is a ZIP archive`.
    pub what: &'static str,
    /// What the user should do with the file.
    pub advice: &'static str,
}

/// First bytes of formats, each with its kind.
const FORMATS: [(&[u8], FileKind); 9] = [
    (
        b"version https://git-lfs.github.com/",
        FileKind {
            what: "is a Git LFS pointer, not the file itself",
            advice: "fetch the file with `git lfs pull`",
        },
    ),
    (&[0x1f, 0x8b], FileKind { what: "is gzip-compressed", advice: "decompress it with `gunzip`" }),
    (b"BZh", FileKind { what: "is bzip2-compressed", advice: "decompress it with `bunzip2`" }),
    (
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        FileKind { what: "is xz-compressed", advice: "decompress it with `unxz`" },
    ),
    (
        &[0x28, 0xb5, 0x2f, 0xfd],
        FileKind { what: "is zstd-compressed", advice: "decompress it with `unzstd`" },
    ),
    (
        &[0x04, 0x22, 0x4d, 0x18],
        FileKind { what: "is lz4-compressed", advice: "decompress it with `unlz4`" },
    ),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (
        &[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c],
        FileKind { what: "is a 7z archive", advice: "unpack it, and name the unpacked file" },
    ),
];

const ZIP: FileKind = FileKind {
    what: "is a ZIP archive",
    advice: "unpack it with `unzip`; files of a data set are then packed with `tar -cf`",
};

const EMPTY: FileKind = FileKind {
    what: "is empty (0 bytes)",
    advice: "its download or copy failed, so fetch it again",
};

const PAGE: FileKind = FileKind {
    what: "is an HTML or XML page",
    advice: "it is probably the error page of a download, so fetch the file again",
};

impl FileKind {
    /// Kind of the file that starts with `head`, its first [`HEAD_BYTES`] bytes or the whole of a
    /// shorter file. `None` if no known format starts like that.
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        if head.is_empty() {
            return Some(EMPTY);
        }
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        let is_page = |start: &[u8]| {
            text.get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start))
        };
        let pages: [&[u8]; 4] = [b"<!doctype", b"<html", b"<?xml", b"<error"];
        if pages.into_iter().any(is_page) {
            return Some(PAGE);
        }
        FORMATS.iter().find(|(start, _)| head.starts_with(start)).map(|(_, kind)| *kind)
    }
}

#[cfg(test)]
mod tests {
    use super::FileKind;

    #[test]
    fn files_are_recognised_by_their_first_bytes() {
        let what = |head: &[u8]| FileKind::of(head).map_or("", |kind| kind.what);
        for (head, expected) in [
            (&b""[..], "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
            (b"\xef\xbb\xbf\n <!DOCTYPE html>", "HTML"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "XML"),
            (b"<Error><Code>NoSuchKey</Code>", "XML"),
            // Headers as `printf x | gzip`, `bzip2`, `xz`, `zstd`, `lz4` and `zip` write them.
            (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\xfd7zXZ\x00\x00\x04", "xz"),
            (b"\x28\xb5\x2f\xfd\x04\x58\x09\x00", "zstd"),
            (b"\x04\x22\x4d\x18\x64\x40", "lz4"),
            (b"PK\x03\x04\x0a\x00", "ZIP"),
        ] {
            assert!(what(head).contains(expected), "{head:?}: {}", what(head));
        }
        for other in [&b"000.png\0\0\0"[..], b"{\"a\": 1}", b"<a sample>.png\0", b"\0\0\0\0"] {
            assert_eq!(FileKind::of(other), None, "{other:?}");
        }
    }
}
