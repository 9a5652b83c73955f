//! Reads a growing file of lines: each call returns only the lines that are new.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest number of bytes that one call reads, so that a caller can look at signals between two
/// calls.
const MAX_BYTES: usize = 8 << 20;
/// Longest line that is read, in bytes. A damaged file without line ends must not fill the memory.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Position in a file of lines. The file stays open, so that a file that replaces it has another
/// inode.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// Number of bytes read.
    offset: u64,
    /// Beginning of a line whose end was not yet written.
    rest: Vec<u8>,
    /// Whether `offset` is within a line that is too long and is dropped.
    drops: bool,
}

impl Tail {
    /// Begins at the start of a file, which need not exist yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, offset: 0, rest: Vec::new(), drops: false }
    }

    /// Whether the file was replaced, cut or deleted, so that its lines have to be read again.
    pub(crate) fn is_replaced(&self) -> bool {
        let Some(file) = &self.file else { return false };
        // A network file system forgets an open file that another machine has replaced.
        let Ok(opened) = file.metadata() else { return true };
        let identity = |data: &Metadata| (data.dev(), data.ino());
        match std::fs::metadata(&self.path) {
            Ok(now) => identity(&now) != identity(&opened) || now.len() < self.offset,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }

    /// Gives new lines to `take`, without their ends, but reads at most [`MAX_BYTES`]. Lines of
    /// more than about [`MAX_LINE_BYTES`] are left out. Returns whether there may be more.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
    pub(crate) fn read(&mut self, mut take: impl FnMut(&[u8])) -> std::io::Result<bool> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let known = self.rest.len();
        file.seek(SeekFrom::Start(self.offset))?;
        let count = file.take(MAX_BYTES as u64).read_to_end(&mut self.rest)?;
        self.offset += count as u64;
        // The bytes before `known` hold no end of a line.
        let last = self.rest[known..].iter().rposition(|byte| *byte == b'\n');
        if let Some(last) = last.map(|last| known + last) {
            let lines = self.rest[..last].split(|byte| *byte == b'\n');
            lines.skip(usize::from(self.drops)).for_each(&mut take);
            self.drops = false;
            self.rest.drain(..=last);
        }
        if self.drops || self.rest.len() > MAX_LINE_BYTES {
            self.drops = true;
            self.rest = Vec::new();
        }
        Ok(count == MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::Path;

    use super::{MAX_BYTES, MAX_LINE_BYTES, Tail};

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn lines(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        while tail.read(|line| lines.push(String::from_utf8(line.to_vec()).unwrap())).unwrap() {}
        lines
    }

    #[test]
    fn each_line_is_read_once_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut tail = Tail::new(&path);
        assert!(lines(&mut tail).is_empty() && !tail.is_replaced(), "the file is missing");
        append(&path, "one\ntwo\nthr");
        assert_eq!(lines(&mut tail), ["one", "two"]);
        append(&path, "ee");
        assert!(lines(&mut tail).is_empty());
        append(&path, "\n\nfour\n");
        assert_eq!(lines(&mut tail), ["three", "", "four"]);
        assert!(lines(&mut tail).is_empty() && !tail.is_replaced());
    }

    #[test]
    fn a_file_that_is_replaced_cut_or_deleted_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("lines"), folder.path().join("other"));
        append(&path, "one\ntwo\n");
        let tail = || {
            let mut tail = Tail::new(&path);
            assert_eq!(lines(&mut tail).len(), 2);
            assert!(!tail.is_replaced());
            tail
        };
        let (replaced, longer) = (tail(), "one\nTWO\nthree\n");
        append(&other, longer);
        std::fs::rename(&other, &path).unwrap();
        assert!(replaced.is_replaced(), "even by a longer file");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let cut = tail();
        std::fs::write(&path, "one\n").unwrap();
        assert!(cut.is_replaced());
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let deleted = tail();
        std::fs::remove_file(&path).unwrap();
        assert!(deleted.is_replaced());
    }

    #[test]
    fn lines_around_the_end_of_a_read_stay_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let line = "x".repeat(MAX_BYTES / 3 * 2);
        append(&path, &format!("{line}\n{line}\n{line}\n"));
        let mut tail = Tail::new(&path);
        assert!(tail.read(|_| {}).unwrap(), "there is more to read");
        let rest = lines(&mut tail);
        assert!(rest.len() == 2 && rest.iter().all(|read| *read == line));
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_does_not_fill_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        append(&path, "one\n");
        // Zeros that need no space on the disk.
        let hole = 4 + MAX_LINE_BYTES as u64 + 3 * MAX_BYTES as u64;
        OpenOptions::new().write(true).open(&path).unwrap().set_len(hole).unwrap();
        let (mut tail, mut found, mut kept) = (Tail::new(&path), 0, 0);
        while tail.read(|_| found += 1).unwrap() {
            kept = kept.max(tail.rest.len());
        }
        assert!(found == 1 && kept <= MAX_LINE_BYTES, "{found} lines, {kept} bytes");
        append(&path, "still the same line");
        assert!(lines(&mut tail).is_empty() && tail.rest.is_empty());
        append(&path, " and its end\ntwo\nthree\nfo");
        assert_eq!(lines(&mut tail), ["two", "three"]);
        append(&path, "ur\n");
        assert_eq!(lines(&mut tail), ["four"], "only one line was dropped");
        // A long line below the limit is read.
        let long = "x".repeat(2 * MAX_BYTES);
        append(&path, &format!("{long}\n"));
        assert_eq!(lines(&mut tail), [long]);
    }
}
