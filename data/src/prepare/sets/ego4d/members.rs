//! Finds the members of one huge JSON object, without parsing their values.

use std::io::{self, BufRead, BufReader, Seek, SeekFrom};

use crate::storage::{Reader, StoredFile};

/// Largest value of a member that is read, in bytes. A narration has about 150 bytes, so a video
/// with a million of them can be read.
const LARGEST_VALUE: usize = 256 << 20;

/// Longest name of a member, in bytes.
const LONGEST_NAME: usize = 1 << 10;

/// Member of the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Offset of the quote before its name, in bytes.
    pub(super) start: u64,
    /// Number of objects in its value at the depth that is counted.
    pub(super) objects: usize,
}

/// Why the next member cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    Read(io::Error),
    /// What is wrong with the file, and where.
    Content(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Reads the members one after the other.
pub(super) struct Members<'a> {
    reader: BufReader<Reader<'a>>,
    position: u64,
    counted_depth: usize,
    /// What comes before the next member.
    before: Before,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The brace that opens the object.
    Brace,
    /// The first name, or the end of an empty object.
    First,
    /// A name.
    Name,
    /// A comma and a name, or the end of the object.
    Comma,
}

impl<'a> Members<'a> {
    /// Starts at the beginning of the file, or at the start of a member. Objects at depth
    /// `counted_depth` are counted; the members have depth 2.
    pub(super) fn at(file: &'a StoredFile, start: u64, counted_depth: usize) -> io::Result<Self> {
        let mut reader = file.reader();
        reader.seek(SeekFrom::Start(start))?;
        let before = if start == 0 { Before::Brace } else { Before::Name };
        let reader = BufReader::with_capacity(1 << 18, reader);
        Ok(Self { reader, position: start, counted_depth, before })
    }

    /// The next member, or `None` after the last. Its value is written into `value`, if given.
    pub(super) fn next_member(
        &mut self,
        value: Option<&mut Vec<u8>>,
    ) -> Result<Option<Member>, Fault> {
        if self.before == Before::Brace {
            self.expect(b'{', "the brace that opens an object")?;
            self.before = Before::First;
        }
        let next = self.skip_white()?;
        if next == Some(b'}') && self.before != Before::Name {
            self.take();
            return match self.skip_white()? {
                None => Ok(None),
                Some(_) => Err(self.wrong("the end of the file after the object")),
            };
        }
        if self.before == Before::Comma {
            self.expect(b',', "a comma or the end of the object")?;
            self.skip_white()?;
        }
        let start = self.position;
        let mut quoted = Vec::new();
        self.expect(b'"', "the name of a video")?;
        quoted.push(b'"');
        self.string(&mut |bytes| quoted.extend_from_slice(bytes), LONGEST_NAME)?;
        let name: String = serde_json::from_slice(&quoted)
            .map_err(|error| Fault::Content(format!("byte {start}: the name {error}")))?;
        self.expect(b':', "a colon")?;
        self.skip_white()?;
        let objects = self.value(&name, value)?;
        self.before = Before::Comma;
        Ok(Some(Member { name, start, objects }))
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    fn take(&mut self) {
        self.reader.consume(1);
        self.position += 1;
    }

    /// Skips white space, and returns the byte behind it.
    fn skip_white(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.take(),
                other => return Ok(other),
            }
        }
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<(), Fault> {
        if self.skip_white()? != Some(byte) {
            return Err(self.wrong(what));
        }
        self.take();
        Ok(())
    }

    fn wrong(&self, expected: &str) -> Fault {
        Fault::Content(format!(
            "byte {}: expected {expected}; the file must be one JSON object of videos, as Ego4D \
             publishes narration.json",
            self.position
        ))
    }

    /// Skips the rest of a string, with its last quote.
    fn string(&mut self, keep: &mut dyn FnMut(&[u8]), longest: usize) -> Result<(), Fault> {
        let (start, mut length, mut escaped) = (self.position, 0, false);
        loop {
            let buffered = self.reader.fill_buf()?;
            if buffered.is_empty() {
                return Err(Fault::Content(format!("it ends in the string at byte {start}")));
            }
            let end = buffered.iter().position(|&byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            let taken = end.map_or(buffered.len(), |at| at + 1);
            length += taken;
            if length > longest {
                return Err(Fault::Content(format!(
                    "the string at byte {start} has more than {longest} bytes"
                )));
            }
            keep(&buffered[..taken]);
            self.reader.consume(taken);
            self.position += u64::try_from(taken).unwrap_or(0);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// Skips a value, and counts the objects in it.
    fn value(&mut self, name: &str, keep: Option<&mut Vec<u8>>) -> Result<usize, Fault> {
        let mut scan = Scan::new(self.counted_depth);
        let mut kept = keep;
        if let Some(kept) = &mut kept {
            kept.clear();
        }
        loop {
            let buffered = self.reader.fill_buf()?;
            if buffered.is_empty() {
                return Err(Fault::Content(format!(
                    "it ends in the value of `{name}`; its download or copy was cut, so fetch it \
                     again"
                )));
            }
            let end = buffered.iter().position(|&byte| scan.ends_before(byte));
            let taken = end.unwrap_or(buffered.len());
            if let Some(kept) = &mut kept {
                if kept.len() + taken > LARGEST_VALUE {
                    return Err(Fault::Content(format!(
                        "the value of `{name}` has more than {LARGEST_VALUE} bytes"
                    )));
                }
                kept.extend_from_slice(&buffered[..taken]);
            }
            self.reader.consume(taken);
            self.position += u64::try_from(taken).unwrap_or(0);
            if end.is_some() {
                return Ok(scan.objects);
            }
        }
    }
}

/// State of the search for the end of a value.
struct Scan {
    /// Number of objects and lists around the current byte.
    depth: usize,
    objects: usize,
    counted_depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    fn new(counted_depth: usize) -> Self {
        Self { depth: 1, objects: 0, counted_depth, in_string: false, escaped: false }
    }

    /// Whether the value ends before this byte.
    fn ends_before(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth += 1;
                self.objects += usize::from(byte == b'{' && self.depth == self.counted_depth);
            }
            b'}' | b']' if self.depth == 1 => return true,
            b'}' | b']' => self.depth -= 1,
            b',' if self.depth == 1 => return true,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Member, Members};
    use crate::storage::StoredFile;

    fn members(text: &str, start: u64) -> Result<Vec<(Member, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::write(&path, text).unwrap();
        let file = StoredFile::open_local(&path).unwrap();
        let mut members = Members::at(&file, start, 3).unwrap();
        let (mut found, mut value) = (Vec::new(), Vec::new());
        loop {
            match members.next_member(Some(&mut value)) {
                Ok(None) => return Ok(found),
                Ok(Some(member)) => {
                    found.push((member, String::from_utf8(value.clone()).unwrap()));
                }
                Err(Fault::Content(reason)) => return Err(reason),
                Err(Fault::Read(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn members_have_their_names_values_and_places() {
        let text = "{ \"a\" : {\"x\": [{}, {\"y\": {}}], \"}\\\"\": {}} ,\n\"b\\\"\\u00e4\":[\"]\"],\"c\": 12 }\n";
        let found = members(text, 0).unwrap();
        let names: Vec<&str> = found.iter().map(|(member, _)| &*member.name).collect();
        assert_eq!(names, ["a", "b\"ä", "c"]);
        let values: Vec<&str> = found.iter().map(|(_, value)| value.trim()).collect();
        assert_eq!(values, ["{\"x\": [{}, {\"y\": {}}], \"}\\\"\": {}}", "[\"]\"]", "12"]);
        // The brace of the file has depth 1, that of `a` depth 2, and `"}\"": {}` depth 3.
        let objects: Vec<usize> = found.iter().map(|(member, _)| member.objects).collect();
        assert_eq!(objects, [1, 0, 0]);
        for (number, (member, _)) in found.iter().enumerate() {
            assert_eq!(members(text, member.start).unwrap(), found[number..], "{}", member.name);
        }
        assert_eq!(members(" {} ", 0), Ok(vec![]));
    }

    #[test]
    fn a_file_that_is_cut_or_not_one_object_says_where() {
        let whole = "{\"a\": {\"b\": [1, \"}\"]}, \"c\": {}}";
        assert_eq!(members(whole, 0).unwrap().len(), 2);
        for length in 0..whole.len() {
            let reason = members(&whole[..length], 0).unwrap_err();
            assert!(reason.contains("byte") || reason.contains("cut"), "{length}: {reason}");
        }
        for (text, said) in [
            ("[1]", "byte 0: expected the brace"),
            ("{\"a\": 1}}", "byte 8: expected the end of the file"),
            ("{\"a\": 1,}", "byte 8: expected the name"),
            ("{\"a\" 1}", "byte 5: expected a colon"),
            ("{a: 1}", "byte 1: expected the name"),
            ("{\"\\x\": 1}", "byte 1: the name"),
        ] {
            let reason = members(text, 0).unwrap_err();
            assert!(reason.contains(said), "{text}: {reason}");
        }
        // What is wrong inside a value is left to the parser of the value.
        assert_eq!(members("{\"a\": 1 \"b\": 2}", 0).unwrap()[0].1, "1 \"b\": 2");
        let long = format!("{{\"{}\": 1}}", "x".repeat(2000));
        assert!(members(&long, 0).unwrap_err().contains("more than 1024 bytes"));
    }
}
