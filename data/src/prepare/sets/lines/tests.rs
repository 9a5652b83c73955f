//! Tests of stretches of lines.

use super::{LineRange, Lines, split};
use crate::storage::StoredFile;

fn file(text: &[u8]) -> (tempfile::TempDir, StoredFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, text).unwrap();
    let file = StoredFile::open_local(&path).unwrap();
    (folder, file)
}

/// Numbers and texts of the lines of a stretch. A line that is too long has no text.
fn read(file: &StoredFile, range: &LineRange, longest: usize) -> Vec<(u64, Option<String>)> {
    let mut lines = Lines { longest, ..Lines::of(file, range).unwrap() };
    let mut found = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        let text = line.bytes.map(|bytes| String::from_utf8(bytes.trim_ascii().to_vec()).unwrap());
        found.push((line.number, text.ok()));
    }
    found
}

#[test]
fn stretches_hold_each_line_once_with_its_number() {
    let (_folder, lines) = file(b"a x\n\n  \r\nb xx\r\nc\nd xxx\ne");
    let whole = [(1, "a x"), (4, "b xx"), (5, "c"), (6, "d xxx"), (7, "e")];
    let whole = whole.map(|(number, text)| (number, Some(text.to_owned())));
    // Counts of `x`, at least one: 1, 2, 1, 3, 1.
    for (items, first_lines) in
        [(0, &[1, 4, 5, 6, 7][..]), (1, &[1, 4, 5, 6, 7]), (2, &[1, 5, 7]), (4, &[1, 6]), (9, &[1])]
    {
        let ranges = split(&lines, "x", items).unwrap();
        let firsts: Vec<u64> = ranges.iter().map(|range| range.first_line).collect();
        assert_eq!(firsts, first_lines, "{items}");
        let read: Vec<_> = ranges.iter().flat_map(|range| read(&lines, range, 100)).collect();
        assert_eq!(read, whole, "{items}");
    }
    assert_eq!(split(&file(b"\n \n").1, "x", 3).unwrap(), []);
}

#[test]
fn a_line_that_is_too_long_is_named_and_the_next_one_is_read() {
    let some = |text: &str| Some(text.to_owned());
    for end in ["\n", ""] {
        let text = format!("short\n{}\nmiddle\nzzzzzzzzz{end}", "y".repeat(700_000));
        let (_folder, file) = file(text.as_bytes());
        let whole = LineRange { start: 0, end: file.length(), first_line: 1 };
        let expected = |last| vec![(1, some("short")), (2, None), (3, some("middle")), (4, last)];
        // The line break counts.
        assert_eq!(read(&file, &whole, 10), expected(some("zzzzzzzzz")));
        assert_eq!(read(&file, &whole, 8), expected(None));
    }
    let (_folder, long) = file(&[b'y'; 50_000]);
    let whole = LineRange { start: 0, end: 50_000, first_line: 7 };
    let mut lines = Lines { longest: 10, ..Lines::of(&long, &whole).unwrap() };
    let left_out = lines.next_line().unwrap().unwrap().record().unwrap_err().of("x");
    assert_eq!(left_out.reason, "the line has 50000 bytes; at most 10 are read");
    assert!(lines.line.capacity() < 1000, "{}", lines.line.capacity());
}

#[test]
fn a_record_is_one_json_object() {
    for (line, said) in [
        ("{\"a\": 1", "cannot be parsed"),
        ("[1]", "not a JSON object"),
        ("{} {}", "cannot be parsed"),
        ("\u{feff}{}", ""),
        ("{\"a\": NaN}", ""),
    ] {
        let (_folder, file) = file(line.as_bytes());
        let range = LineRange { start: 0, end: file.length(), first_line: 1 };
        let record = Lines::of(&file, &range).unwrap().next_line().unwrap().unwrap().record();
        match record {
            Ok(_) => assert_eq!(said, "", "{line}"),
            Err(reason) => {
                let left_out = reason.of(line);
                assert_eq!(left_out.class, "broken record");
                assert!(!said.is_empty() && left_out.reason.contains(said), "{left_out:?}");
            }
        }
    }
}
