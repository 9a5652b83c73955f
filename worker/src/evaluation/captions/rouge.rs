//! ROUGE-L (Lin, 2004): longest common subsequence of words.

use super::{Captioned, to_f64};

/// Weight of recall against precision.
const BETA: f64 = 1.2;

/// Returns the ROUGE-L of each caption, from 0 to 1. The captions have been tokenized. The ROUGE-L
/// of a set is their mean.
///
/// With the length `l` of the longest common subsequence of a hypothesis `h` and a reference `r`, P
/// is the largest `l / |h|` and R the largest `l / |r|` of all references. The score is
/// `(1 + β²) P R / (R + β² P)` with β = 1.2, and 0 for a hypothesis without words.
pub(super) fn rouge_l(captions: &[Captioned]) -> Vec<f64> {
    let of_picture = |Captioned { hypothesis, references }: &Captioned| {
        // Unlike the other metrics, it takes a token with a no-break space as one word.
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        if hypothesis.is_empty() {
            return 0.0;
        }
        let hypothesis = words(hypothesis);
        let (mut precision, mut recall) = (0.0f64, 0.0f64);
        for reference in references {
            let reference = words(reference);
            let common = to_f64(longest_common(&hypothesis, &reference));
            precision = precision.max(common / to_f64(hypothesis.len()));
            recall = recall.max(common / to_f64(reference.len()));
        }
        let below = recall + BETA.powi(2) * precision;
        if below > 0.0 { (1.0 + BETA.powi(2)) * precision * recall / below } else { 0.0 }
    };
    captions.iter().map(of_picture).collect()
}

/// Length of the longest common subsequence.
fn longest_common(a: &[String], b: &[String]) -> usize {
    // Lengths for the words of `a` so far and each beginning of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (index, other) in b.iter().enumerate() {
            let above = lengths[index + 1];
            lengths[index + 1] =
                if word == other { diagonal + 1 } else { above.max(lengths[index]) };
            diagonal = above;
        }
    }
    lengths[b.len()]
}
