//! What each split shows and asks: scenes at random, with their captions and questions.

use super::design::{DESIGN, KINDS, PIXEL};
use super::draws::Draws;
use super::names::{Colour, Figure, Motion, Paint, Pair, Shape};
use super::raster::SIDE;
use super::sample::{Description, Placed, Scene};
use super::scene::{CELLS, Clip, Picture, grey};
use super::texts;
use crate::sample::Question;

/// A clip of training: shape, colour and motion; or a figure that has no colour or no shape.
pub(super) fn train_clip(draws: &mut Draws) -> (Scene, Description) {
    let (pair, motion, template) =
        (trained(draws), Motion::ALL[draws.below(KINDS)], draws.below(texts::CLIP_TEMPLATES));
    let place = draws.below(1000);
    if place >= DESIGN.grey_clips_permille + DESIGN.diamond_clips_permille {
        return named_clip(draws, pair, motion, template);
    }
    let figure = if place < DESIGN.grey_clips_permille {
        Figure { shape: Some(Shape::ALL[draws.below(KINDS)]), paint: grey(draws) }
    } else {
        Figure { shape: None, paint: Paint::Palette(Colour::ALL[draws.below(KINDS)]) }
    };
    let (scene, mut description) = clip(draws, figure, motion);
    if draws.below(1000) < DESIGN.captioned_permille {
        description.caption =
            Some(texts::clip_caption(template, figure.shape, figure.colour(), motion));
    } else {
        description.questions.extend(figure.shape.map(texts::shape_of_it));
        description.questions.extend(figure.colour().map(texts::colour_of_it));
    }
    (scene, description)
}

/// All held-out pairs and motions equally often.
pub(super) fn held_out_clip(draws: &mut Draws, index: usize) -> (Scene, Description) {
    named_clip(draws, Pair::unseen()[index % KINDS], Motion::ALL[index / KINDS % KINDS], 0)
}

/// Pairs and motions in an order of all 216, so that captions are distinct.
pub(super) fn retrieval_clip(draws: &mut Draws, seed: u64, index: usize) -> (Scene, Description) {
    let mut all: Vec<(Pair, Motion)> =
        Pair::all().flat_map(|pair| Motion::ALL.map(|motion| (pair, motion))).collect();
    Draws::new(seed, "eval/retrieval order", 0).shuffle(&mut all);
    let (pair, motion) = all[index % all.len()];
    named_clip(draws, pair, motion, 0)
}

/// A picture of one or two figures with a caption.
pub(super) fn train_image(draws: &mut Draws) -> (Scene, Description) {
    let pairs: Vec<Pair> = (0..=draws.below(2)).map(|_| trained(draws)).collect();
    let scene = drawn(draws, &pairs);
    picture(draws, scene, |_, _| Vec::new())
}

/// A picture drawn for one kind of question by the design's shares, and its questions of that kind.
pub(super) fn train_question(draws: &mut Draws) -> (Scene, Description) {
    let shares = &DESIGN.question_shares;
    let total = shares.count
        + shares.colour
        + shares.exists
        + shares.shape
        + shares.grey
        + shares.attribute;
    let mut place = draws.below(total);
    let mut falls_in = |share: usize| {
        let inside = place < share;
        place = place.wrapping_sub(share);
        inside
    };
    if falls_in(shares.count) {
        let (shape, number) = (Shape::ALL[draws.below(KINDS)], draws.below(CELLS));
        let scene = count_scene(draws, shape, number);
        picture(draws, scene, |_, scene| vec![texts::count(scene, shape)])
    } else if falls_in(shares.colour) {
        let scene = colour_scene(draws, None).0;
        picture(draws, scene, |_, scene| texts::colours(scene))
    } else if falls_in(shares.exists) {
        let scene = any_scene(draws);
        picture(draws, scene, texts::existence)
    } else if falls_in(shares.shape) {
        let scene = shape_scene(draws);
        picture(draws, scene, |_, scene| texts::shapes(scene))
    } else if falls_in(shares.grey) {
        let shape = Shape::ALL[draws.below(KINDS)];
        let figure = Figure { shape: Some(shape), paint: grey(draws) };
        let scene = Picture::draw(draws, &[figure]);
        picture(draws, scene, |_, _| vec![texts::shape_of_it(shape)])
    } else {
        let scene = any_scene(draws);
        picture(draws, scene, texts::attributes)
    }
}

/// A question for a number; zero to three equally often, of each shape.
pub(super) fn count(draws: &mut Draws, index: usize) -> (Scene, Description) {
    let (shape, number) = (Shape::ALL[index / CELLS % KINDS], index % CELLS);
    let scene = count_scene(draws, shape, number);
    picture(draws, scene, |_, scene| vec![texts::count(scene, shape)])
}

/// A question for the colour of a shape that is there once; all colours equally often.
pub(super) fn colour(draws: &mut Draws, index: usize) -> (Scene, Description) {
    let (scene, pair) = colour_scene(draws, Some(Colour::ALL[index % KINDS]));
    picture(draws, scene, |_, _| vec![texts::colour(pair)])
}

/// A question for a pair that is there, or one of which only shape or colour is; both equally often.
pub(super) fn exists(draws: &mut Draws, index: usize) -> (Scene, Description) {
    let scene = any_scene(draws);
    picture(draws, scene, |draws, scene| {
        let pairs = if index.is_multiple_of(2) {
            scene.pairs().collect()
        } else {
            texts::near_misses(scene)
        };
        draws.pick(&pairs).map(|pair| texts::exists(scene, pair)).into_iter().collect()
    })
}

/// A clip with caption and all questions.
fn named_clip(
    draws: &mut Draws,
    pair: Pair,
    motion: Motion,
    template: usize,
) -> (Scene, Description) {
    let (scene, mut description) = clip(draws, pair.into(), motion);
    description.caption =
        Some(texts::clip_caption(template, Some(pair.shape), Some(pair.colour), motion));
    description.questions = vec![
        texts::motion_of_it(motion),
        texts::shape_of_it(pair.shape),
        texts::colour_of_it(pair.colour),
    ];
    (scene, description)
}

/// A clip with its labels, as far as they have names.
fn clip(draws: &mut Draws, figure: Figure, motion: Motion) -> (Scene, Description) {
    let description = Description {
        motion: Some(motion.name().to_owned()),
        shape: figure.shape.map(|shape| shape.name().to_owned()),
        colour: figure.colour().map(|colour| colour.name().to_owned()),
        object: figure.pair().map(Pair::name),
        ..Description::default()
    };
    (Scene::Clip(Clip::draw(draws, figure, motion)), description)
}

/// A picture with a caption, if its figures have names, and the questions that are made of it.
fn picture(
    draws: &mut Draws,
    picture: Picture,
    questions: impl FnOnce(&mut Draws, &Picture) -> Vec<Question>,
) -> (Scene, Description) {
    let mut pairs: Vec<Pair> = picture.pairs().collect();
    draws.shuffle(&mut pairs);
    let template = draws.below(texts::PICTURE_TEMPLATES);
    let objects = picture.objects.iter().map(|object| Placed {
        shape: object.figure.shape.map_or("diamond", Shape::name).to_owned(),
        colour: object.figure.colour().map_or("grey", Colour::name).to_owned(),
        centre: object.centre,
        radius: object.radius,
    });
    let description = Description {
        caption: (!pairs.is_empty()).then(|| texts::picture_caption(template, &pairs)),
        objects: objects.collect(),
        questions: questions(draws, &picture),
        ..Description::default()
    };
    (Scene::Picture(picture), description)
}

/// A pair that training may show.
fn trained(draws: &mut Draws) -> Pair {
    trained_where(draws, |_| true)
}

/// One of the trained pairs for which `allowed` holds: there is always one, as each shape and each colour has five.
fn trained_where(draws: &mut Draws, allowed: impl Fn(&Pair) -> bool) -> Pair {
    let pairs: Vec<Pair> = Pair::trained().into_iter().filter(allowed).collect();
    pairs[draws.below(pairs.len())]
}

fn drawn(draws: &mut Draws, pairs: &[Pair]) -> Picture {
    let figures: Vec<Figure> = pairs.iter().map(|&pair| pair.into()).collect();
    Picture::draw(draws, &figures)
}

/// `number` figures of the shape among others, one to four in all.
fn count_scene(draws: &mut Draws, shape: Shape, number: usize) -> Picture {
    let mut pairs: Vec<Pair> =
        (0..number).map(|_| trained_where(draws, |pair| pair.shape == shape)).collect();
    let least = usize::from(number == 0);
    let others = least + draws.below(CELLS - number - least + 1);
    pairs.extend((0..others).map(|_| trained_where(draws, |pair| pair.shape != shape)));
    drawn(draws, &pairs)
}

/// One to four figures, of which the returned one is the only one of its shape.
fn colour_scene(draws: &mut Draws, colour: Option<Colour>) -> (Picture, Pair) {
    let asked = trained_where(draws, |pair| colour.is_none_or(|colour| pair.colour == colour));
    let others = draws.below(CELLS);
    let mut pairs = vec![asked];
    pairs.extend((0..others).map(|_| trained_where(draws, |pair| pair.shape != asked.shape)));
    (drawn(draws, &pairs), asked)
}

/// One to four figures, of which one is the only one of its colour.
fn shape_scene(draws: &mut Draws) -> Picture {
    let asked = trained(draws);
    let others = draws.below(CELLS);
    let mut pairs = vec![asked];
    pairs.extend((0..others).map(|_| trained_where(draws, |pair| pair.colour != asked.colour)));
    drawn(draws, &pairs)
}

/// One to four figures.
fn any_scene(draws: &mut Draws) -> Picture {
    let pairs: Vec<Pair> = (0..=draws.below(CELLS)).map(|_| trained(draws)).collect();
    drawn(draws, &pairs)
}

// Neighbouring figures overlap by a pixel at most.
const _: () = assert!(DESIGN.picture_radius[1] + DESIGN.picture_jitter <= SIDE / 4 + PIXEL / 2);
const _: () = assert!(DESIGN.retrieval_clips <= KINDS * KINDS * KINDS);
