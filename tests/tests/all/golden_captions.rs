//! Compares words and scores of captions with those of pycocoevalcap.

use serde::Deserialize;
use vljepa_recipes::schema::CaptionMetric;
use vljepa_worker::evaluation::captions::{Captioned, Tokenizer, scores};

use crate::golden;
use crate::real_material::material;

/// Largest difference of a score. Both sides add at most some hundred numbers of at most 10 in f64,
/// in other orders.
const TOLERANCE: f64 = 1e-10;

#[derive(Deserialize)]
struct Golden {
    words: Vec<[String; 2]>,
    sets: Vec<Set>,
}

#[derive(Deserialize)]
struct Set {
    name: String,
    /// Hypothesis and references of each picture.
    captions: Vec<Vec<String>>,
    scores: Scores,
    wrong: std::collections::BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Scores {
    cider: f64,
    bleu4: f64,
    rouge_l: f64,
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(golden::root().join("captions.json")).unwrap()).unwrap()
}

fn captioned(captions: &[Vec<String>]) -> Vec<Captioned> {
    let each = captions
        .iter()
        .map(|texts| Captioned { hypothesis: texts[0].clone(), references: texts[1..].to_vec() });
    each.collect()
}

fn values<const N: usize>(captions: &[Captioned], metrics: [CaptionMetric; N]) -> [f64; N] {
    scores(captions, metrics).unwrap().map(|score| score.value)
}

#[test]
fn words_are_those_of_the_ptb_tokenizer() {
    let (captions, expected): (Vec<String>, Vec<String>) =
        golden().words.into_iter().map(|[caption, words]| (caption, words)).unzip();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    let words = Tokenizer::new().unwrap().words(&captions);
    assert_eq!(words.len(), expected.len());
    for ((caption, words), expected) in captions.iter().zip(&words).zip(&expected) {
        assert_eq!(words, expected, "{caption}");
        let by_white_space = caption.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(by_white_space != *expected || !caption.contains(['.', ',']), "{caption}");
    }
}

#[test]
fn scores_are_those_of_coco_caption() {
    for Set { name, captions, scores: expected, wrong } in golden().sets {
        let [cider, bleu4, rouge_l] = values(&captioned(&captions), CaptionMetric::ALL);
        for (metric, value, expected) in [
            ("cider", cider, expected.cider),
            ("bleu4", bleu4, expected.bleu4),
            ("rouge_l", rouge_l, expected.rouge_l),
        ] {
            assert!((value - expected).abs() < TOLERANCE, "{name}: {metric} {value}, {expected}");
        }
        for (mistake, wrong) in wrong {
            assert!((cider - wrong).abs() > 1e-4, "{name}: {cider} is that of {mistake}");
        }
    }
}

#[test]
fn captions_without_words_and_sets_without_captions_score_0() {
    let empty = [Captioned { hypothesis: " . ".to_owned(), references: vec!["!".to_owned()] }];
    for captions in [&empty[..], &[]] {
        let found = values(captions, CaptionMetric::ALL);
        assert!(found.iter().all(|score| score.abs() < 1e-6), "{found:?}");
    }
    // In coco-caption too, one picture makes the weight of every n-gram 0.
    let one = [Captioned { hypothesis: "a cat".to_owned(), references: vec!["a cat".to_owned()] }];
    let [cider, rouge_l] = values(&one, [CaptionMetric::Cider, CaptionMetric::RougeL]);
    assert!(cider.abs() < 1e-12 && (rouge_l - 1.0).abs() < 1e-12, "{cider} {rouge_l}");
}

/// nlg-eval publishes the scores of its example in its README.
#[test]
fn the_example_of_nlg_eval_has_its_published_scores() {
    let Some(folder) = material("cider/nlg-eval") else { return };
    let lines = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let [hypotheses, first, second] = ["hyp.txt", "ref1.txt", "ref2.txt"].map(lines);
    let captions: Vec<Vec<String>> = hypotheses
        .into_iter()
        .zip(first.into_iter().zip(second))
        .map(|(hypothesis, (first, second))| vec![hypothesis, first, second])
        .collect();
    let [cider] = values(&captioned(&captions), [CaptionMetric::Cider]);
    assert!((cider - 1.242_192).abs() < 5e-7, "{cider}");
}
