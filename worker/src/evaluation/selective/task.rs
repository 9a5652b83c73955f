//! Measures a task of selective decoding.

use rayon::prelude::*;
use vljepa_recipes::protocol::{DecodingCurves, DecodingPoints, Saving};
use vljepa_recipes::schema::{SelectiveDecoding, Task};

use super::told::{Told, baseline, cider, compared, curves, number_of_settings};
use crate::evaluation::chunks::videos::VideoRequest;
use crate::evaluation::chunks::{Measured, Shared};
use crate::evaluation::metrics::Score;
use crate::evaluation::truth::Truth;

/// Measures the curves of a task on all ranks. With `constant`, all windows have this embedding.
///
/// # Errors
/// Fails on all ranks if a sample lacks annotations, or the model fails on one of them.
pub(in crate::evaluation) fn measure(
    task: &Task,
    shared: &Shared<'_>,
    keys: &SelectiveDecoding,
    constant: Option<Vec<f32>>,
) -> anyhow::Result<(Measured<Told>, Vec<Score>, DecodingCurves)> {
    let (embedder, collectives) = (shared.embedder, shared.collectives);
    let truth = shared.agreed(Truth::load(task))?;
    let request = VideoRequest { keys, constant };
    let measured = shared.videos(task, &truth, &request, |annotations, stream| match stream {
        None => Ok(Told::nothing(annotations)),
        Some(stream) => {
            let write = |embeddings: &[Vec<f32>]| {
                let content = blake3::hash(bytemuck::cast_slice(&embeddings.concat()));
                let key = ("decoded", content.as_bytes());
                shared.store.get(&key, || Ok((embedder.captions(embeddings)?, true)))
            };
            Told::of(stream, annotations, keys, embedder.normalises(), write)
        }
    })?;
    let told = &measured.parts;
    // Each setting is scored by one rank.
    let settings: Vec<usize> = (0..number_of_settings(keys)).collect();
    let own = settings.iter().skip(collectives.rank()).step_by(collectives.world_size());
    let own: Vec<usize> = own.copied().collect();
    let own = own.par_iter().map(|&setting| cider(told, setting)).collect();
    let curves = curves(told, keys, &shared.in_turn(own)?);
    let scores = scores(&curves, shared.agreed(baseline(told))?);
    if collectives.rank() == 0 {
        warn_of_saving(task, &curves);
    }
    Ok((measured, scores, curves))
}

/// Scores in the order of [`Task::metrics`]. The last one is missing if there is no saving.
/// Says why the metric of the saving is missing.
fn warn_of_saving(task: &Task, curves: &DecodingCurves) {
    let name = &task.name;
    match curves.saving {
        Some(Saving { at_least: false, .. }) => {}
        Some(Saving { ratio, .. }) => tracing::warn!(
            "task {name}: its saving is at least {ratio:.1}, and no metric: adaptive points reach \
             the score even at the lowest frequency. Add lower `frequencies`"
        ),
        None => tracing::warn!(
            "task {name}: it has no saving. Adaptive points never reach the score that uniform \
             points have at {} decodes per second, or uniform points reach it even at the lowest \
             frequency",
            curves.compare_at
        ),
    }
}

fn scores(curves: &DecodingCurves, baseline: f64) -> Vec<Score> {
    let n = curves.annotations;
    let cider = |points| {
        let found = compared(curves, points);
        let value = found.map_or(0.0, |score| score.cider);
        let interval = found.and_then(|score| score.interval);
        Score { interval, ..Score::of_value(value, n, 0.0, baseline) }
    };
    let mut scores = vec![cider(DecodingPoints::Uniform), cider(DecodingPoints::Adaptive)];
    // Uniform points themselves save nothing. A lower bound is no score.
    let saving = curves.saving.filter(|saving| !saving.at_least);
    scores.extend(saving.map(|saving| Score::of_value(saving.ratio, n, 1.0, 1.0)));
    scores
}
