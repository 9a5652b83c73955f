//! BLEU (Papineni et al., ACL 2002) over a whole set.

use super::{Captioned, grams, to_f64, words};

/// Number of words of the longest n-gram.
const N: usize = 4;
/// Numbers that coco-caption adds to numerators and denominators, so that no quotient is 0 / 0.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// Returns BLEU-1 to BLEU-4 of captions that have been tokenized.
///
/// BLEU-n is the geometric mean of the precisions of 1-grams to n-grams, times
/// `exp(1 − reference words / words)` if the hypotheses are shorter than the references nearest to
/// them in length (of two as near ones, the shorter). An n-gram counts at most as often as in the
/// reference that has it most often.
pub(super) fn bleu(captions: &[Captioned]) -> [f64; N] {
    let (mut right, mut guessed) = ([0.0; N], [0.0; N]);
    let (mut length, mut reference_length) = (0.0, 0.0);
    for Captioned { hypothesis, references } in captions {
        let hypothesis = words(hypothesis);
        let references: Vec<Vec<&str>> = references.iter().map(|text| words(text)).collect();
        let lengths = references.iter().map(Vec::len);
        let nearest = lengths.min_by_key(|length| (length.abs_diff(hypothesis.len()), *length));
        length += to_f64(hypothesis.len());
        reference_length += to_f64(nearest.unwrap_or(0));
        for (index, (right, guessed)) in right.iter_mut().zip(&mut guessed).enumerate() {
            let references: Vec<_> = references.iter().map(|text| grams(text, index + 1)).collect();
            for (gram, count) in grams(&hypothesis, index + 1) {
                let most = references.iter().filter_map(|counts| counts.get(gram)).max();
                *right += to_f64(count.min(most.copied().unwrap_or(0)));
                *guessed += to_f64(count);
            }
        }
    }
    let ratio = (length + TINY) / (reference_length + SMALL);
    let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
    let mut product = 1.0;
    let mut root = 0.0;
    std::array::from_fn(|index| {
        product *= (right[index] + TINY) / (guessed[index] + SMALL);
        root += 1.0;
        brevity * f64::powf(product, 1.0 / root)
    })
}
