//! CIDEr (arXiv 1411.5726), in the form that coco-caption calls so: CIDEr-D, without stemming.

use std::collections::{BTreeMap, BTreeSet};

use super::{Captioned, grams, to_f64, words};

/// Number of words of the longest n-gram.
const N: usize = 4;
/// Standard deviation, as a number of words, of the penalty for a caption of another length than
/// the reference.
const SIGMA: f64 = 6.0;

/// Weights of n-grams.
type Weights<'a> = BTreeMap<&'a [&'a str], f64>;

/// Returns the CIDEr-D of each caption, from 0 to 10. The captions have been tokenized. The CIDEr
/// of a set is their mean.
///
/// An n-gram that occurs `t` times in a caption weighs `t · (ln |I| − ln max(1, d))`, where `d` of
/// the `|I|` pictures have it in a reference. For each n, hypothesis `h` and reference `r` have the
/// similarity `Σ min(h, r) · r / (|h| |r|) · exp(−Δ² / (2 · 6²))`, where `Δ` is the difference of
/// their numbers of bigrams. The score of a picture is 10 times the mean over n and references.
pub(super) fn cider(captions: &[Captioned]) -> Vec<f64> {
    let hypotheses: Vec<Vec<&str>> = captions.iter().map(|c| words(&c.hypothesis)).collect();
    let references: Vec<Vec<Vec<&str>>> =
        captions.iter().map(|c| c.references.iter().map(|text| words(text)).collect()).collect();
    let mut pictures: Weights<'_> = BTreeMap::new();
    for of_picture in &references {
        let of_texts = of_picture.iter().flat_map(|text| (1..=N).map(move |n| grams(text, n)));
        for gram in of_texts.flat_map(BTreeMap::into_keys).collect::<BTreeSet<_>>() {
            *pictures.entry(gram).or_default() += 1.0;
        }
    }
    let count = to_f64(captions.len());
    let of_picture = |(text, references): (&Vec<&str>, &Vec<Vec<&str>>)| {
        let hypothesis = weighted(text, &pictures, count);
        let similarity = |reference: &Vec<&str>| {
            let difference = to_f64(bigrams(text)) - to_f64(bigrams(reference));
            let penalty = (-difference.powi(2) / (2.0 * SIGMA.powi(2))).exp();
            let reference = weighted(reference, &pictures, count);
            let cosines = hypothesis.iter().zip(&reference).map(|(h, r)| cosine(h, r));
            penalty * cosines.sum::<f64>() / to_f64(N)
        };
        10.0 * references.iter().map(similarity).sum::<f64>() / to_f64(references.len().max(1))
    };
    hypotheses.iter().zip(&references).map(of_picture).collect()
}

/// Weights of the n-grams of a text for n = 1 to [`N`], with the number of pictures in whose
/// references each n-gram occurs, and the number of all pictures.
fn weighted<'a>(text: &'a [&'a str], pictures: &Weights<'a>, count: f64) -> [Weights<'a>; N] {
    let weight = |(gram, times)| {
        let pictures = pictures.get(gram).copied().unwrap_or(0.0);
        (gram, to_f64(times) * (count.ln() - pictures.max(1.0).ln()))
    };
    std::array::from_fn(|index| grams(text, index + 1).into_iter().map(weight).collect())
}

fn bigrams(words: &[&str]) -> usize {
    words.len().saturating_sub(1)
}

/// Similarity of the n-grams of a hypothesis and a reference. What the hypothesis has more often
/// than the reference counts as often as there.
fn cosine(hypothesis: &Weights<'_>, reference: &Weights<'_>) -> f64 {
    let norm = |weights: &Weights<'_>| weights.values().map(|w| w * w).sum::<f64>().sqrt();
    let shared = hypothesis.iter().filter_map(|(gram, h)| Some((h, reference.get(gram)?)));
    let product: f64 = shared.map(|(h, r)| h.min(*r) * r).sum();
    let norms = norm(hypothesis) * norm(reference);
    if norms > 0.0 { product / norms } else { product }
}
