//! The samples of each split, each a pure function of (seed, index).

use serde::{Deserialize, Serialize};

use super::compose;
use super::design::DESIGN;
use super::draws::Draws;
use super::encode;
use super::scene::{Clip, Picture};
use crate::error::DataError;
use crate::sample::Question;

/// What a tar of the set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    TrainClips,
    TrainImages,
    TrainQuestions,
    HeldOut,
    Retrieval,
    Count,
    Colour,
    Exists,
}

impl Split {
    pub(super) const TRAIN: [Self; 3] = [Self::TrainClips, Self::TrainImages, Self::TrainQuestions];
    pub(super) const EVALUATION: [Self; 5] =
        [Self::HeldOut, Self::Retrieval, Self::Count, Self::Colour, Self::Exists];

    /// The folder, and the name of a file without number and ending.
    pub(super) fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::TrainClips => ("train", "clips"),
            Self::TrainImages => ("train", "images"),
            Self::TrainQuestions => ("train", "questions"),
            Self::HeldOut => ("eval", "heldout"),
            Self::Retrieval => ("eval", "retrieval"),
            Self::Count => ("eval", "count"),
            Self::Colour => ("eval", "colour"),
            Self::Exists => ("eval", "exists"),
        }
    }

    /// Samples at scale 1.
    pub(super) fn len(self) -> usize {
        match self {
            Self::TrainClips => DESIGN.train_clips,
            Self::TrainImages => DESIGN.train_images,
            Self::TrainQuestions => DESIGN.train_questions,
            Self::HeldOut => DESIGN.held_out_clips,
            Self::Retrieval => DESIGN.retrieval_clips,
            Self::Count | Self::Colour | Self::Exists => DESIGN.question_images,
        }
    }
}

/// The json member of a sample.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    /// What the txt member says too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) caption: Option<String>,
    /// Of a clip only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) motion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) shape: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) colour: Option<String>,
    /// "red circle": shape and colour in one label.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) object: Option<String>,
    /// Of a picture only.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) objects: Vec<Placed>,
    pub(super) questions: Vec<Question>,
}

/// A figure of a picture, "grey" where it has no colour, with its centre and radius in 1/256 pixel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) shape: String,
    pub(super) colour: String,
    pub(super) centre: (i32, i32),
    pub(super) radius: i32,
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scene {
    Clip(Clip),
    Picture(Picture),
}

/// A sample before it is encoded.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) key: String,
    pub(super) scene: Scene,
    pub(super) pixels: Vec<u8>,
    pub(super) description: Description,
}

impl Sample {
    /// The visual member's extension and bytes.
    pub(super) fn encode(&self) -> Result<(&'static str, Vec<u8>), DataError> {
        match &self.scene {
            Scene::Clip(_) => Ok(("mp4", encode::mp4(&self.pixels)?)),
            Scene::Picture(_) => Ok(("jpg", encode::jpeg(&self.pixels)?)),
        }
    }
}

/// Sample `index` of a split.
pub(super) fn sample(seed: u64, split: Split, index: usize) -> Sample {
    let (folder, name) = split.place();
    let mut draws = Draws::new(seed, &format!("{folder}/{name}"), index as u64);
    let (scene, description) = match split {
        Split::TrainClips => compose::train_clip(&mut draws),
        Split::TrainImages => compose::train_image(&mut draws),
        Split::TrainQuestions => compose::train_question(&mut draws),
        Split::HeldOut => compose::held_out_clip(&mut draws, index),
        Split::Retrieval => compose::retrieval_clip(&mut draws, seed, index),
        Split::Count => compose::count(&mut draws, index),
        Split::Colour => compose::colour(&mut draws, index),
        Split::Exists => compose::exists(&mut draws, index),
    };
    let pixels = match &scene {
        Scene::Clip(clip) => clip.pixels(&mut draws),
        Scene::Picture(picture) => picture.pixels(&mut draws),
    };
    Sample { key: format!("{name}-{index:06}"), scene, pixels, description }
}
