//! BLEU (Papineni et al., ACL 2002) over a whole set.

use super::{Captioned, grams, to_f64, words};

/// Number of words of the longest n-gram.
const N: usize = 4;
/// Numbers that coco-caption adds to numerators and denominators, so that no quotient is 0 / 0.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// Numbers of n-grams and words of some captions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// n-grams that a reference has too.
    right: [f64; N],
    /// All n-grams.
    guessed: [f64; N],
    words: f64,
    reference_words: f64,
}

impl Counts {
    /// Counts of a caption that has been tokenized. An n-gram counts at most as often as in the
    /// reference that has it most often. Of the references the one nearest in length counts (of two
    /// as near ones, the shorter).
    pub(super) fn of(Captioned { hypothesis, references }: &Captioned) -> Self {
        let hypothesis = words(hypothesis);
        let references: Vec<Vec<&str>> = references.iter().map(|text| words(text)).collect();
        let lengths = references.iter().map(Vec::len);
        let nearest = lengths.min_by_key(|length| (length.abs_diff(hypothesis.len()), *length));
        let mut counts = Self {
            words: to_f64(hypothesis.len()),
            reference_words: to_f64(nearest.unwrap_or(0)),
            ..Self::default()
        };
        for (index, (right, guessed)) in
            counts.right.iter_mut().zip(&mut counts.guessed).enumerate()
        {
            let references: Vec<_> = references.iter().map(|text| grams(text, index + 1)).collect();
            for (gram, count) in grams(&hypothesis, index + 1) {
                let most = references.iter().filter_map(|counts| counts.get(gram)).max();
                *right += to_f64(count.min(most.copied().unwrap_or(0)));
                *guessed += to_f64(count);
            }
        }
        counts
    }

    /// Counts of both, with those of `other` taken `times` times.
    pub(super) fn plus(self, times: f64, other: &Self) -> Self {
        Self {
            right: std::array::from_fn(|n| self.right[n] + times * other.right[n]),
            guessed: std::array::from_fn(|n| self.guessed[n] + times * other.guessed[n]),
            words: self.words + times * other.words,
            reference_words: self.reference_words + times * other.reference_words,
        }
    }

    /// BLEU-1 to BLEU-4: the geometric mean of the precisions of 1-grams to n-grams, times
    /// `exp(1 − reference words / words)` if there are fewer words than in the references.
    pub(super) fn bleu(&self) -> [f64; N] {
        let ratio = (self.words + TINY) / (self.reference_words + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        let mut root = 0.0;
        std::array::from_fn(|index| {
            product *= (self.right[index] + TINY) / (self.guessed[index] + SMALL);
            root += 1.0;
            brevity * f64::powf(product, 1.0 / root)
        })
    }
}
