//! Embeds long videos, window by window. A video is a chunk of its own.

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vljepa_data::Annotation;
use vljepa_data::reader::LoadedSample;
use vljepa_recipes::schema::{SelectiveDecoding, Task};

use super::lost::Lost;
use super::{Asked, Measured, Part, Scope, Shared};
use crate::evaluation::embed::{ROWS, apply_control};
use crate::evaluation::progress::Progress;
use crate::evaluation::selective::{VideoStream, windows};
use crate::evaluation::truth::{Question, Truth};

/// What is embedded of each video.
pub(in crate::evaluation) struct VideoRequest<'a> {
    pub(in crate::evaluation) keys: &'a SelectiveDecoding,
    /// Embedding of all windows, without the model.
    pub(in crate::evaluation) constant: Option<Vec<f32>>,
}

impl VideoRequest<'_> {
    fn identity(&self) -> String {
        let SelectiveDecoding { window_s, stride_s, .. } = self.keys;
        format!("embeddings of {window_s} s each {stride_s} s")
    }
}

impl Shared<'_> {
    /// Embeds the windows of all videos of a task, and returns what `each` makes of each video and
    /// its annotations. A video that cannot be read has no embeddings.
    ///
    /// # Errors
    /// Fails on all ranks if a sample lacks annotations, or the model or `each` fails on one of
    /// them.
    pub(in crate::evaluation) fn videos<T: Serialize + DeserializeOwned>(
        &self,
        task: &Task,
        truth: &Truth<'_>,
        request: &VideoRequest<'_>,
        each: impl Fn(&[Annotation], Option<&VideoStream>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Measured<T>> {
        let scope = self.scope(task, truth)?;
        let parts = self.in_turn(scope.own_videos(request, each))?;
        // The frequencies are no part of what is embedded, but they determine the scores.
        let SelectiveDecoding { frequencies, compare_at, .. } = request.keys;
        let asked = format!("{}, {frequencies:?}, {compare_at}", request.identity());
        scope.measured(parts, &asked)
    }
}

impl Scope<'_> {
    /// What this rank makes of its videos.
    fn own_videos<T>(
        &self,
        request: &VideoRequest<'_>,
        each: impl Fn(&[Annotation], Option<&VideoStream>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<Part<T>>> {
        let count = self.count()?;
        let ranks = self.shared.collectives.world_size();
        let mut progress = Progress::start(&self.task.name, count);
        let mut parts = Vec::new();
        for index in self.shared.own_chunks(count, 1).map(|range| range.start) {
            let asked = self.asked(index)?;
            let (annotations, stream) = self.video(index, &asked, request)?;
            let value = each(&annotations, stream.as_ref().ok())?;
            let questions = *blake3::hash(&postcard::to_stdvec(&asked.questions)?).as_bytes();
            let unreadable = stream.err().into_iter().collect();
            parts.push(Part { value, unreadable, questions });
            progress.at((index + ranks).min(count));
        }
        Ok(parts)
    }

    /// Annotations of a video, and its embeddings from the store or the model, or the reason why it
    /// cannot be read. A video without texts has one annotation, which nothing tells.
    fn video(
        &self,
        index: usize,
        asked: &Asked,
        request: &VideoRequest<'_>,
    ) -> anyhow::Result<(Vec<Annotation>, Result<VideoStream, String>)> {
        let (question, reason) = (asked.questions.first(), asked.lost.clone());
        let Some(Question { query, truth, .. }) = question else {
            let unknown = Annotation { t: 0.0, text: String::new() };
            return Ok((vec![unknown], Err(reason.unwrap_or_default())));
        };
        let annotations = serde_json::from_str(truth).context("the annotations do not parse")?;
        let options = self.shared.embedder.load_options(self.task.frames);
        let (set, control) = (&self.reader.identity().version, self.task.control);
        let key = ("video", set, index, options.frames, control, request.identity(), query);
        let stream =
            self.shared.store.get(&key, || match self.stream(index, query, request)? {
                Ok(stream) => Ok((Ok(stream), true)),
                Err(Lost { reason, lasting }) => Ok((Err(reason), lasting)),
            })?;
        Ok((annotations, stream))
    }

    /// Embeds the windows of a video, of which at most [`ROWS`] are in memory.
    fn stream(
        &self,
        index: usize,
        query: &str,
        request: &VideoRequest<'_>,
    ) -> anyhow::Result<Result<VideoStream, Lost>> {
        let embedder = self.shared.embedder;
        let options = embedder.load_options(self.task.frames);
        let mut video = match self.reader.video(index) {
            Ok(video) => video,
            Err(error) => return Ok(Err(Lost::of(&error))),
        };
        let SelectiveDecoding { window_s, stride_s, .. } = *request.keys;
        let duration_s = video.duration_s();
        let windows = windows(duration_s, window_s, stride_s);
        let centre = |window: &std::ops::Range<f64>| f64::midpoint(window.start, window.end);
        let times = windows.iter().map(centre).collect();
        let mut embeddings = Vec::with_capacity(windows.len());
        for windows in windows.chunks(ROWS) {
            if let Some(constant) = &request.constant {
                embeddings.extend(vec![constant.clone(); windows.len()]);
                continue;
            }
            let mut samples = match video.windows(windows, &options) {
                Ok(samples) => samples,
                Err(error) => return Ok(Err(Lost::of(&error))),
            };
            for sample in &mut samples {
                apply_control(self.task.control, sample, options.frames);
            }
            let asked: Vec<(&LoadedSample, &str)> =
                samples.iter().map(|sample| (sample, query)).collect();
            embeddings.extend(embedder.samples(&asked)?);
        }
        Ok(Ok(VideoStream { duration_s, times, embeddings }))
    }
}
