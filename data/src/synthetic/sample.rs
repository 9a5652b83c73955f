//! Samples of each split. A sample is a pure function of (seed, split, index).

use serde::{Deserialize, Serialize};

use super::compose;
use super::design::DESIGN;
use super::draws::Draws;
use super::encode;
use super::scene::{Clip, Picture};
use crate::error::DataError;
use crate::texts::Question;

/// Split of the set, which decides what its tars contain.
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

    /// Folder of the split, and the file name without number and extension.
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

    /// Number of samples at scale 1.
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

/// Contents of a sample's json member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    /// Caption, the same text as in the txt member.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) caption: Option<String>,
    /// Name of the motion. Only clips have one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) motion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) shape: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) colour: Option<String>,
    /// Colour and shape in one label, such as "red circle".
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) object: Option<String>,
    /// Figures of a picture. Empty for a clip.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) objects: Vec<Placed>,
    pub(super) questions: Vec<Question>,
}

/// Figure of a picture, with its centre and radius in 1/256 pixel. The colour is "grey" if it is
/// not in the palette, and the shape is "diamond" if it has no name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) shape: String,
    pub(super) colour: String,
    pub(super) centre: (i32, i32),
    pub(super) radius: i32,
}

/// Contents of the visual member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scene {
    Clip(Clip),
    Picture(Picture),
}

/// Sample before it is encoded.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) key: String,
    pub(super) scene: Scene,
    pub(super) pixels: Vec<u8>,
    pub(super) description: Description,
}

impl Sample {
    /// Extension and bytes of the visual member.
    pub(super) fn encode(&self) -> Result<(&'static str, Vec<u8>), DataError> {
        match &self.scene {
            Scene::Clip(_) => Ok(("mp4", encode::mp4(&self.pixels)?)),
            Scene::Picture(_) => Ok(("jpg", encode::jpeg(&self.pixels)?)),
        }
    }
}

/// Draws sample number `index` of a split.
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
