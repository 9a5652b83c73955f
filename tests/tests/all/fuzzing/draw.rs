//! Draws damaged inputs.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers at which readers of binary formats fail.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Words at which readers of texts fail.
const WORDS: [&str; 26] = [
    "null",
    "true",
    "-1",
    "1e999",
    "-0.0",
    "NaN",
    "Infinity",
    "18446744073709551616",
    "\"",
    "\\",
    "\\ud800",
    "\u{feff}",
    "\0",
    "[[[[[[[[",
    "{\"a\":",
    "}",
    "]",
    ",",
    ":",
    "\n",
    "\r\n",
    "../",
    "{0..9999999}",
    "&a [*a, *a]",
    "\u{202e}",
    "é",
];

/// Random numbers for one input.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number);
        Self(random)
    }

    /// A number below `end`, or 0 if `end` is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// One of `choices`.
    pub(super) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        choices.choose(&mut self.0).expect("there is a choice")
    }

    /// `bytes` with one or two damages of a binary file.
    pub(super) fn damaged(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(2) {
            self.damage(&mut bytes);
        }
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.0.random(),
            2 => {
                let (number, width) = (*self.pick(&NUMBERS), *self.pick(&[1, 2, 4, 8]));
                let big = number.to_be_bytes();
                let mut word = big[8 - width..].to_vec();
                if self.below(2) == 0 {
                    word.reverse();
                }
                self.overwrite(bytes, at, &word);
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(self.span(at, bytes.len()))),
            5 => {
                let copy = bytes[self.span(at, bytes.len())].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            6 => {
                let copy = bytes[self.span(at, bytes.len())].to_vec();
                let to = self.below(bytes.len());
                self.overwrite(bytes, to, &copy);
            }
            7 => {
                let mut noise = vec![0; self.below(64)];
                self.0.fill_bytes(&mut noise);
                bytes.splice(at..at, noise);
            }
            _ => {
                let span = self.span(at, bytes.len());
                bytes[span].fill(0);
            }
        }
    }

    /// Up to a thousand bytes from `at`.
    fn span(&mut self, at: usize, length: usize) -> std::ops::Range<usize> {
        let longest = *self.pick(&[4, 32, 1000]);
        at..(at + self.below(longest)).min(length)
    }

    fn overwrite(&self, bytes: &mut [u8], at: usize, with: &[u8]) {
        bytes[at..].iter_mut().zip(with).for_each(|(byte, new)| *byte = *new);
    }

    /// `text` with one or two damages of a text: of the bytes, or at a token.
    pub(super) fn damaged_text(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(2) {
            if self.below(3) == 0 {
                self.damage(&mut bytes);
                continue;
            }
            let word = self.pick(&WORDS).as_bytes();
            let token = token(&bytes, self.below(bytes.len()));
            let (start, end) = (token.start, token.end);
            bytes.splice(if self.below(2) == 0 { start..end } else { start..start }, word.to_vec());
        }
        bytes
    }
}

/// The run of letters and digits around position `at`, or the one byte there.
fn token(bytes: &[u8], at: usize) -> std::ops::Range<usize> {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let before = bytes[..at].iter().rev().take_while(|byte| is_letter(byte)).count();
    let after = bytes[at..].iter().take_while(|byte| is_letter(byte)).count();
    let end = at + after.max(usize::from(before == 0)).min(bytes.len() - at);
    at - before..end
}
