//! All texts of the set: captions, questions and answers.

use super::draws::Draws;
use super::names::{Colour, Motion, Pair, Shape};
use super::scene::{CELLS, Picture};
use crate::texts::Question;

/// Number of caption templates for clips.
pub(super) const CLIP_TEMPLATES: usize = 4;

/// Number of caption templates for pictures.
pub(super) const PICTURE_TEMPLATES: usize = 4;

/// Queries that recipes use with captions, and phrases that users may type. Their words must be in
/// the vocabulary too.
pub(super) const QUERIES: [&str; 6] = [
    "describe the video",
    "describe the image",
    "describe this video",
    "describe this picture",
    "what is in the picture?",
    "what is happening in this video?",
];

/// Caption of a clip in one of [`CLIP_TEMPLATES`] templates. A shape or colour that is `None` is
/// not named.
pub(super) fn clip_caption(
    template: usize,
    shape: Option<Shape>,
    colour: Option<Colour>,
    motion: Motion,
) -> String {
    let motion = motion.name();
    let noun = shape.map_or("thing", Shape::name);
    let thing =
        colour.map_or_else(|| noun.to_owned(), |colour| format!("{} {noun}", colour.name()));
    match template {
        0 => format!("a {thing} {motion}"),
        1 => match colour {
            Some(colour) => format!("the {noun} is {} and it is {motion}", colour.name()),
            None => format!("it is a {noun} and it is {motion}"),
        },
        2 => format!("{motion}, a {thing}"),
        _ => format!("a video of a {thing} that is {motion}"),
    }
}

/// Caption of a picture in one of [`PICTURE_TEMPLATES`] templates.
pub(super) fn picture_caption(template: usize, pairs: &[Pair]) -> String {
    let list: Vec<String> = pairs.iter().map(|pair| format!("a {}", pair.name())).collect();
    let list = list.join(" and ");
    match template {
        0 => list,
        1 => format!("an image with {list}"),
        2 => format!("there is {list}"),
        _ => format!("a picture of {list}"),
    }
}

fn question(kind: &str, question: String, answer: &str) -> Question {
    Question { question, answer: answer.to_owned(), kind: kind.to_owned() }
}

/// Question about the motion of a clip's shape.
pub(super) fn motion_of_it(motion: Motion) -> Question {
    question("motion", "how is it moving?".to_owned(), motion.name())
}

/// Question about the shape of the only figure.
pub(super) fn shape_of_it(shape: Shape) -> Question {
    question("shape", "what shape is it?".to_owned(), shape.name())
}

/// Question about the colour of the only figure.
pub(super) fn colour_of_it(colour: Colour) -> Question {
    question("colour", "what colour is it?".to_owned(), colour.name())
}

/// Question about the number of figures of a shape.
pub(super) fn count(picture: &Picture, shape: Shape) -> Question {
    let number = picture.pairs().filter(|pair| pair.shape == shape).count();
    question("count", format!("how many {} shapes are there?", shape.name()), number_name(number))
}

/// Questions about the colour of each shape that occurs once.
pub(super) fn colours(picture: &Picture) -> Vec<Question> {
    let unique =
        |pair: &Pair| picture.pairs().filter(|other| other.shape == pair.shape).count() == 1;
    picture.pairs().filter(unique).map(colour).collect()
}

/// Questions about the shape of each colour that occurs once.
pub(super) fn shapes(picture: &Picture) -> Vec<Question> {
    let unique =
        |pair: &Pair| picture.pairs().filter(|other| other.colour == pair.colour).count() == 1;
    picture.pairs().filter(unique).map(shape).collect()
}

/// Question about the colour of a shape that occurs once.
pub(super) fn colour(pair: Pair) -> Question {
    question("colour", format!("what colour is the {}?", pair.shape.name()), pair.colour.name())
}

fn shape(pair: Pair) -> Question {
    question("shape", format!("what shape is the {} thing?", pair.colour.name()), pair.shape.name())
}

/// Two questions about the existence of a pair: one about a pair that the picture shows, and one
/// about a near miss ([`near_misses`]).
pub(super) fn existence(draws: &mut Draws, picture: &Picture) -> Vec<Question> {
    let shown: Vec<Pair> = picture.pairs().collect();
    let asked = [draws.pick(&shown), draws.pick(&near_misses(picture))];
    asked.into_iter().flatten().map(|pair| exists(picture, pair)).collect()
}

/// Questions about the existence of a shape and of a colour, for each one with the answer yes and
/// one with the answer no, if possible.
pub(super) fn attributes(draws: &mut Draws, picture: &Picture) -> Vec<Question> {
    let mut questions = Vec::new();
    for yes in [true, false] {
        let answer = if yes { "yes" } else { "no" };
        let shapes: Vec<Shape> = Shape::ALL
            .into_iter()
            .filter(|&shape| picture.pairs().any(|pair| pair.shape == shape) == yes)
            .collect();
        let colours: Vec<Colour> = Colour::ALL
            .into_iter()
            .filter(|&colour| picture.pairs().any(|pair| pair.colour == colour) == yes)
            .collect();
        questions.extend(
            draws
                .pick(&shapes)
                .map(|shape| question("exists", format!("is there a {}?", shape.name()), answer)),
        );
        questions.extend(draws.pick(&colours).map(|colour| {
            question("exists", format!("is there a {} thing?", colour.name()), answer)
        }));
    }
    questions
}

/// Question whether the picture shows the pair.
pub(super) fn exists(picture: &Picture, pair: Pair) -> Question {
    let answer = if picture.pairs().any(|shown| shown == pair) { "yes" } else { "no" };
    question("exists", format!("is there a {}?", pair.name()), answer)
}

/// Trained pairs that the picture does not show, but that share the shape or the colour with a pair
/// that it shows. Held-out pairs are excluded, because in training the answer for them would always
/// be no.
pub(super) fn near_misses(picture: &Picture) -> Vec<Pair> {
    let near = |pair: &Pair| {
        picture.pairs().any(|shown| shown.shape == pair.shape || shown.colour == pair.colour)
    };
    Pair::trained()
        .into_iter()
        .filter(|pair| near(pair) && picture.pairs().all(|shown| shown != *pair))
        .collect()
}

/// Number as a word, "zero" to "four".
pub(super) fn number_name(number: usize) -> &'static str {
    ["zero", "one", "two", "three", "four"].get(number).copied().unwrap_or("many")
}

/// Texts that contain every word of the set, in a fixed order. The tokenizer is trained on them.
pub(super) fn all() -> Vec<String> {
    let mut texts: Vec<String> = QUERIES.iter().map(|&query| query.to_owned()).collect();
    for pair in Pair::all() {
        for motion in Motion::ALL {
            texts.push(motion_of_it(motion).question);
            for (shape, colour) in [
                (Some(pair.shape), Some(pair.colour)),
                (Some(pair.shape), None),
                (None, Some(pair.colour)),
            ] {
                texts.extend(
                    (0..CLIP_TEMPLATES)
                        .map(|template| clip_caption(template, shape, colour, motion)),
                );
            }
        }
        texts.extend(
            (0..PICTURE_TEMPLATES).map(|template| picture_caption(template, &[pair, pair])),
        );
        let picture = Picture { objects: Vec::new(), background: 0 };
        for asked in [
            count(&picture, pair.shape),
            colour(pair),
            shape(pair),
            exists(&picture, pair),
            shape_of_it(pair.shape),
            colour_of_it(pair.colour),
        ] {
            texts.extend([asked.question, asked.answer]);
        }
    }
    texts.push("yes".to_owned());
    texts.extend((0..=CELLS).map(|number| number_name(number).to_owned()));
    texts.extend(Motion::ALL.map(|motion| motion.name().to_owned()));
    texts.extend(Colour::ALL.map(|colour| colour.name().to_owned()));
    texts.extend(Shape::ALL.map(|shape| shape.name().to_owned()));
    texts
}
