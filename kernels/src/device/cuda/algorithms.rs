//! Choice of cuBLASLt's algorithm for each product shape. A choice is made once and kept in memory,
//! and in a file if one is set, so that a resumed run computes as before and times nothing again.
//!
//! A line of the file is `machine|shape|algorithm`: the GPU's name and cuBLASLt's version, the
//! numbers on which the choice depends (`alone` before them if no other shape shares it), and the
//! eight words of the algorithm. Lines for another
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

/// Mark of a line that holds the choice for one shape.
const ALONE: &str = "alone ";

/// The words of `cublasLtMatmulAlgo_t`.
pub(super) type Words = [u64; 8];

/// What a choice is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// A class, named by its largest sizes.
    Class(Shape),
    /// One shape, which the choice of its class does not fit.
    Alone(Shape),
}

/// The choices made or loaded so far.
#[derive(Debug)]
pub(super) struct Algorithms {
    /// The choice for each class of shapes, and for single shapes that need another one.
    known: HashMap<Key, Words>,
    /// Whether choices are timed. If not, the choice for a class is made for the sizes of the class
    /// and not for the first shape that was met, so that all ranks and all runs choose the same.
    timed: bool,
    /// File to which new choices are appended, and the machine they are for.
    file: Option<(PathBuf, String)>,
}

impl Algorithms {
    /// No choices yet, which are `timed` or cuBLASLt's own.
    pub(super) fn new(timed: bool) -> Self {
        Self { known: HashMap::new(), timed, file: None }
    }

    /// An algorithm for products of `shape`: the one known for this shape or its class if
    /// `supports` accepts it, otherwise the result of `choose` for some sizes, which is kept.
    pub(super) fn find(
        &mut self,
        shape: Shape,
        supports: impl Fn(&Words) -> bool,
        choose: impl Fn([usize; 3]) -> Result<Words>,
    ) -> Result<Words> {
        let class = shape.class();
        let known = [Key::Alone(shape), Key::Class(class)];
        let known = known.into_iter().filter_map(|key| self.known.get(&key).copied());
        if let Some(words) = known.into_iter().find(|words| supports(words)) {
            return Ok(words);
        }
        if !self.known.contains_key(&Key::Class(class))
            && let Ok(words) = choose(if self.timed { shape.sizes } else { class.sizes })
        {
            self.insert(Key::Class(class), words);
            if self.timed || supports(&words) {
                return Ok(words);
            }
        }
        // The other shapes of the class keep its choice.
        let words = choose(shape.sizes)?;
        self.insert(Key::Alone(shape), words);
        Ok(words)
    }

    /// Runs a product whose algorithm cuBLASLt refused to `run`, although it had accepted it: with
    /// the first of `candidates` that runs, which is kept for this shape. Returns whether one did.
    pub(super) fn replace(
        &mut self,
        shape: Shape,
        candidates: &[Words],
        run: impl Fn(&Words) -> Result<()>,
    ) -> bool {
        let words = candidates.iter().find(|words| run(words).is_ok());
        if let Some(words) = words {
            self.insert(Key::Alone(shape), *words);
        }
        words.is_some()
    }

    /// Keeps a choice. If the file cannot be written, the next process chooses again.
    fn insert(&mut self, key: Key, words: Words) {
        self.known.insert(key, words);
        if let Some((file, machine)) = &self.file {
            let line = format!("{machine}|{}|{}\n", key.text(), text(&words));
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

impl Key {
    fn text(&self) -> String {
        match self {
            Self::Class(shape) => shape.text(),
            Self::Alone(shape) => format!("{ALONE}{}", shape.text()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(ALONE) {
            Some(shape) => Shape::parse(shape).map(Self::Alone),
            None => Shape::parse(text).map(Self::Class),
        }
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
    /// sizes count as one if they lie in the same eighth of a power of two. A size that is the
    /// length of an operand's rows in memory and no multiple of 8 is a class of its own: vector
    /// loads and TMA need rows of 16 bytes.
    fn class(&self) -> Self {
        let [left, right] = self.transposed;
        let in_rows = [left, true, !left || right];
        let class = |(size, in_rows): (usize, bool)| {
            if in_rows && !size.is_multiple_of(8) {
                return size;
            }
            size.next_multiple_of((size.next_power_of_two() / 16).max(64))
        };
        let [rows, columns, inner] = self.sizes;
        let sizes = [(rows, in_rows[0]), (columns, in_rows[1]), (inner, in_rows[2])].map(class);
        Self { sizes, ..*self }
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

fn parse(line: &str, machine: &str) -> Option<(Key, Words)> {
    let parts: Vec<&str> = line.split('|').collect();
    let [of, shape, hex] = parts[..] else { return None };
    if of != machine || hex.len() != 128 {
        return None;
    }
    let mut words = [0; 8];
    for (i, word) in words.iter_mut().enumerate() {
        *word = u64::from_str_radix(hex.get(i * 16..i * 16 + 16)?, 16).ok()?;
    }
    Some((Key::parse(shape)?, words))
}

/// The candidate that takes the least `time`; the first one if none can be timed. There is at least
/// one. A single candidate is not timed.
pub(super) fn fastest(
    candidates: Vec<Words>,
    time: impl Fn(&Words) -> Result<f64>,
) -> Result<Words> {
    if let [only] = candidates[..] {
        return Ok(only);
    }
    let times = candidates.iter().map(|words| time(words).unwrap_or(f64::INFINITY));
    let least = times.enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b));
    let found = least.and_then(|(at, _)| candidates.get(at).copied());
    found.ok_or_else(|| failed("choosing an algorithm", "cuBLASLt returned none".to_owned(), ""))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{Algorithms, Shape, Words, fastest};
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
        assert_eq!(algorithms.find(shape, |_| false, |_| Ok(words)).unwrap(), words);
    }

    /// The algorithm that is known for `shape`, if any.
    fn known(algorithms: &mut Algorithms, shape: Shape) -> Option<Words> {
        let chosen = Cell::new(false);
        let choose = |_| {
            chosen.set(true);
            Err(crate::device::cuda::failed("choosing", String::new(), ""))
        };
        let words = algorithms.find(shape, |_| true, choose);
        assert_eq!(words.is_err(), chosen.get());
        words.ok()
    }

    #[test]
    fn sizes_share_a_choice_within_an_eighth_unless_they_are_odd_lengths_of_rows_in_memory() {
        let mut algorithms = Algorithms::new(true);
        let of = |sizes| Shape { sizes, ..shape(0, false) };
        // The left operand is transposed, so its rows in memory have as many elements as it has
        // rows.
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
    fn the_products_of_a_layer_meet_few_classes_however_many_tokens_a_batch_has() {
        // x·Wᵀ, d_out·W and d_outᵀ·x of a layer that maps 2,048 values to 8,192, over n tokens
        let forms = |n: usize| {
            [
                ([n, 8192, 2048], [false, true]),
                ([n, 2048, 8192], [false, false]),
                ([8192, 2048, n], [true, false]),
            ]
        };
        for form in 0..3 {
            let classes: std::collections::HashSet<Shape> = (1..5000)
                .map(|n| {
                    let (sizes, transposed) = forms(n)[form];
                    Shape { sizes, transposed, ..shape(0, false) }.class()
                })
                .collect();
            assert!(classes.len() <= 40, "form {form}: {} classes", classes.len());
        }
        // The logits of an odd vocabulary stay apart: their rows in memory are odd.
        let odd = Shape { sizes: [64, 2047, 64], ..shape(0, false) };
        assert_eq!(odd.class().sizes[1], 2047);
    }

    #[test]
    fn untimed_choices_do_not_depend_on_the_shape_that_was_met_first() {
        let sizes = |rows| Shape { sizes: [rows, 8, 4], ..shape(0, false) };
        // cuBLASLt's answer depends on the sizes that it is asked for.
        let choose = |[rows, _, _]: [usize; 3]| Ok([rows as u64; 8]);
        let meet = |timed, order: [usize; 2]| {
            let mut algorithms = Algorithms::new(timed);
            for rows in order {
                algorithms.find(sizes(rows), |_| true, choose).unwrap();
            }
            algorithms.find(sizes(72), |_| true, choose).unwrap()
        };
        assert_eq!(meet(false, [72, 80]), meet(false, [80, 72]));
        assert_ne!(meet(true, [72, 80]), meet(true, [80, 72]), "the first one is timed");
        // A class without an algorithm, and a shape that the choice of its class does not support,
        // are no errors.
        let mut algorithms = Algorithms::new(false);
        let of_shape = |sizes: [usize; 3]| match sizes[0] {
            128 => Err(crate::device::cuda::failed("choosing", String::new(), "")),
            rows => Ok([rows as u64; 8]),
        };
        assert_eq!(algorithms.find(sizes(72), |_| true, of_shape).unwrap(), [72; 8]);
        assert_eq!(algorithms.find(sizes(80), |_| true, of_shape).unwrap(), [80; 8]);
        let mut algorithms = Algorithms::new(false);
        let supports = |words: &Words| words[0] == 72;
        assert_eq!(algorithms.find(sizes(72), supports, choose).unwrap(), [72; 8]);
        assert_eq!(known(&mut algorithms, sizes(80)), Some([128; 8]));
    }

    #[test]
    fn a_candidate_that_cannot_be_timed_never_ends_the_run() {
        let refuse = || crate::device::cuda::failed("timing", String::new(), "");
        let candidates = || vec![[1; 8], [2; 8], [3; 8]];
        let time = |words: &Words| match words[0] {
            1 => Err(refuse()),
            2 => Ok(5.0),
            _ => Ok(4.0),
        };
        assert_eq!(fastest(candidates(), time).unwrap(), [3; 8]);
        assert_eq!(fastest(candidates(), |_| Err(refuse())).unwrap(), [1; 8]);
        assert_eq!(fastest(vec![[9; 8]], |_| unreachable!("it is the only one")).unwrap(), [9; 8]);
        assert!(fastest(Vec::new(), time).is_err());
    }

    #[test]
    fn an_algorithm_that_is_refused_when_it_runs_is_replaced_for_this_shape() {
        let refuse = || crate::device::cuda::failed("cublasLtMatmul", String::new(), "");
        let mut algorithms = Algorithms::new(true);
        keep(&mut algorithms, shape(72, false), [1; 8]);
        let run = |words: &Words| if words[0] == 3 { Ok(()) } else { Err(refuse()) };
        let candidates = [[1; 8], [2; 8], [3; 8]];
        // 128 rows are also the largest of their class.
        for rows in [80, 128] {
            assert!(algorithms.replace(shape(rows, false), &candidates, run));
            assert_eq!(known(&mut algorithms, shape(rows, false)), Some([3; 8]));
            assert_eq!(known(&mut algorithms, shape(72, false)), Some([1; 8]));
        }
        assert!(!algorithms.replace(shape(80, false), &candidates[..2], run));
    }

    #[test]
    fn a_choice_is_never_reused_for_a_lower_alignment() {
        let mut algorithms = Algorithms::new(true);
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
        let mut algorithms = Algorithms::new(true);
        let (first, second) = (shape(72, false), shape(80, false));
        keep(&mut algorithms, first, [1; 8]);
        let supports = |words: &Words| *words != [1; 8];
        let chosen = algorithms.find(second, supports, |_| Ok([2; 8])).unwrap();
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
        let mut first = Algorithms::new(true);
        first.keep(&file, MACHINE, true).unwrap();
        for (rows, word) in [(2, 7), (3, u64::MAX)] {
            keep(&mut first, shape(rows, rows == 3), [word; 8]);
        }
        let mut again = Algorithms::new(true);
        again.keep(&file, MACHINE, false).unwrap();
        assert_eq!(known(&mut again, shape(2, false)), Some([7; 8]));
        assert_eq!(known(&mut again, shape(3, true)), Some([u64::MAX; 8]));
        assert_eq!(known(&mut again, shape(3, false)), None, "another shape");
        // Choices of a reader are not written to the file.
        keep(&mut again, shape(9, false), [1; 8]);
        let mut other = Algorithms::new(true);
        other.keep(&file, "NVIDIA H200, cuBLASLt 130000", false).unwrap();
        assert_eq!(known(&mut other, shape(2, false)), None);
        other.keep(&file, MACHINE, false).unwrap();
        assert_eq!(known(&mut other, shape(9, false)), None);
    }

    #[test]
    fn the_last_choice_of_a_shape_counts_and_damaged_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("algorithms");
        let mut writer = Algorithms::new(true);
        writer.keep(&file, MACHINE, true).unwrap();
        keep(&mut writer, shape(2, false), [1; 8]);
        keep(&mut writer, shape(2, false), [2; 8]);
        let whole = std::fs::read_to_string(&file).unwrap();
        let of_another_version = whole.replace(" 128 16 4 4 128", "").replace("|2 8", "|7 8");
        let cut = format!("{whole}{of_another_version}{MACHINE}|5 8 4 10001 128 16 4 4 128|0000");
        std::fs::write(&file, format!("not a line\n{cut}")).unwrap();
        let mut reader = Algorithms::new(true);
        reader.keep(&file, MACHINE, false).unwrap();
        assert_eq!(known(&mut reader, shape(2, false)), Some([2; 8]));
        assert_eq!(known(&mut reader, shape(5, false)), None);
        assert_eq!(known(&mut reader, shape(7, false)), None);
        let error = reader.keep(folder.path(), MACHINE, false).unwrap_err().to_string();
        assert!(error.contains("delete the file"), "{error}");
    }
}
