//! Sets whose videos have several sentences, which are joined to one paragraph: DiDeMo and
//! ActivityNet Captions, in the protocol of CLIP4Clip (arXiv 2104.08860).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::entries::Entries;
use super::files::Annotations;
use super::items::{Template, captioned};
use super::{OpenSet, SetVisual};
use crate::error::DataError;

/// `DiDeMo`. Videos come in the order of their first descriptions; with a list, only those in it.
pub(super) fn didemo(
    root: &Path,
    annotations: &Path,
    list: Option<&Path>,
    seconds: Option<f64>,
    videos: &str,
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Described {
        video: String,
        description: String,
    }
    let annotations = Annotations::read(root, annotations)?;
    let (mut order, mut texts) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
    for Described { video, description } in annotations.json::<Vec<Described>>()? {
        let of_video = texts.entry(video.clone()).or_default();
        if of_video.is_empty() {
            order.push(video);
        }
        of_video.push(description);
    }
    if let Some(list) = list {
        let file = Annotations::read(root, list)?;
        let measured: BTreeSet<&str> =
            file.text().lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if let Some(unknown) = measured.iter().find(|video| !texts.contains_key(**video)) {
            return Err(file.wrong(format!("the video `{unknown}` has no description")));
        }
        order.retain(|video| measured.contains(&video[..]));
    }
    let template = Template { root, text: videos, annotations: &annotations };
    let mut set = OpenSet::default();
    for video in order {
        let stem = video.rsplit_once('.').map_or(&*video, |(stem, _)| stem);
        let path = template.path(&[("video", &video), ("stem", stem)])?;
        let visual = SetVisual::of(path, seconds.map(|end| 0.0..end));
        let caption = paragraph(&texts[&video]);
        set.samples.push(captioned(video, visual, &[caption]));
    }
    Ok(set)
}

/// `ActivityNet` Captions.
pub(super) fn activity_net(
    root: &Path,
    annotations: &Path,
    videos: &str,
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Video {
        sentences: Vec<String>,
    }
    let annotations = Annotations::read(root, annotations)?;
    let template = Template { root, text: videos, annotations: &annotations };
    let Entries(database): Entries<Video> = annotations.json()?;
    let mut set = OpenSet::default();
    for (video, Video { sentences }) in database {
        let visual = SetVisual::of(template.path(&[("video_id", &video)])?, None);
        set.samples.push(captioned(video, visual, &[paragraph(&sentences)]));
    }
    Ok(set)
}

/// Sentences with one space between them.
fn paragraph(sentences: &[String]) -> String {
    let words = sentences.iter().flat_map(|sentence| sentence.split_whitespace());
    words.collect::<Vec<_>>().join(" ")
}
