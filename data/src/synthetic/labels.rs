//! Label texts for classification, and text triplets for evaluating the text encoder.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::design::{DESIGN, KINDS};
use super::draws::Draws;
use super::names::{Colour, Motion, Pair, Shape};
use super::texts::{clip_caption, picture_caption};

/// Maps a label to the texts whose mean embedding represents the label: the plain captions with
/// that label and all values of the other attributes.
pub(super) type Labels = BTreeMap<String, Vec<String>>;

/// Labels of one file. The caption of each (pair, motion) is added to the label that `name`
/// returns.
fn labels(name: impl Fn(Pair, Motion) -> String) -> Labels {
    let mut labels = Labels::new();
    for pair in Pair::all() {
        for motion in Motion::ALL {
            labels.entry(name(pair, motion)).or_default().push(pair_caption(0, pair, motion));
        }
    }
    labels
}

/// Name and labels of each file in the folder `labels`.
pub(super) fn label_files() -> [(&'static str, Labels); 4] {
    [
        ("motions", labels(|_, motion| motion.name().to_owned())),
        ("colours", labels(|pair, _| pair.colour.name().to_owned())),
        ("shapes", labels(|pair, _| pair.shape.name().to_owned())),
        ("objects", labels(|pair, _| pair.name())),
    ]
}

/// Maps each motion to the motion of the clip played backwards.
pub(super) fn flipped_motions() -> BTreeMap<&'static str, &'static str> {
    Motion::ALL.into_iter().map(|motion| (motion.name(), motion.reversed().name())).collect()
}

/// Two texts p1 and p2 with the same meaning, and a text n that differs from them in one respect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Triplet {
    pub(super) p1: String,
    pub(super) p2: String,
    pub(super) n: String,
    /// Difference between `n` and `p1`: shape, colour, motion or swap.
    pub(super) kind: String,
}

/// Triplets about clips of held-out pairs. p1 and p2 use two templates. n uses the template of p1,
/// with another shape, another colour or the reverse motion.
pub(super) fn triplets(seed: u64) -> Vec<Triplet> {
    let make = |index: usize| {
        let mut draws = Draws::new(seed, "triplets", index as u64);
        let pair = Pair::unseen()[draws.below(KINDS)];
        let motion = Motion::ALL[draws.below(KINDS)];
        let (kind, changed, changed_motion) = match index % 3 {
            0 => (
                "shape",
                Pair { shape: other(&mut draws, &Shape::ALL, pair.shape), ..pair },
                motion,
            ),
            1 => (
                "colour",
                Pair { colour: other(&mut draws, &Colour::ALL, pair.colour), ..pair },
                motion,
            ),
            _ => ("motion", pair, motion.reversed()),
        };
        Triplet {
            p1: pair_caption(0, pair, motion),
            p2: pair_caption(1, pair, motion),
            n: pair_caption(0, changed, changed_motion),
            kind: kind.to_owned(),
        }
    };
    (0..DESIGN.triplets).map(make).collect()
}

/// Harder triplets about two shapes of two colours, where n swaps the colours.
pub(super) fn swap_triplets(seed: u64) -> Vec<Triplet> {
    let make = |index: usize| {
        let mut draws = Draws::new(seed, "swap triplets", index as u64);
        let first =
            Pair { shape: Shape::ALL[draws.below(KINDS)], colour: Colour::ALL[draws.below(KINDS)] };
        let second = Pair {
            shape: other(&mut draws, &Shape::ALL, first.shape),
            colour: other(&mut draws, &Colour::ALL, first.colour),
        };
        let swapped =
            [Pair { colour: second.colour, ..first }, Pair { colour: first.colour, ..second }];
        Triplet {
            p1: picture_caption(0, &[first, second]),
            p2: picture_caption(2, &[first, second]),
            n: picture_caption(0, &swapped),
            kind: "swap".to_owned(),
        }
    };
    (0..DESIGN.triplets).map(make).collect()
}

/// Random item other than `not`.
fn other<T: Copy + PartialEq>(draws: &mut Draws, items: &[T; KINDS], not: T) -> T {
    let others: Vec<T> = items.iter().copied().filter(|item| *item != not).collect();
    others[draws.below(others.len())]
}

fn pair_caption(template: usize, pair: Pair, motion: Motion) -> String {
    clip_caption(template, Some(pair.shape), Some(pair.colour), motion)
}
