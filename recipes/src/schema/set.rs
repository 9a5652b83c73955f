//! Files under `recipes/evaluate/sets`: evaluation sets as their authors publish them.
//!
//! A set names its annotation files, its pictures or videos, and the counts that they must have. A
//! task of `evaluation.tasks` measures it with `set: FILE` instead of `shards`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Evaluation set in files as published, on a disk that all nodes share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSet {
    /// Name of the set: up to 100 letters, digits, `-` and `_`. A task without `name` takes it. No
    /// default.
    pub name: String,
    /// Where the annotations and the pictures or videos are published, for people. No default.
    pub source: String,
    /// Licence of the set, as its authors state it. Default: `null`, not known.
    #[serde(default)]
    pub licence: Option<String>,
    /// Folder that holds the set. A relative path starts at the working directory. No default.
    pub root: PathBuf,
    /// Published format, with the names of its files. No default.
    pub format: SetFormat,
    /// Counts that the files must have. Default: none is checked.
    #[serde(default)]
    pub expect: Expected,
    /// Whether the files may hold fewer samples, questions or labels than expected, as a copy from
    /// which videos were withdrawn. Our default: false, because a score of a part is no score of
    /// the set.
    #[serde(default)]
    pub allow_subset: bool,
}

/// Counts of a set. A count that differs is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expected {
    /// Number of samples: pictures, clips or triplets. Default: not checked.
    pub samples: Option<usize>,
    /// Number of questions. A picture may have several. Default: not checked.
    pub questions: Option<usize>,
    /// Number of labels or candidate answers. Default: not checked.
    pub labels: Option<usize>,
    /// Number of annotations of long videos. Default: not checked.
    pub annotations: Option<usize>,
    /// Counts that stem from papers and were not counted in the published files. If one of them
    /// differs, a warning says so. Default: none.
    pub unverified: Vec<Count>,
    /// Other counts that the set is known to have, and what they mean. They explain an error.
    /// Default: none.
    pub known: Vec<KnownCount>,
}

/// What is counted of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// Pictures, clips or triplets.
    Samples,
    /// Questions about the samples.
    Questions,
    /// Labels or candidate answers.
    Labels,
    /// Annotations of long videos.
    Annotations,
}

impl Count {
    /// All counts.
    pub const ALL: [Self; 4] = [Self::Samples, Self::Questions, Self::Labels, Self::Annotations];

    /// Name of the key, which is also a word of messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Questions => "questions",
            Self::Labels => "labels",
            Self::Annotations => "annotations",
        }
    }
}

impl Expected {
    /// The expected value of a count, if it is checked.
    #[must_use]
    pub fn of(&self, count: Count) -> Option<usize> {
        match count {
            Count::Samples => self.samples,
            Count::Questions => self.questions,
            Count::Labels => self.labels,
            Count::Annotations => self.annotations,
        }
    }
}

/// A count that other copies of a set have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownCount {
    /// What is counted.
    pub count: Count,
    /// The number.
    pub is: usize,
    /// Which copy has this number, and what to do. It follows "this is the number of".
    pub means: String,
}

/// What a set of instructional videos is labelled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labelled {
    /// Each segment of a video with its step.
    Steps,
    /// Each whole video with its task.
    Tasks,
}

/// Published format of a set, with the names of its files below `root`.
///
/// `videos` and `images` are templates: `{field}` stands for a field of the annotation, and
/// `{field:06}` for the field with zeros in front, up to 6 characters. A template of videos that
/// ends in `.*` stands for the first of mp4, mkv, webm, avi and mov that exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SetFormat {
    /// ImageNet: one folder of pictures per class, named by its WordNet id.
    ImageFolders {
        /// Folder that holds the folders.
        images: PathBuf,
        /// Lines of an id and its names, separated by commas, of which the first is the label's
        /// text (`LOC_synset_mapping.txt`).
        names: PathBuf,
    },
    /// Something-Something v2.
    SomethingSomething {
        /// JSON list of `{id, template, …}`.
        annotations: PathBuf,
        /// JSON map from each label to its number.
        labels: PathBuf,
        /// Videos; fields: `id`.
        videos: String,
    },
    /// Kinetics.
    Kinetics {
        /// CSV with `label`, `youtube_id`, `time_start`, `time_end`.
        annotations: PathBuf,
        /// Clips, already cut; fields: those columns.
        videos: String,
    },
    /// EPIC-KITCHENS-100: the label of a segment is its pair of verb class and noun class.
    EpicKitchens {
        /// CSV of segments (`EPIC_100_validation.csv`).
        annotations: PathBuf,
        /// CSV of verb classes (`id`, `key`).
        verbs: PathBuf,
        /// CSV of noun classes (`id`, `key`).
        nouns: PathBuf,
        /// Whole videos; fields: `participant_id`, `video_id`.
        videos: String,
    },
    /// Keystep recognition of Ego-Exo4D.
    EgoExo4dKeysteps {
        /// JSON with `segments` (`keystep_segment_val.json`).
        segments: PathBuf,
        /// CSV with `label_id` and `step_name` (`label_mapping.csv`).
        labels: PathBuf,
        /// Videos; fields: `ego_segment_name`, `take_name`, `take_uid`.
        videos: String,
        /// Whether the videos are cut to the segments. Default: true.
        #[serde(default = "yes")]
        trimmed: bool,
    },
    /// Atomic descriptions of Ego-Exo4D: what happens at points of long videos.
    EgoExo4dDescriptions {
        /// JSON with `annotations` (`atomic_descriptions_val.json`).
        descriptions: PathBuf,
        /// JSON list of the takes (`takes.json`).
        takes: PathBuf,
        /// Values of `parent_task_name` of the takes that are measured.
        tasks: Vec<String>,
        /// Whole videos; fields: `take_name`, `take_uid`, `root_dir`, and `ego`, which is the file
        /// name of the first-person video.
        videos: String,
    },
    /// COIN.
    Coin {
        /// `COIN.json`.
        annotations: PathBuf,
        /// Whole videos; fields: `video_id`, `class`, `recipe_type`.
        videos: String,
        /// What the labels are.
        labelled: Labelled,
    },
    /// `CrossTask`.
    CrossTask {
        /// Blocks of five lines (`tasks_primary.txt`).
        tasks: PathBuf,
        /// CSV without a header: task, video, URL (`videos_val.csv`).
        list: PathBuf,
        /// CSV of a video's segments without a header: step, start, end; fields: `task`,
        /// `video_id`.
        segments: String,
        /// Whole videos; fields: `task`, `video_id`.
        videos: String,
        /// What the labels are.
        labelled: Labelled,
    },
    /// CSV with a video and a caption per row: MSR-VTT, MSVD, `YouCook2`, PVD.
    CaptionTable {
        /// The CSV.
        table: PathBuf,
        /// Columns that identify a clip. Default: `[video_id]`.
        #[serde(default = "video_id")]
        key: Vec<String>,
        /// Column of the caption.
        caption: String,
        /// Text between the captions of a video in one cell. Default: `null`, a cell is a caption.
        #[serde(default)]
        separator: Option<String>,
        /// Columns of start and end in seconds. Default: `null`, the clips are cut.
        #[serde(default)]
        seconds: Option<[String; 2]>,
        /// Videos; fields: the columns.
        videos: String,
    },
    /// `DiDeMo`: the descriptions of a video, joined, are its caption.
    Didemo {
        /// JSON list of `{video, description, …}` (`test_data.json`).
        annotations: PathBuf,
        /// Lines of the names of the videos that are measured. Default: `null`, all.
        #[serde(default)]
        list: Option<PathBuf>,
        /// Seconds at the start of a video that were described. Default: `null`, all.
        #[serde(default)]
        seconds: Option<f64>,
        /// Videos; fields: `video`, and `stem`, which is `video` without its extension.
        videos: String,
    },
    /// `ActivityNet` Captions: the sentences of a video, joined, are its caption.
    ActivityNetCaptions {
        /// JSON map from each video to `{sentences, …}` (`val_1.json`).
        annotations: PathBuf,
        /// Videos; fields: `video_id`.
        videos: String,
    },
    /// DREAM-1K.
    Dream1k {
        /// Lines of JSON (`DREAM-1k.jsonl`).
        annotations: PathBuf,
        /// Videos; fields: `vid`, `idx`.
        videos: String,
    },
    /// Video Detailed Captions: lines of JSON with several captions of a video.
    Vdc {
        /// Lines of JSON (`VDC_1k.jsonl`).
        annotations: PathBuf,
        /// Field of the caption; dots lead through nested objects.
        caption: String,
        /// Videos; fields: `video_id`, `video_name`.
        videos: String,
    },
    /// GQA.
    Gqa {
        /// JSON map from each question's id to the question (`testdev_balanced_questions.json`).
        questions: PathBuf,
        /// JSON list of all answers (`trainval_label2ans.json`).
        answers: PathBuf,
        /// Pictures; fields: `image_id`.
        images: String,
    },
    /// `TallyQA`: questions of kind `simple` and `complex`.
    TallyQa {
        /// JSON list of questions (`test.json`).
        questions: PathBuf,
        /// Pictures; fields: `image`, as published with its folder.
        images: String,
    },
    /// POPE: questions whose kind is the name of their file.
    Pope {
        /// Lines of JSON (`coco_pope_random.json`, …).
        random: PathBuf,
        /// The same with objects that are frequent.
        popular: PathBuf,
        /// The same with objects that often occur together.
        adversarial: PathBuf,
        /// Pictures; fields: `image`.
        images: String,
    },
    /// `POPEv2`.
    PopeV2 {
        /// JSON list of `{image_name, query, label, …}`.
        questions: PathBuf,
        /// Pictures; fields: `image_name`.
        images: String,
    },
    /// CLEVR.
    Clevr {
        /// JSON with `questions` (`CLEVR_val_questions.json`).
        questions: PathBuf,
        /// Pictures; fields: `image_filename`.
        images: String,
    },
    /// WorldPrediction-WM: pictures before and after an action, and clips of several actions. The
    /// form of the published annotations is not documented, so this is a form of ours.
    WorldPrediction {
        /// JSON list of `{id, initial, final, candidates, answer}`: two pictures, a list of
        /// actions, and the number of the right one, counted from 0. An action is the path of a
        /// clip, or `{video, start, end}` with seconds.
        samples: PathBuf,
    },
    /// `SugarCrepe++`: triplets of texts in several files, each a subset.
    SugarCrepePp {
        /// JSON lists of `{id, caption, caption2, negative_caption}`.
        files: Vec<PathBuf>,
    },
    /// VISLA: triplets of texts in tab-separated files without quoting.
    Visla {
        /// `Generic_VISLA.tsv`.
        generic: PathBuf,
        /// `Spatial_VISLA.tsv`.
        spatial: PathBuf,
    },
}

fn yes() -> bool {
    true
}

fn video_id() -> Vec<String> {
    vec!["video_id".to_owned()]
}

/// What a set can be measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTexts {
    /// A label per sample, and the texts of all labels.
    Labels,
    /// Captions of the samples.
    Captions,
    /// Texts at points of long videos.
    Annotations,
    /// Questions with their answers, and all candidate answers.
    Questions,
    /// Pictures before and after an action, and clips of actions.
    Actions,
    /// Triplets of texts, without pictures.
    Triplets,
}

/// Template of a path: its key, its text, and the fields that it may name. `None` for the columns
/// of a table, which its header names.
pub type PathTemplate<'a> = (&'static str, &'a str, Option<&'static [&'static str]>);

impl SetFormat {
    /// Name of the format in a recipe.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ImageFolders { .. } => "image_folders",
            Self::SomethingSomething { .. } => "something_something",
            Self::Kinetics { .. } => "kinetics",
            Self::EpicKitchens { .. } => "epic_kitchens",
            Self::EgoExo4dKeysteps { .. } => "ego_exo4d_keysteps",
            Self::EgoExo4dDescriptions { .. } => "ego_exo4d_descriptions",
            Self::Coin { .. } => "coin",
            Self::CrossTask { .. } => "cross_task",
            Self::CaptionTable { .. } => "caption_table",
            Self::Didemo { .. } => "didemo",
            Self::ActivityNetCaptions { .. } => "activity_net_captions",
            Self::Dream1k { .. } => "dream1k",
            Self::Vdc { .. } => "vdc",
            Self::Gqa { .. } => "gqa",
            Self::TallyQa { .. } => "tally_qa",
            Self::Pope { .. } => "pope",
            Self::PopeV2 { .. } => "pope_v2",
            Self::Clevr { .. } => "clevr",
            Self::WorldPrediction { .. } => "world_prediction",
            Self::SugarCrepePp { .. } => "sugar_crepe_pp",
            Self::Visla { .. } => "visla",
        }
    }

    /// What the samples of the format hold beside their pictures or videos.
    #[must_use]
    pub fn texts(&self) -> SetTexts {
        match self {
            Self::ImageFolders { .. }
            | Self::SomethingSomething { .. }
            | Self::Kinetics { .. }
            | Self::EpicKitchens { .. }
            | Self::EgoExo4dKeysteps { .. }
            | Self::Coin { .. }
            | Self::CrossTask { .. } => SetTexts::Labels,
            Self::EgoExo4dDescriptions { .. } => SetTexts::Annotations,
            Self::CaptionTable { .. }
            | Self::Didemo { .. }
            | Self::ActivityNetCaptions { .. }
            | Self::Dream1k { .. }
            | Self::Vdc { .. } => SetTexts::Captions,
            Self::Gqa { .. }
            | Self::TallyQa { .. }
            | Self::Pope { .. }
            | Self::PopeV2 { .. }
            | Self::Clevr { .. } => SetTexts::Questions,
            Self::WorldPrediction { .. } => SetTexts::Actions,
            Self::SugarCrepePp { .. } | Self::Visla { .. } => SetTexts::Triplets,
        }
    }

    /// Templates of the paths of pictures, videos and their segments.
    #[must_use]
    pub fn templates(&self) -> Vec<PathTemplate<'_>> {
        fn one<'a>(
            key: &'static str,
            text: &'a str,
            fields: &'static [&'static str],
        ) -> Vec<PathTemplate<'a>> {
            vec![(key, text, Some(fields))]
        }
        match self {
            Self::ImageFolders { .. }
            | Self::WorldPrediction { .. }
            | Self::SugarCrepePp { .. }
            | Self::Visla { .. } => Vec::new(),
            Self::SomethingSomething { videos, .. } => one("videos", videos, &["id"]),
            Self::Kinetics { videos, .. } => {
                one("videos", videos, &["label", "youtube_id", "time_start", "time_end"])
            }
            Self::EpicKitchens { videos, .. } => {
                one("videos", videos, &["participant_id", "video_id"])
            }
            Self::EgoExo4dKeysteps { videos, .. } => {
                one("videos", videos, &["ego_segment_name", "take_name", "take_uid"])
            }
            Self::EgoExo4dDescriptions { videos, .. } => {
                one("videos", videos, &["take_name", "take_uid", "root_dir", "ego"])
            }
            Self::Coin { videos, .. } => {
                one("videos", videos, &["video_id", "class", "recipe_type"])
            }
            Self::CrossTask { segments, videos, .. } => {
                let fields: &[&str] = &["task", "video_id"];
                vec![("segments", segments, Some(fields)), ("videos", videos, Some(fields))]
            }
            Self::CaptionTable { videos, .. } => vec![("videos", videos, None)],
            Self::Didemo { videos, .. } => one("videos", videos, &["video", "stem"]),
            Self::ActivityNetCaptions { videos, .. } => one("videos", videos, &["video_id"]),
            Self::Dream1k { videos, .. } => one("videos", videos, &["vid", "idx"]),
            Self::Vdc { videos, .. } => one("videos", videos, &["video_id", "video_name"]),
            Self::Gqa { images, .. } => one("images", images, &["image_id"]),
            Self::TallyQa { images, .. } | Self::Pope { images, .. } => {
                one("images", images, &["image"])
            }
            Self::PopeV2 { images, .. } => one("images", images, &["image_name"]),
            Self::Clevr { images, .. } => one("images", images, &["image_filename"]),
        }
    }
}
