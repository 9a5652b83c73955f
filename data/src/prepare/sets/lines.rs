//! Files of one JSON record per line, read in stretches of lines and in bounded memory.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::read_error;
use super::left_out::Reason;
use crate::error::DataError;
use crate::json;
use crate::storage::{Reader, StoredFile};

/// Longest line that is read, in bytes. A video of Action100M has about 1 MB, a conversation of
/// PLM about 1 kB.
pub(super) const LONGEST_LINE: usize = 64 << 20;

/// Stretch of the lines of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LineRange {
    /// Offset of the first line in bytes.
    start: u64,
    /// Offset behind the last line in bytes.
    end: u64,
    /// Number of the first line, counted from 1.
    first_line: u64,
}

/// Splits a file into stretches that hold about `items` times the text `mark`. A line without it
/// counts as one.
pub(super) fn split(
    file: &StoredFile,
    mark: &str,
    items: usize,
) -> Result<Vec<LineRange>, DataError> {
    let finder = Finder::new(mark);
    let whole = LineRange { start: 0, end: file.length(), first_line: 1 };
    let mut lines = Lines::of(file, &whole)?;
    let (mut ranges, mut count) = (Vec::<LineRange>::new(), 0);
    while let Some(line) = lines.next_line()? {
        let (number, start) = (line.number, line.start);
        let marks = line.bytes.map_or(1, |bytes| finder.find_iter(bytes).count().max(1));
        let end = lines.position;
        match ranges.last_mut() {
            Some(last) if count < items.max(1) => last.end = end,
            _ => {
                ranges.push(LineRange { start, end, first_line: number });
                count = 0;
            }
        }
        count += marks;
    }
    Ok(ranges)
}

/// Line of a file.
pub(super) struct Line<'a> {
    /// Number of the line, counted from 1.
    pub(super) number: u64,
    start: u64,
    /// Bytes of the line with its end. `Err` if there are too many.
    bytes: Result<&'a [u8], Reason>,
}

impl Line<'_> {
    /// Parses the JSON object in the line.
    pub(super) fn record(self) -> Result<Map<String, Value>, Reason> {
        let broken = |error| Reason::broken(format!("the line cannot be parsed: {error}"));
        match json::parse(self.bytes?).map_err(broken)? {
            Value::Object(record) => Ok(record),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Err(Reason::broken("the line is not a JSON object")),
        }
    }
}

/// Reads the lines of a stretch that are not blank.
pub(super) struct Lines<'a> {
    file: &'a StoredFile,
    reader: BufReader<Reader<'a>>,
    position: u64,
    end: u64,
    next_number: u64,
    longest: usize,
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(file: &'a StoredFile, range: &LineRange) -> Result<Self, DataError> {
        let mut reader = file.reader();
        reader.seek(SeekFrom::Start(range.start)).map_err(read_error(file))?;
        Ok(Self {
            file,
            reader: BufReader::with_capacity(1 << 18, reader),
            position: range.start,
            end: range.end,
            next_number: range.first_line,
            longest: LONGEST_LINE,
            line: Vec::new(),
        })
    }

    /// The next line, or `None` at the end of the stretch.
    pub(super) fn next_line(&mut self) -> Result<Option<Line<'_>>, DataError> {
        while self.position < self.end {
            let (number, start) = (self.next_number, self.position);
            let length = self.fill().map_err(read_error(self.file))?;
            if length == 0 {
                return Ok(None);
            }
            self.position += length;
            self.next_number += 1;
            if length > u64::try_from(self.longest).unwrap_or(u64::MAX) {
                let text =
                    format!("the line has {length} bytes; at most {} are read", self.longest);
                return Ok(Some(Line { number, start, bytes: Err(Reason::broken(text)) }));
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(Line { number, start, bytes: Ok(&self.line) }));
            }
        }
        Ok(None)
    }

    /// Reads a line, of which at most `longest` bytes are kept, and returns its length.
    fn fill(&mut self) -> io::Result<u64> {
        self.line.clear();
        let longest = u64::try_from(self.longest).unwrap_or(u64::MAX);
        let limited = &mut self.reader.by_ref().take(longest);
        let mut length = u64::try_from(limited.read_until(b'\n', &mut self.line)?).unwrap_or(0);
        while length >= longest && self.line.last() != Some(&b'\n') {
            let buffered = self.reader.fill_buf()?;
            if buffered.is_empty() {
                break;
            }
            let newline = memchr::memchr(b'\n', buffered);
            let taken = newline.map_or(buffered.len(), |at| at + 1);
            self.reader.consume(taken);
            length += u64::try_from(taken).unwrap_or(0);
            if newline.is_some() {
                break;
            }
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
