//! Composes the samples of each split: random scenes with their captions and questions.

use super::design::{DESIGN, KINDS, PIXEL};
use super::draws::Draws;
use super::names::{Colour, Figure, Motion, Paint, Pair, Shape};
use super::raster::SIDE;
use super::sample::{Description, Placed, Scene};
use super::scene::{CELLS, Clip, Picture, grey};
use super::texts;
use crate::texts::Question;

/// Training clip of a trained pair, or of a grey shape or a diamond in the shares of the design.
pub(super) fn train_clip(draws: &mut Draws) -> (Scene, Description) {
    let (pair, motion, template) =
        (trained(draws), Motion::ALL[draws.below(KINDS)], draws.below(texts::CLIP_TEMPLATES));
    let permille = draws.below(1000);
    if permille >= DESIGN.grey_clips_permille + DESIGN.diamond_clips_permille {
        return named_clip(draws, pair, motion, template);
    }
    let figure = if permille < DESIGN.grey_clips_permille {
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

/// Clip of a held-out pair. Over the indices, all held-out pairs and motions are equally frequent.
pub(super) fn held_out_clip(draws: &mut Draws, index: usize) -> (Scene, Description) {
    named_clip(draws, Pair::unseen()[index % KINDS], Motion::ALL[index / KINDS % KINDS], 0)
}

/// Clip of the pair and motion at position `index` in a random order of all 216, so that captions
/// are distinct.
pub(super) fn retrieval_clip(draws: &mut Draws, seed: u64, index: usize) -> (Scene, Description) {
    let mut all: Vec<(Pair, Motion)> =
        Pair::all().flat_map(|pair| Motion::ALL.map(|motion| (pair, motion))).collect();
    Draws::new(seed, "eval/retrieval order", 0).shuffle(&mut all);
    let (pair, motion) = all[index % all.len()];
    named_clip(draws, pair, motion, 0)
}

/// Training picture of one or two figures, with a caption.
pub(super) fn train_image(draws: &mut Draws) -> (Scene, Description) {
    let pairs: Vec<Pair> = (0..=draws.below(2)).map(|_| trained(draws)).collect();
    let scene = drawn(draws, &pairs);
    picture(draws, scene, |_, _| Vec::new())
}

/// Training picture for one kind of question, chosen by the shares of the design, with its
/// questions of that kind.
pub(super) fn train_question(draws: &mut Draws) -> (Scene, Description) {
    let shares = &DESIGN.question_shares;
    let total = shares.count
        + shares.colour
        + shares.exists
        + shares.shape
        + shares.grey
        + shares.attribute;
    let mut rest = draws.below(total);
    let mut falls_in = |share: usize| {
        let inside = rest < share;
        rest = rest.wrapping_sub(share);
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

/// Picture with a question about the number of a shape. Over the indices, the shapes and the
/// answers zero to three are equally frequent.
pub(super) fn count(draws: &mut Draws, index: usize) -> (Scene, Description) {
    let (shape, number) = (Shape::ALL[index / CELLS % KINDS], index % CELLS);
    let scene = count_scene(draws, shape, number);
    picture(draws, scene, |_, scene| vec![texts::count(scene, shape)])
}

/// Picture with a question about the colour of a shape that is shown once. Over the indices, the
/// colours are equally frequent.
pub(super) fn colour(draws: &mut Draws, index: usize) -> (Scene, Description) {
    let (scene, pair) = colour_scene(draws, Some(Colour::ALL[index % KINDS]));
    picture(draws, scene, |_, _| vec![texts::colour(pair)])
}

/// Picture with a question about the existence of a pair. Either the pair is shown, or only its
/// shape or its colour is. Over the indices, both cases are equally frequent.
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

/// Clip of a pair, with a caption and all questions.
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

/// Clip of a figure, labelled with its motion and with its shape and colour if they have names.
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

/// Adds to a picture the caption, if figures in it have names, and the questions that `questions`
/// returns for it.
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

/// Random pair that training may show.
fn trained(draws: &mut Draws) -> Pair {
    trained_where(draws, |_| true)
}

/// Random trained pair for which `allowed` holds. The callers restrict the shape or the colour, and
/// each shape and each colour has five trained pairs.
fn trained_where(draws: &mut Draws, allowed: impl Fn(&Pair) -> bool) -> Pair {
    let pairs: Vec<Pair> = Pair::trained().into_iter().filter(allowed).collect();
    pairs[draws.below(pairs.len())]
}

fn drawn(draws: &mut Draws, pairs: &[Pair]) -> Picture {
    let figures: Vec<Figure> = pairs.iter().map(|&pair| pair.into()).collect();
    Picture::draw(draws, &figures)
}

/// Picture of one to four figures, of which exactly `number` have the shape.
fn count_scene(draws: &mut Draws, shape: Shape, number: usize) -> Picture {
    let mut pairs: Vec<Pair> =
        (0..number).map(|_| trained_where(draws, |pair| pair.shape == shape)).collect();
    let least = usize::from(number == 0);
    let others = least + draws.below(CELLS - number - least + 1);
    pairs.extend((0..others).map(|_| trained_where(draws, |pair| pair.shape != shape)));
    drawn(draws, &pairs)
}

/// Picture of one to four figures, and a pair in it that is the only one of its shape and has the
/// given colour, if any.
fn colour_scene(draws: &mut Draws, colour: Option<Colour>) -> (Picture, Pair) {
    let asked = trained_where(draws, |pair| colour.is_none_or(|colour| pair.colour == colour));
    let others = draws.below(CELLS);
    let mut pairs = vec![asked];
    pairs.extend((0..others).map(|_| trained_where(draws, |pair| pair.shape != asked.shape)));
    (drawn(draws, &pairs), asked)
}

/// Picture of one to four figures, of which at least one is the only one of its colour.
fn shape_scene(draws: &mut Draws) -> Picture {
    let asked = trained(draws);
    let others = draws.below(CELLS);
    let mut pairs = vec![asked];
    pairs.extend((0..others).map(|_| trained_where(draws, |pair| pair.colour != asked.colour)));
    drawn(draws, &pairs)
}

/// Picture of one to four random figures.
fn any_scene(draws: &mut Draws) -> Picture {
    let pairs: Vec<Pair> = (0..=draws.below(CELLS)).map(|_| trained(draws)).collect();
    drawn(draws, &pairs)
}

// Neighbouring figures overlap by at most one pixel.
const _: () = assert!(DESIGN.picture_radius[1] + DESIGN.picture_jitter <= SIDE / 4 + PIXEL / 2);
const _: () = assert!(DESIGN.retrieval_clips <= KINDS * KINDS * KINDS);
