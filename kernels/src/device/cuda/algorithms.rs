//! Which algorithm cuBLASLt takes for a product of a shape: chosen once, kept in memory, and in a file where there is one, so that a run
//! that goes on computes as it began and times nothing again.
//!
//! A line of the file is `machine|shape|algorithm`: the GPU's name and cuBLASLt's version, the numbers the choice depends on, and the
//! library's own eight words. Lines of another machine or version, and lines that a kill has cut short, count for nothing.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::failed;
use crate::Result;

/// What a choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) sizes: [usize; 3],
    pub(super) transposed: [bool; 2],
    pub(super) bias: bool,
    pub(super) add: bool,
    pub(super) f32_out: bool,
}

/// The words of `cublasLtMatmulAlgo_t`.
pub(super) type Words = [u64; 8];

/// Choices so far.
#[derive(Debug, Default)]
pub(super) struct Algorithms {
    known: HashMap<Shape, Words>,
    /// Where further choices are written, and for which machine.
    file: Option<(PathBuf, String)>,
}

impl Algorithms {
    pub(super) fn get(&self, shape: &Shape) -> Option<Words> {
        self.known.get(shape).copied()
    }

    /// Keeps a choice. One that cannot be written is made again by the next process.
    pub(super) fn insert(&mut self, shape: Shape, words: Words) {
        self.known.insert(shape, words);
        if let Some((file, machine)) = &self.file {
            let line = format!("{machine}|{}|{}\n", shape.text(), text(&words));
            let opened = OpenOptions::new().create(true).append(true).open(file);
            opened.and_then(|mut file| file.write_all(line.as_bytes())).ok();
        }
    }

    /// Takes up the choices that `file` holds for `machine`; the first of a shape counts. With `write`, later ones are added to it.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(super) fn keep(&mut self, file: &Path, machine: &str, write: bool) -> Result<()> {
        let held = match fs::read(file) {
            Ok(held) => String::from_utf8_lossy(&held).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let message = format!("{}: {error}", file.display());
                let hint = "delete the file: products are then timed again";
                return Err(failed("reading stored algorithms", message, hint));
            }
        };
        // What is read first stands in the map last.
        for (shape, words) in held.lines().rev().filter_map(|line| parse(line, machine)) {
            self.known.insert(shape, words);
        }
        self.file = write.then(|| (file.to_owned(), machine.to_owned()));
        Ok(())
    }
}

impl Shape {
    fn text(&self) -> String {
        let [rows, columns, inner] = self.sizes;
        let flags = [self.transposed[0], self.transposed[1], self.bias, self.add, self.f32_out];
        let flags: String = flags.map(|flag| if flag { '1' } else { '0' }).iter().collect();
        format!("{rows} {columns} {inner} {flags}")
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [rows, columns, inner, flags] = words[..] else { return None };
        let flags: Vec<bool> = flags.chars().map(|flag| flag == '1').collect();
        let [left, right, bias, add, f32_out] = flags[..] else { return None };
        let sizes = [rows.parse().ok()?, columns.parse().ok()?, inner.parse().ok()?];
        Some(Self { sizes, transposed: [left, right], bias, add, f32_out })
    }
}

fn text(words: &Words) -> String {
    words.map(|word| format!("{word:016x}")).join("")
}

fn parse(line: &str, machine: &str) -> Option<(Shape, Words)> {
    let parts: Vec<&str> = line.split('|').collect();
    let [of, shape, hex] = parts[..] else { return None };
    if of != machine || hex.len() != 128 {
        return None;
    }
    let mut words = [0; 8];
    for (i, word) in words.iter_mut().enumerate() {
        *word = u64::from_str_radix(hex.get(i * 16..i * 16 + 16)?, 16).ok()?;
    }
    Some((Shape::parse(shape)?, words))
}

#[cfg(test)]
mod tests {
    use super::{Algorithms, Shape};

    const MACHINE: &str = "NVIDIA H200, cuBLASLt 120903";

    fn shape(rows: usize, bias: bool) -> Shape {
        Shape { sizes: [rows, 8, 4], transposed: [true, false], bias, add: false, f32_out: true }
    }

    #[test]
    fn choices_are_there_again_for_the_same_machine_and_version_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("algorithms");
        let mut first = Algorithms::default();
        first.keep(&file, MACHINE, true).unwrap();
        for (rows, word) in [(2, 7), (3, u64::MAX)] {
            first.insert(shape(rows, rows == 3), [word; 8]);
        }
        let mut again = Algorithms::default();
        again.keep(&file, MACHINE, false).unwrap();
        assert_eq!(again.get(&shape(2, false)), Some([7; 8]));
        assert_eq!(again.get(&shape(3, true)), Some([u64::MAX; 8]));
        assert_eq!(again.get(&shape(3, false)), None, "another shape");
        // A reader's own choices stay its own.
        again.insert(shape(9, false), [1; 8]);
        let mut other = Algorithms::default();
        other.keep(&file, "NVIDIA H200, cuBLASLt 130000", false).unwrap();
        assert_eq!(other.get(&shape(2, false)), None);
        other.keep(&file, MACHINE, false).unwrap();
        assert_eq!(other.get(&shape(9, false)), None);
    }

    #[test]
    fn the_first_choice_of_a_shape_counts_and_damaged_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("algorithms");
        let mut writer = Algorithms::default();
        writer.keep(&file, MACHINE, true).unwrap();
        writer.insert(shape(2, false), [1; 8]);
        writer.insert(shape(2, false), [2; 8]);
        let whole = std::fs::read_to_string(&file).unwrap();
        let cut = format!("{whole}{MACHINE}|5 8 4 10001|0000");
        std::fs::write(&file, format!("not a line\n{cut}")).unwrap();
        let mut reader = Algorithms::default();
        reader.keep(&file, MACHINE, false).unwrap();
        assert_eq!(reader.get(&shape(2, false)), Some([1; 8]));
        assert_eq!(reader.get(&shape(5, false)), None);
        let error = reader.keep(folder.path(), MACHINE, false).unwrap_err().to_string();
        assert!(error.contains("delete the file"), "{error}");
    }
}
