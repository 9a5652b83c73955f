//! Scores of captions as coco-caption (`pycocoevalcap`) computes them: CIDEr, BLEU and ROUGE-L over
//! the words of its tokenizer.

mod bleu;
mod cider;
mod ptb;
mod rouge;

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vljepa_recipes::schema::CaptionMetric;

use self::bleu::Counts;
pub use self::ptb::Tokenizer;

/// A caption of one picture or clip, and the texts with which it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captioned {
    /// Caption to score.
    pub hypothesis: String,
    /// Right captions, at least one.
    pub references: Vec<String>,
}

/// A metric of the captions of a whole set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SetScore {
    /// Value of the metric.
    pub value: f64,
    /// Ends of the 95 % interval for other captions of the same kind. `None` for fewer than two.
    pub interval: Option<[f64; 2]>,
}

/// Computes metrics of captions over a whole set, in the order of `metrics`. CIDEr is a number from
/// 0 to 10, as coco-caption prints it (papers print it times 100); the others are fractions. A set
/// without captions has the scores 0.
///
/// An interval is ± 1.96 standard errors, which the jackknife estimates: with `θᵢ`, the metric
/// without caption `i`, the standard error is `√((n − 1)/n Σ (θᵢ − θ̄)²)`. For a mean it is that of
/// the mean. CIDEr keeps the weights that n-grams have in the whole set.
///
/// # Errors
/// Fails if the tokenizer cannot be built.
pub fn scores<const N: usize>(
    captions: &[Captioned],
    metrics: [CaptionMetric; N],
) -> anyhow::Result<[SetScore; N]> {
    let captions = tokenized(captions)?;
    Ok(metrics.map(|metric| match metric {
        CaptionMetric::Cider => of_mean(&cider::cider(&captions), 10.0),
        CaptionMetric::Bleu4 => {
            let counts: Vec<Counts> = captions.iter().map(Counts::of).collect();
            let all = counts.iter().fold(Counts::default(), |sum, one| sum.plus(1.0, one));
            let without = counts.iter().map(|one| all.plus(-1.0, one).bleu()[3]);
            let value = if captions.is_empty() { 0.0 } else { all.bleu()[3] };
            set_score(value, &without.collect::<Vec<_>>(), 1.0)
        }
        CaptionMetric::RougeL => of_mean(&rouge::rouge_l(&captions), 1.0),
    }))
}

/// Mean of the scores of single captions.
fn of_mean(scores: &[f64], most: f64) -> SetScore {
    let n = to_f64(scores.len());
    // Not `sum`, whose value for an empty list is -0.
    let sum = scores.iter().fold(0.0, |sum, score| sum + score);
    let without: Vec<f64> = scores.iter().map(|score| (sum - score) / (n - 1.0).max(1.0)).collect();
    set_score(sum / n.max(1.0), &without, most)
}

/// A score from 0 to `most` and its interval. `without` holds the score without each of the
/// captions.
fn set_score(value: f64, without: &[f64], most: f64) -> SetScore {
    /// Standard errors between a value and an end of its 95 % interval.
    const ERRORS: f64 = 1.959_964;
    let n = to_f64(without.len());
    let mean = without.iter().sum::<f64>() / n;
    let squares: f64 = without.iter().map(|one| (one - mean).powi(2)).sum();
    let distance = ERRORS * (squares * (n - 1.0) / n).sqrt();
    let ends = [(value - distance).max(0.0), (value + distance).min(most)];
    SetScore { value, interval: (without.len() > 1).then_some(ends) }
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

#[cfg(test)]
mod tests {
    use vljepa_recipes::schema::CaptionMetric;

    use super::{Captioned, of_mean, scores};

    #[test]
    fn the_interval_of_a_mean_is_that_of_its_standard_error() {
        let single = [0.2, 0.4, 0.9, 0.5];
        let found = of_mean(&single, 1.0);
        // By hand: the mean is 0.5, the sum of squares 0.26, so that the standard error is
        // √(0.26 / 3 / 4) = 0.14720.
        let [low, high] = found.interval.unwrap();
        assert!((found.value - 0.5).abs() < 1e-12);
        assert!((low - 0.211_499).abs() < 1e-5 && (high - 0.788_501).abs() < 1e-5, "{low} {high}");
        assert_eq!(of_mean(&[0.3], 1.0).interval, None);
        assert_eq!(of_mean(&[], 1.0).value.to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn more_captions_of_a_kind_have_narrower_intervals_and_equal_ones_none() {
        let caption = |hypothesis: &str| Captioned {
            hypothesis: hypothesis.to_owned(),
            references: vec!["a red cat runs over the green grass".to_owned()],
        };
        let some = ["a red cat runs over the grass", "a dog sleeps on the green grass"];
        let some: Vec<Captioned> = some.iter().map(|text| caption(text)).collect();
        let many: Vec<Captioned> = some.iter().cycle().take(40).cloned().collect();
        let width = |captions: &[Captioned]| {
            let [bleu4] = scores(captions, [CaptionMetric::Bleu4]).unwrap();
            let [low, high] = bleu4.interval.unwrap();
            assert!(low <= bleu4.value && bleu4.value <= high, "{bleu4:?}");
            high - low
        };
        let (few, narrow) = (width(&many[..8]), width(&many));
        // Five times as many captions: about √5 times as narrow.
        assert!((few / narrow - 5.0_f64.sqrt()).abs() < 0.4, "{few} {narrow}");
        assert!(width(&many.iter().step_by(2).cloned().collect::<Vec<_>>()) < 1e-9);
    }
}
