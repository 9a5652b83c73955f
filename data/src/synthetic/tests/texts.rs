//! Tests of captions, questions, labels and the vocabulary.

use std::collections::{BTreeMap, BTreeSet};

use super::first_samples;
use crate::synthetic::names::{Colour, Pair, Shape};
use crate::synthetic::sample::{Description, Sample, Scene, Split};
use crate::synthetic::{labels, texts, vocabulary};
use crate::texts::Question;

/// Answers a question from its words and the list of drawn figures, independently of the code under
/// test.
fn answer(question: &str, shown: &Description) -> String {
    let words: Vec<&str> = question.trim_end_matches('?').split(' ').collect();
    let with_shape =
        |shape: &str| shown.objects.iter().filter(|object| object.shape == shape).count();
    let with_colour =
        |colour: &str| shown.objects.iter().filter(|object| object.colour == colour).count();
    let yes = |is_there: bool| if is_there { "yes" } else { "no" }.to_owned();
    match words[..] {
        ["how", "many", shape, "shapes", "are", "there"] => {
            ["zero", "one", "two", "three", "four"][with_shape(shape)].to_owned()
        }
        ["what", "colour", "is", "the", shape] => {
            assert_eq!(with_shape(shape), 1, "{question}");
            shown.objects.iter().find(|object| object.shape == shape).unwrap().colour.clone()
        }
        ["what", "shape", "is", "the", colour, "thing"] => {
            assert_eq!(with_colour(colour), 1, "{question}");
            shown.objects.iter().find(|object| object.colour == colour).unwrap().shape.clone()
        }
        ["what", "shape", "is", "it"] => {
            assert_eq!(shown.objects.len(), 1, "{question}");
            shown.objects[0].shape.clone()
        }
        ["is", "there", "a", colour, "thing"] => yes(with_colour(colour) > 0),
        ["is", "there", "a", colour, shape] => {
            yes(shown.objects.iter().any(|object| object.colour == colour && object.shape == shape))
        }
        ["is", "there", "a", shape] => yes(with_shape(shape) > 0),
        _ => panic!("no such question: {question}"),
    }
}

fn questions(split: Split) -> Vec<(Sample, Question)> {
    first_samples(split)
        .flat_map(|sample| {
            sample.description.questions.clone().into_iter().map(move |q| (sample.clone(), q))
        })
        .collect()
}

#[test]
fn answers_about_pictures_are_true() {
    for split in [Split::TrainQuestions, Split::Count, Split::Colour, Split::Exists] {
        let asked = questions(split);
        assert!(asked.len() >= 400);
        for (sample, question) in asked {
            assert_eq!(
                question.answer,
                answer(&question.question, &sample.description),
                "{}: {question:?}",
                sample.key
            );
        }
    }
    let blue = Description {
        objects: first_samples(Split::Count).next().unwrap().description.objects,
        ..Description::default()
    };
    assert_ne!(
        answer("is there a red circle?", &blue),
        answer(&format!("is there a {}?", blue.objects[0].shape), &blue)
    );
}

#[test]
fn clips_are_asked_and_captioned_as_they_are() {
    let (mut captioned, mut asked) = (0, 0);
    for sample in first_samples(Split::TrainClips) {
        let shown = &sample.description;
        let Scene::Clip(clip) = &sample.scene else { panic!("{} is no clip", sample.key) };
        assert_eq!(shown.motion.as_deref(), Some(clip.motion.name()));
        assert_eq!(shown.shape.as_deref(), clip.figure.shape.map(Shape::name));
        assert_eq!(shown.colour.as_deref(), clip.figure.colour().map(Colour::name));
        if let Some(caption) = &shown.caption {
            captioned += 1;
            assert!(caption.contains(clip.motion.name()), "{caption}");
            for shape in Shape::ALL {
                assert_eq!(
                    caption.contains(shape.name()),
                    clip.figure.shape == Some(shape),
                    "{caption}"
                );
            }
            for colour in Colour::ALL {
                assert_eq!(
                    caption.contains(colour.name()),
                    clip.figure.colour() == Some(colour),
                    "{caption}"
                );
            }
        }
        for question in &shown.questions {
            asked += 1;
            let truth = match question.kind.as_str() {
                "motion" => &shown.motion,
                "shape" => &shown.shape,
                _ => &shown.colour,
            };
            assert_eq!(Some(&question.answer), truth.as_ref(), "{question:?}");
        }
        assert!(
            shown.caption.is_some() || !shown.questions.is_empty(),
            "{} teaches nothing",
            sample.key
        );
    }
    assert!(captioned > 1200 && asked > 3000, "{captioned} captions, {asked} questions");
}

fn answers(split: Split, kind: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, question) in questions(split).into_iter().filter(|(_, question)| question.kind == kind)
    {
        *counts.entry(question.answer).or_insert(0) += 1;
    }
    counts
}

#[test]
fn answers_are_balanced() {
    assert_eq!(answers(Split::Count, "count").into_values().collect::<Vec<_>>(), [100; 4]);
    assert_eq!(answers(Split::Exists, "exists").into_values().collect::<Vec<_>>(), [200; 2]);
    assert!(answers(Split::Colour, "colour").into_values().all(|count| count == 66 || count == 67));
    // In training, answers are balanced by chance (counts) or nearly by construction (existence).
    // The limit is five standard deviations √(n·p·(1−p)).
    for (kind, kinds) in [("count", 4.0), ("exists", 2.0), ("shape", 6.0)] {
        let counts = answers(Split::TrainQuestions, kind);
        let n: f64 = counts.values().map(|&count| count as f64).sum();
        let slack = 5.0 * (n / kinds * (1.0 - 1.0 / kinds)).sqrt();
        for (answer, count) in counts {
            assert!((count as f64 - n / kinds).abs() < slack, "{answer}: {count} of {n}");
        }
    }
}

#[test]
fn a_no_shares_an_attribute_with_what_is_there() {
    for (sample, question) in
        questions(Split::Exists).into_iter().filter(|(_, question)| question.answer == "no")
    {
        let near = sample.description.objects.iter().any(|object| {
            question.question.contains(&object.shape) || question.question.contains(&object.colour)
        });
        assert!(near, "{question:?}");
    }
}

#[test]
fn evaluation_sets_are_as_promised() {
    let mut cells = BTreeMap::new();
    for sample in first_samples(Split::HeldOut) {
        *cells
            .entry((sample.description.object.unwrap(), sample.description.motion.unwrap()))
            .or_insert(0) += 1;
    }
    assert_eq!(cells.len(), 36);
    assert!(cells.values().all(|&count| (13..=14).contains(&count)), "{cells:?}");
    let captions: BTreeSet<String> =
        first_samples(Split::Retrieval).map(|sample| sample.description.caption.unwrap()).collect();
    assert_eq!(captions.len(), 200);
    assert!(captions.iter().all(|caption| caption.starts_with("a ")));
    for split in [Split::Count, Split::Colour, Split::Exists] {
        assert!(first_samples(split).all(|sample| sample.description.questions.len() == 1));
    }
}

#[test]
fn labels_name_every_combination_once() {
    let files: BTreeMap<&str, labels::Labels> = labels::label_files().into_iter().collect();
    for (name, labels_per_file, texts_per_label) in
        [("motions", 6, 36), ("colours", 6, 36), ("shapes", 6, 36), ("objects", 36, 6)]
    {
        let file = &files[name];
        assert_eq!(file.len(), labels_per_file);
        for (label, texts) in file {
            assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts_per_label);
            assert!(texts.iter().all(|text| text.contains(label.as_str())), "{label}");
        }
    }
    assert!(files["motions"]["moving left"].contains(&"a red circle moving left".to_owned()));
    let flipped = labels::flipped_motions();
    assert!(flipped.iter().all(|(motion, other)| flipped[other] == *motion && motion != other));
}

#[test]
fn triplets_differ_in_one_respect() {
    let words =
        |text: &str| text.replace(',', "").split(' ').map(str::to_owned).collect::<Vec<String>>();
    let content = |text: &str| {
        let dull = ["a", "the", "is", "it", "and", "there"];
        words(text)
            .into_iter()
            .filter(|word| !dull.contains(&word.as_str()))
            .collect::<BTreeSet<String>>()
    };
    let triplets = labels::triplets(0);
    assert_eq!(triplets.len(), 400);
    for triplet in &triplets {
        assert_eq!(content(&triplet.p1), content(&triplet.p2), "{triplet:?}");
        let (p1, n) = (words(&triplet.p1), words(&triplet.n));
        assert_eq!(p1.iter().zip(&n).filter(|(a, b)| a != b).count(), 1, "{triplet:?}");
        assert_ne!(triplet.p1, triplet.p2);
    }
    for triplet in labels::swap_triplets(0) {
        assert_eq!(content(&triplet.p1), content(&triplet.n), "the same words: {triplet:?}");
        assert_ne!(triplet.p1, triplet.n);
        assert_eq!(format!("there is {}", triplet.p1), triplet.p2);
    }
}

#[test]
fn the_tokenizer_knows_every_word_and_is_the_same_each_time() {
    let json = vocabulary::tokenizer_json().unwrap();
    assert_eq!(json, vocabulary::tokenizer_json().unwrap());
    let tokenizer: tokenizers::Tokenizer = json.parse().unwrap();
    assert!(tokenizer.get_vocab_size(true) <= 512);
    let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    let mut seen = texts::all();
    for split in Split::TRAIN.into_iter().chain(Split::EVALUATION) {
        for sample in first_samples(split) {
            seen.extend(sample.description.caption);
            seen.extend(
                sample.description.questions.into_iter().flat_map(|q| [q.question, q.answer]),
            );
        }
    }
    seen.extend(
        labels::swap_triplets(0)
            .into_iter()
            .flat_map(|triplet| [triplet.p1, triplet.p2, triplet.n]),
    );
    for text in seen {
        let ids = ids(&text);
        assert_eq!(ids[0], 1, "begins with [BOS]: {text}");
        assert!(!ids.contains(&0), "unknown word in {text}");
    }
    assert_eq!(ids("Is there a RED circle?"), ids("is there a red circle ?"));
    assert_eq!(ids("a red elephant")[3], 0, "a word it does not know is [UNK]");
    assert_eq!(ids(""), [1]);
}

#[test]
fn held_out_pairs_cover_each_shape_and_colour_once() {
    let unseen = Pair::unseen();
    assert_eq!(unseen.len(), 6);
    assert_eq!(Pair::trained().len(), 30);
    assert_eq!(unseen.iter().map(|pair| pair.shape).collect::<BTreeSet<_>>().len(), 6);
    assert_eq!(unseen.iter().map(|pair| pair.colour).collect::<BTreeSet<_>>().len(), 6);
}
