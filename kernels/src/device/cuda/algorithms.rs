//! Choice of cuBLASLt's algorithm for each product shape. A choice is made once and kept in memory,
//! and in a file if one is set, so that a resumed run computes as before and times nothing again.
//!
//! A line of the file is `machine|shape|algorithm`: the GPU's name and cuBLASLt's version, the
//! numbers on which the choice depends, and the eight words of the algorithm. Lines for another
//! machine or version are ignored, and so are lines that were cut short when a process was killed.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Product, failed};
use crate::Result;
use crate::compile::Element;

/// Properties of a product that decide which algorithm can compute it, and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows, columns and inner size.
    pub(super) sizes: [usize; 3],
    pub(super) transposed: [bool; 2],
    pub(super) bias: bool,
    pub(super) add: bool,
    pub(super) f32_out: bool,
    /// Alignments in bytes of the left operand, the right operand, the addend (the output if there
    /// is none), the output and the bias: powers of two up to [`LARGEST_ALIGNMENT`].
    pub(super) alignments: [u32; 5],
}

/// Alignment of weights in bytes. Parameters start at multiples of 64 elements, which are bf16 on a
/// GPU. Separate tensors have at least 256 bytes; the alignment of a part of a tensor depends on
/// its rows. No algorithm of cuBLASLt is known to need more than 16.
const LARGEST_ALIGNMENT: u32 = 128;

/// The words of `cublasLtMatmulAlgo_t`.
pub(super) type Words = [u64; 8];

/// The choices made or loaded so far.
#[derive(Debug, Default)]
pub(super) struct Algorithms {
    known: HashMap<Shape, Words>,
    /// File to which new choices are appended, and the machine they are for.
    file: Option<(PathBuf, String)>,
}

impl Algorithms {
    /// An algorithm for products of `shape`: the one known for this shape or its class if
    /// `supports` accepts it, otherwise the result of `choose`, which is kept.
    pub(super) fn find(
        &mut self,
        shape: Shape,
        supports: impl Fn(&Words) -> bool,
        choose: impl FnOnce() -> Result<Words>,
    ) -> Result<Words> {
        let class = shape.class();
        let known = [shape, class].into_iter().filter_map(|shape| self.get(&shape));
        if let Some(words) = known.into_iter().find(|words| supports(words)) {
            return Ok(words);
        }
        let words = choose()?;
        // If the class has an algorithm that does not support this shape, the other shapes of the
        // class keep it.
        let key = if self.known.contains_key(&class) { shape } else { class };
        self.insert(key, words);
        Ok(words)
    }

    fn get(&self, shape: &Shape) -> Option<Words> {
        self.known.get(shape).copied()
    }

    /// Keeps a choice. If the file cannot be written, the next process chooses again.
    fn insert(&mut self, shape: Shape, words: Words) {
        self.known.insert(shape, words);
        if let Some((file, machine)) = &self.file {
            let line = format!("{machine}|{}|{}\n", shape.text(), text(&words));
            let opened = OpenOptions::new().create(true).append(true).open(file);
            opened.and_then(|mut file| file.write_all(line.as_bytes())).ok();
        }
    }

    /// Loads the choices that `file` holds for `machine`; the last line of a shape wins. If `write`
    /// is true, later choices are appended to the file.
    ///
    /// # Errors
    /// If the file exists but cannot be read.
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
        self.known.extend(held.lines().filter_map(|line| parse(line, machine)));
        self.file = write.then(|| (file.to_owned(), machine.to_owned()));
        Ok(())
    }
}

impl Shape {
    pub(super) fn of(product: &Product) -> Self {
        let Product { left, right, addend, out, bias, .. } = *product;
        let alignment = |address: u64| 1 << address.trailing_zeros().min(LARGEST_ALIGNMENT.ilog2());
        let bias = bias.map_or(0, |bias| bias.address);
        let added = addend.unwrap_or(out).address;
        Self {
            sizes: [product.rows, product.columns, product.inner],
            transposed: [product.left_transposed, product.right_transposed],
            bias: product.bias.is_some(),
            add: addend.is_some(),
            f32_out: product.out_element == Element::F32,
            alignments: [left.address, right.address, added, out.address, bias].map(alignment),
        }
    }

    /// The class of shapes that share an algorithm. Token counts differ from batch to batch, so
    /// sizes that are multiples of 8 (rows of 16 bytes, which vector loads and TMA need) count as
    /// one size if they lie in the same eighth of a power of two. Any other size is a class of its
    /// own.
    fn class(&self) -> Self {
        let class = |size: usize| {
            if !size.is_multiple_of(8) {
                return size;
            }
            size.next_multiple_of((size.next_power_of_two() / 16).max(64))
        };
        Self { sizes: self.sizes.map(class), ..*self }
    }

    fn text(&self) -> String {
        let [rows, columns, inner] = self.sizes;
        let flags = [self.transposed[0], self.transposed[1], self.bias, self.add, self.f32_out];
        let flags: String = flags.map(|flag| if flag { '1' } else { '0' }).iter().collect();
        let alignments = self.alignments.map(|bytes| bytes.to_string()).join(" ");
        format!("{rows} {columns} {inner} {flags} {alignments}")
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [rows, columns, inner, flags, ref alignments @ ..] = words[..] else { return None };
        let flags: Vec<bool> = flags.chars().map(|flag| flag == '1').collect();
        let [left, right, bias, add, f32_out] = flags[..] else { return None };
        let sizes = [rows.parse().ok()?, columns.parse().ok()?, inner.parse().ok()?];
        let alignments: Option<Vec<u32>> = alignments.iter().map(|a| a.parse().ok()).collect();
        let alignments = alignments?.try_into().ok()?;
        Some(Self { sizes, transposed: [left, right], bias, add, f32_out, alignments })
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
    use std::cell::Cell;

    use super::{Algorithms, Shape, Words};
    use crate::compile::Element;
    use crate::device::cuda::{Product, Region};

    const MACHINE: &str = "NVIDIA H200, cuBLASLt 120903";

    fn shape(rows: usize, bias: bool) -> Shape {
        Shape {
            sizes: [rows, 8, 4],
            transposed: [true, false],
            bias,
            add: false,
            f32_out: true,
            alignments: [128, 16, 4, 4, 128],
        }
    }

    /// Keeps `words` as the choice for `shape`.
    fn keep(algorithms: &mut Algorithms, shape: Shape, words: Words) {
        assert_eq!(algorithms.find(shape, |_| false, || Ok(words)).unwrap(), words);
    }

    /// The algorithm that is known for `shape`, if any.
    fn known(algorithms: &mut Algorithms, shape: Shape) -> Option<Words> {
        let chosen = Cell::new(false);
        let choose = || {
            chosen.set(true);
            Err(crate::device::cuda::failed("choosing", String::new(), ""))
        };
        let words = algorithms.find(shape, |_| true, choose);
        assert_eq!(words.is_err(), chosen.get());
        words.ok()
    }

    #[test]
    fn multiples_of_eight_share_a_choice_within_an_eighth_and_other_sizes_do_not() {
        let mut algorithms = Algorithms::default();
        let of = |sizes| Shape { sizes, ..shape(0, false) };
        keep(&mut algorithms, of([4104, 2048, 1024]), [7; 8]);
        for rows in [4104, 4112, 4600, 4608] {
            assert_eq!(known(&mut algorithms, of([rows, 2048, 1024])), Some([7; 8]), "{rows}");
        }
        for sizes in
            [[4096, 2048, 1024], [4616, 2048, 1024], [4105, 2048, 1024], [4104, 2047, 1024]]
        {
            assert_eq!(known(&mut algorithms, of(sizes)), None, "{sizes:?}");
        }
        keep(&mut algorithms, of([4105, 2048, 1024]), [8; 8]);
        assert_eq!(known(&mut algorithms, of([4105, 2048, 1024])), Some([8; 8]));
        assert_eq!(known(&mut algorithms, of([4106, 2048, 1024])), None);
        assert_eq!(known(&mut algorithms, of([4104, 2048, 1024])), Some([7; 8]));
    }

    #[test]
    fn a_choice_is_never_reused_for_a_lower_alignment() {
        let mut algorithms = Algorithms::default();
        let at = |address| Product {
            rows: 64,
            columns: 64,
            inner: 64,
            left: Region { address, bytes: 8192 },
            left_transposed: false,
            right: Region { address: 0x1_0000, bytes: 8192 },
            right_transposed: false,
            bias: None,
            out: Region { address: 0x2_0000, bytes: 8192 },
            out_element: Element::Bf16,
            addend: None,
        };
        let alignment = |address| Shape::of(&at(address)).alignments[0];
        assert_eq!([0x80, 0x90, 0x102, 0x4_0000].map(alignment), [128, 16, 2, 128]);
        keep(&mut algorithms, Shape::of(&at(0x4_0000)), [7; 8]);
        assert_eq!(known(&mut algorithms, Shape::of(&at(0x4_0080))), Some([7; 8]));
        assert_eq!(known(&mut algorithms, Shape::of(&at(0x4_0010))), None);
        let bias = |address| {
            Shape::of(&Product { bias: Some(Region { address, bytes: 128 }), ..at(0x80) })
        };
        assert_ne!(bias(0x82), bias(0x80));
    }

    #[test]
    fn an_algorithm_that_does_not_support_a_shape_is_replaced_for_that_shape_alone() {
        let mut algorithms = Algorithms::default();
        let (first, second) = (shape(72, false), shape(80, false));
        keep(&mut algorithms, first, [1; 8]);
        let supports = |words: &Words| *words != [1; 8];
        let chosen = algorithms.find(second, supports, || Ok([2; 8])).unwrap();
        assert_eq!(chosen, [2; 8]);
        // The class keeps its choice, and the second shape its own.
        assert_eq!(known(&mut algorithms, first), Some([1; 8]));
        assert_eq!(known(&mut algorithms, second), Some([2; 8]));
        assert_eq!(known(&mut algorithms, shape(88, false)), Some([1; 8]));
    }

    #[test]
    fn choices_are_there_again_for_the_same_machine_and_version_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("algorithms");
        let mut first = Algorithms::default();
        first.keep(&file, MACHINE, true).unwrap();
        for (rows, word) in [(2, 7), (3, u64::MAX)] {
            keep(&mut first, shape(rows, rows == 3), [word; 8]);
        }
        let mut again = Algorithms::default();
        again.keep(&file, MACHINE, false).unwrap();
        assert_eq!(known(&mut again, shape(2, false)), Some([7; 8]));
        assert_eq!(known(&mut again, shape(3, true)), Some([u64::MAX; 8]));
        assert_eq!(known(&mut again, shape(3, false)), None, "another shape");
        // Choices of a reader are not written to the file.
        keep(&mut again, shape(9, false), [1; 8]);
        let mut other = Algorithms::default();
        other.keep(&file, "NVIDIA H200, cuBLASLt 130000", false).unwrap();
        assert_eq!(known(&mut other, shape(2, false)), None);
        other.keep(&file, MACHINE, false).unwrap();
        assert_eq!(known(&mut other, shape(9, false)), None);
    }

    #[test]
    fn the_last_choice_of_a_shape_counts_and_damaged_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("algorithms");
        let mut writer = Algorithms::default();
        writer.keep(&file, MACHINE, true).unwrap();
        keep(&mut writer, shape(2, false), [1; 8]);
        keep(&mut writer, shape(2, false), [2; 8]);
        let whole = std::fs::read_to_string(&file).unwrap();
        let of_another_version = whole.replace(" 128 16 4 4 128", "").replace("|2 8", "|7 8");
        let cut = format!("{whole}{of_another_version}{MACHINE}|5 8 4 10001 128 16 4 4 128|0000");
        std::fs::write(&file, format!("not a line\n{cut}")).unwrap();
        let mut reader = Algorithms::default();
        reader.keep(&file, MACHINE, false).unwrap();
        assert_eq!(known(&mut reader, shape(2, false)), Some([2; 8]));
        assert_eq!(known(&mut reader, shape(5, false)), None);
        assert_eq!(known(&mut reader, shape(7, false)), None);
        let error = reader.keep(folder.path(), MACHINE, false).unwrap_err().to_string();
        assert!(error.contains("delete the file"), "{error}");
    }
}
