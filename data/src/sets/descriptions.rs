//! Descriptions of what happens at points of long videos: Ego-Exo4D.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::entries::Entries;
use super::files::Annotations;
use super::items::Template;
use super::{OpenSet, SetSample, SetVisual};
use crate::error::DataError;
use crate::texts::{Annotation, Texts};

/// Start of the names of the first-person cameras.
const EGO_CAMERA: &str = "aria";

/// Stream of a first-person camera that holds its colour video.
const EGO_STREAM: &str = "rgb";

/// A take of `takes.json`.
#[derive(Deserialize)]
struct Take {
    take_uid: String,
    take_name: String,
    root_dir: String,
    parent_task_name: Option<String>,
    is_dropped: Option<bool>,
    /// Camera → stream → `relative_path`, beside values of other kinds.
    #[serde(default)]
    frame_aligned_videos: Map<String, Value>,
}

impl Take {
    /// File name of the first-person video.
    fn ego(&self) -> Option<&str> {
        let mut cameras = self.frame_aligned_videos.iter();
        let (_, camera) = cameras.find(|(camera, _)| camera.starts_with(EGO_CAMERA))?;
        camera.get(EGO_STREAM)?.get("relative_path")?.as_str()?.rsplit('/').next()
    }
}

/// One pass of an annotator over a take.
#[derive(Deserialize)]
struct Pass {
    rejected: Option<bool>,
    #[serde(default)]
    descriptions: Vec<Description>,
}

#[derive(Deserialize)]
struct Description {
    text: Option<String>,
    timestamp: Option<f64>,
}

/// Atomic descriptions of Ego-Exo4D. The samples are the takes of `tasks` that have descriptions,
/// without takes that the authors dropped. Rejected passes and descriptions without text or time
/// are left out, and equal descriptions of several passes are one.
pub(super) fn ego_exo4d(
    root: &Path,
    descriptions: &Path,
    takes: &Path,
    tasks: &[String],
    videos: &str,
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct File {
        annotations: Entries<Vec<Pass>>,
    }
    let of_takes = Annotations::read(root, takes)?;
    let known: Vec<Take> = of_takes.json()?;
    check_tasks(&known, tasks).map_err(|reason| of_takes.wrong(reason))?;
    let known: BTreeMap<&str, &Take> =
        known.iter().map(|take| (take.take_uid.as_str(), take)).collect();
    let file = Annotations::read(root, descriptions)?;
    let template = Template { root, text: videos, annotations: &of_takes };
    let File { annotations: Entries(annotated) } = file.json()?;
    let mut set = OpenSet::default();
    for (uid, passes) in annotated {
        let take = known.get(uid.as_str());
        let take = take.ok_or_else(|| file.wrong(format!("the take {uid} is not in the takes")))?;
        let task = take.parent_task_name.as_ref();
        let annotations = annotations(passes);
        if take.is_dropped == Some(true)
            || !task.is_some_and(|task| tasks.contains(task))
            || annotations.is_empty()
        {
            continue;
        }
        let name = &take.take_name;
        let ego = take.ego().ok_or_else(|| {
            let what =
                format!("the take {name} has no {EGO_STREAM} video of an {EGO_CAMERA} camera");
            of_takes.wrong(what)
        })?;
        let path = template.path(&[
            ("take_name", name),
            ("take_uid", &uid),
            ("root_dir", &take.root_dir),
            ("ego", ego),
        ])?;
        let json = Map::from_iter([("annotations".to_owned(), json!(annotations))]);
        set.samples.push(SetSample {
            key: uid,
            visual: Some(SetVisual::of(path, None)),
            texts: Texts::of(Ok(None), Ok(json)),
        });
    }
    Ok(set)
}

/// Refuses tasks that no take has, because their takes would be missing without a word.
fn check_tasks(takes: &[Take], tasks: &[String]) -> Result<(), String> {
    let known: BTreeSet<&str> =
        takes.iter().filter_map(|take| take.parent_task_name.as_deref()).collect();
    match tasks.iter().find(|task| !known.contains(task.as_str())) {
        None => Ok(()),
        Some(task) => {
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            Err(format!("no take has the `parent_task_name` `{task}`; there are {known}"))
        }
    }
}

/// Distinct descriptions of all passes, in the order of time.
fn annotations(passes: Vec<Pass>) -> Vec<Annotation> {
    let kept = passes.into_iter().filter(|pass| pass.rejected != Some(true));
    let mut all: Vec<Annotation> = Vec::new();
    for Description { text, timestamp } in kept.flat_map(|pass| pass.descriptions) {
        let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        if let (Some(text), Some(t)) = (text, timestamp)
            && t >= 0.0
        {
            all.push(Annotation { t, text });
        }
    }
    all.sort_by(|a, b| a.t.total_cmp(&b.t).then_with(|| a.text.cmp(&b.text)));
    all.dedup();
    all
}
