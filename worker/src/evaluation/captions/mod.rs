//! Scores of captions as coco-caption (`pycocoevalcap`) computes them: CIDEr, BLEU and ROUGE-L over
//! the words of its tokenizer.

mod bleu;
mod cider;
mod ptb;
mod rouge;

use std::collections::BTreeMap;

use anyhow::Context;
use vljepa_recipes::schema::CaptionMetric;

pub use self::ptb::Tokenizer;

/// A caption of one picture or clip, and the texts with which it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captioned {
    /// Caption to score.
    pub hypothesis: String,
    /// Right captions, at least one.
    pub references: Vec<String>,
}

/// Computes metrics of captions over a whole set, in the order of `metrics`. CIDEr is a number from
/// 0 to 10, as coco-caption prints it (papers print it times 100); the others are fractions. A set
/// without captions has the scores 0.
///
/// # Errors
/// Fails if the tokenizer cannot be built.
pub fn scores<const N: usize>(
    captions: &[Captioned],
    metrics: [CaptionMetric; N],
) -> anyhow::Result<[f64; N]> {
    let captions = tokenized(captions)?;
    Ok(metrics.map(|metric| match metric {
        CaptionMetric::Cider => cider::cider(&captions),
        CaptionMetric::Bleu4 => bleu::bleu(&captions)[3],
        CaptionMetric::RougeL => rouge::rouge_l(&captions),
    }))
}

/// Replaces all captions by their words.
fn tokenized(captions: &[Captioned]) -> anyhow::Result<Vec<Captioned>> {
    let mut tokenizer = Tokenizer::new().context("a rule of the caption tokenizer is wrong")?;
    let hypotheses: Vec<&str> = captions.iter().map(|c| c.hypothesis.as_str()).collect();
    let references = captions.iter().flat_map(|c| &c.references);
    let references: Vec<&str> = references.map(String::as_str).collect();
    let hypotheses = tokenizer.words(&hypotheses);
    let mut references = tokenizer.words(&references).into_iter();
    let counts = captions.iter().map(|captioned| captioned.references.len());
    let words = hypotheses.into_iter().zip(counts).map(|(hypothesis, count)| Captioned {
        hypothesis,
        references: references.by_ref().take(count).collect(),
    });
    Ok(words.collect())
}

/// Words of a caption that has been tokenized.
fn words(caption: &str) -> Vec<&str> {
    caption.split_whitespace().collect()
}

/// Occurrences of each n-gram of a text.
fn grams<'a>(words: &'a [&'a str], n: usize) -> BTreeMap<&'a [&'a str], usize> {
    let mut grams = BTreeMap::new();
    for gram in words.windows(n) {
        *grams.entry(gram).or_default() += 1;
    }
    grams
}

#[expect(clippy::cast_precision_loss, reason = "numbers of captions and words are below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
