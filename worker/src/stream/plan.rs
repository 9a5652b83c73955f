//! Settings of a stream, from its job and the recipe.

use vljepa_recipes::protocol::{StreamJob, StreamStart};
use vljepa_recipes::schema::{SelectiveDecoding, TaskKind};

use super::feed::Request;
use crate::evaluation::embed::Embedder;
use crate::inference::caption_query;
use crate::rank::session::Session;

/// Settings of the stream: the job's, or else those of the recipe's selective-decoding task.
pub(super) fn plan(
    session: &Session,
    job: &StreamJob,
    embedder: &Embedder<'_>,
    step: u64,
) -> (StreamStart, Request) {
    let tasks = session.recipe.evaluation.tasks.iter();
    let mut selective = tasks.filter_map(|task| match &task.kind {
        TaskKind::SelectiveDecoding(keys) => Some((task, keys)),
        _ => None,
    });
    let (task, keys) = selective.next().unzip();
    let default = SelectiveDecoding::default();
    let keys = keys.unwrap_or(&default);
    let options = embedder.load_options(job.frames.or(task.and_then(|task| task.frames)));
    let query = job.query.clone().or_else(|| task.map(|task| task.query.clone()));
    let start = StreamStart {
        step,
        codec: String::new(),
        query: query.unwrap_or_else(|| caption_query(session)),
        window_s: job.window_s.unwrap_or(keys.window_s),
        stride_s: job.stride_s.unwrap_or(keys.stride_s),
        frames: options.frames,
        smoothing: job.smoothing,
        threshold: job.threshold,
    };
    let StreamStart { window_s, stride_s, .. } = start;
    let (video, speed) = (job.video.clone(), job.speed);
    (start, Request { video, speed, window_s, stride_s, options })
}

/// Number of windows that a change may take: those that overlap it, and those until the segment
/// after it is steady.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and both times are positive"
)]
pub(super) fn patience(start: &StreamStart) -> usize {
    start.smoothing.saturating_add((start.window_s / start.stride_s).ceil() as usize)
}
