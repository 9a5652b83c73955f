//! Measures how long a trained model takes to answer, with the protocol of paper §4.4: frames of
//! one video are loaded once, and the same prompt is answered many times.

use std::path::Path;

use serde_json::json;
use vljepa_data::reader::load_file;
use vljepa_kernels::Tensor;

use crate::evaluation::embed::{Embedder, Timed};
use crate::inference::{Loaded, caption_query};
use crate::rank::session::Session;

/// How often a prompt is answered, and about how many frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Protocol {
    /// Number of frames of the video.
    pub(crate) frames: usize,
    /// Number of measured answers.
    pub(crate) repeats: usize,
}

/// Answers one prompt about a video `repeats` times, after once without measuring. Returns mean and
/// standard deviation of the seconds of each part as JSON.
///
/// # Errors
/// Fails if there is no checkpoint, the model is a dual encoder, or the file cannot be decoded.
pub(crate) fn latency(
    session: &Session,
    step: Option<u64>,
    file: &Path,
    Protocol { frames, repeats }: Protocol,
    query: Option<&str>,
) -> anyhow::Result<String> {
    let (model, state) = Loaded::of(session, step)?;
    let embedder = Embedder::new(&session.recipe, model.embeds())?;
    let query = query.map_or_else(|| caption_query(session), str::to_owned);
    let sample = load_file(file, &embedder.load_options(Some(frames)))?;
    let size = session.recipe.model.image_size;
    let shown = Tensor::from_u8(sample.frames, &[1, frames, size, size, 3]);
    let shown = shown.on(session.device)?;
    // The first answer compiles kernels and chooses algorithms of products.
    let Timed { text, .. } = embedder.timed_answer(shown.view(), &query)?;
    let mut timed = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        timed.push(embedder.timed_answer(shown.view(), &query)?);
    }
    let of = |part: fn(&Timed) -> Option<f64>| {
        let seconds: Option<Vec<f64>> = timed.iter().map(part).collect();
        seconds.map(|seconds| spread(&seconds))
    };
    Ok(json!({
        "step": state.step,
        "device": session.device_name,
        "frames": frames,
        "repeats": repeats,
        "query": query,
        "text": text,
        "query_embedding": of(|t| Some(t.query_s)),
        "encoder": of(|t| Some(t.encoder_s)),
        "decoder": of(|t| t.decoder_s),
        "total": of(|t| Some(t.query_s + t.encoder_s + t.decoder_s.unwrap_or(0.0))),
    })
    .to_string())
}

/// Mean and standard deviation, of which the second is 0 for one value.
#[expect(clippy::cast_precision_loss, reason = "repeats are few")]
fn spread(seconds: &[f64]) -> serde_json::Value {
    let n = seconds.len() as f64;
    let mean = seconds.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = seconds.iter().map(|s| (s - mean).powi(2)).sum();
    json!({"mean_s": mean, "sd_s": (squares / (n - 1.0).max(1.0)).sqrt()})
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn mean_and_standard_deviation_are_those_of_a_sample() {
        let found = spread(&[1.0, 2.0, 3.0]);
        assert_eq!((found["mean_s"].as_f64(), found["sd_s"].as_f64()), (Some(2.0), Some(1.0)));
        assert_eq!(spread(&[4.0])["sd_s"].as_f64(), Some(0.0));
    }
}
