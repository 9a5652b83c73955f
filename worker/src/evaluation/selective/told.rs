//! What the decoded texts tell about videos, against their annotations.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use vljepa_data::Annotation;
use vljepa_recipes::protocol::{
    DecodedEmbedding, DecodingCurve, DecodingCurves, DecodingPoints, DecodingScore,
};
use vljepa_recipes::schema::{CaptionMetric, SelectiveDecoding};

use super::{VideoStream, count, decodes, mean, nearest, saving};
use crate::evaluation::captioning::most_frequent_reference;
use crate::evaluation::captions::{self, Captioned, SetScore};

/// The curves, in their order.
const CURVES: [(DecodingPoints, DecodedEmbedding); 4] = [
    (DecodingPoints::Uniform, DecodedEmbedding::Exact),
    (DecodingPoints::Uniform, DecodedEmbedding::Mean),
    (DecodingPoints::Adaptive, DecodedEmbedding::Exact),
    (DecodingPoints::Adaptive, DecodedEmbedding::Mean),
];

/// Embeddings that the metrics decode: the paper finds the mean better for both kinds of points.
const OF_METRICS: DecodedEmbedding = DecodedEmbedding::Mean;

/// Texts for the annotations of one video, for each curve and frequency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Duration in seconds. `None` if the video cannot be read.
    duration_s: Option<f64>,
    annotations: Vec<String>,
    /// Distinct texts that were decoded.
    texts: Vec<String>,
    /// One of each curve and frequency, in the order of [`settings`].
    settings: Vec<OfSetting>,
}

/// Texts at one frequency of a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OfSetting {
    /// Number of points.
    decodes: usize,
    /// Number of the text that is nearest in time to each annotation.
    texts: Vec<usize>,
}

/// Each curve with each frequency, the frequencies of a curve one after the other.
fn settings(
    keys: &SelectiveDecoding,
) -> impl Iterator<Item = (DecodingPoints, DecodedEmbedding, f64)> {
    CURVES.into_iter().flat_map(|(points, embedding)| {
        keys.frequencies.iter().map(move |&frequency| (points, embedding, frequency))
    })
}

impl Told {
    /// Decodes the texts that are nearest to the annotations of a video. `write` decodes embeddings
    /// that differ from each other, and means have length one with `normalise`.
    ///
    /// # Errors
    /// Fails if `write` does.
    pub fn of(
        stream: &VideoStream,
        annotations: &[Annotation],
        keys: &SelectiveDecoding,
        normalise: bool,
        write: impl FnOnce(&[Vec<f32>]) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<Self> {
        let mut distinct = Distinct::new(stream, normalise);
        let mut chosen = BTreeMap::new();
        let mut all = Vec::new();
        for (points, embedding, frequency) in settings(keys) {
            let decodes = chosen
                .entry((points, frequency.to_bits()))
                .or_insert_with(|| decodes(points, stream, count(frequency, stream)));
            let times: Vec<f64> = decodes.iter().map(|decode| stream.times[decode.row]).collect();
            let text = |annotation: &Annotation| {
                let decode = &decodes[nearest(&times, annotation.t)];
                distinct.number(match embedding {
                    DecodedEmbedding::Exact => decode.row..decode.row + 1,
                    DecodedEmbedding::Mean => decode.rows.clone(),
                })
            };
            let texts = annotations.iter().map(text).collect();
            all.push(OfSetting { decodes: decodes.len(), texts });
        }
        Ok(Self {
            duration_s: Some(stream.duration_s),
            annotations: annotations.iter().map(|annotation| annotation.text.clone()).collect(),
            texts: write(&distinct.embeddings)?,
            settings: all,
        })
    }

    /// Tells nothing about a video that cannot be read, so that its annotations count as 0.
    #[must_use]
    pub fn nothing(annotations: &[Annotation]) -> Self {
        let annotations = annotations.iter().map(|annotation| annotation.text.clone()).collect();
        Self { duration_s: None, annotations, texts: Vec::new(), settings: Vec::new() }
    }

    /// The annotations with the texts of a setting.
    fn captioned(&self, setting: usize) -> impl Iterator<Item = Captioned> {
        let texts = self.settings.get(setting).map(|of_setting| &of_setting.texts);
        self.annotations.iter().enumerate().map(move |(number, annotation)| {
            let text = texts.map(|texts| self.texts[texts[number]].clone());
            Captioned { hypothesis: text.unwrap_or_default(), references: vec![annotation.clone()] }
        })
    }
}

/// Embeddings that differ from each other.
struct Distinct<'a> {
    stream: &'a VideoStream,
    normalise: bool,
    of_rows: BTreeMap<[usize; 2], usize>,
    of_content: BTreeMap<[u8; blake3::OUT_LEN], usize>,
    embeddings: Vec<Vec<f32>>,
}

impl<'a> Distinct<'a> {
    fn new(stream: &'a VideoStream, normalise: bool) -> Self {
        let (of_rows, of_content) = (BTreeMap::new(), BTreeMap::new());
        Self { stream, normalise, of_rows, of_content, embeddings: Vec::new() }
    }

    /// Number of the mean of these embeddings of the stream. That of one is itself.
    fn number(&mut self, rows: Range<usize>) -> usize {
        let key = [rows.start, rows.end];
        if let Some(&number) = self.of_rows.get(&key) {
            return number;
        }
        let embedding = match &self.stream.embeddings[rows] {
            [one] => one.clone(),
            several => mean(several, self.normalise),
        };
        let content = *blake3::hash(bytemuck::cast_slice(&embedding)).as_bytes();
        let next = self.embeddings.len();
        let number = *self.of_content.entry(content).or_insert(next);
        if number == next {
            self.embeddings.push(embedding);
        }
        self.of_rows.insert(key, number);
        number
    }
}

/// Number of settings of a task.
#[must_use]
pub fn number_of_settings(keys: &SelectiveDecoding) -> usize {
    CURVES.len() * keys.frequencies.len()
}

/// CIDEr of the texts of a setting over all videos. The weights of words are those of all
/// annotations. Its interval takes annotations of one video as independent.
///
/// # Errors
/// Fails if the tokenizer of captions cannot be built.
pub fn cider(told: &[Told], setting: usize) -> anyhow::Result<SetScore> {
    let all: Vec<Captioned> = told.iter().flat_map(|told| told.captioned(setting)).collect();
    let [cider] = captions::scores(&all, [CaptionMetric::Cider])?;
    Ok(cider)
}

/// CIDEr of the most frequent annotation as the text for all annotations.
///
/// # Errors
/// Fails if the tokenizer of captions cannot be built.
pub fn baseline(told: &[Told]) -> anyhow::Result<f64> {
    let mut all: Vec<Captioned> = told.iter().flat_map(|told| told.captioned(0)).collect();
    let constant = most_frequent_reference(&all).to_owned();
    all.iter_mut().for_each(|captioned| captioned.hypothesis.clone_from(&constant));
    let [cider] = captions::scores(&all, [CaptionMetric::Cider])?;
    Ok(cider.value)
}

/// The curves of a task, from the CIDEr of each setting.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "videos have fewer windows than 2^52")]
pub fn curves(told: &[Told], keys: &SelectiveDecoding, ciders: &[SetScore]) -> DecodingCurves {
    let seconds: f64 = told.iter().filter_map(|told| told.duration_s).sum();
    let decodes = |setting: usize| {
        let of_video = |told: &Told| Some(told.settings.get(setting)?.decodes);
        told.iter().filter_map(of_video).sum::<usize>() as f64
    };
    let score = |(setting, ((_, _, frequency), &cider))| {
        let decodes_per_s = if seconds > 0.0 { decodes(setting) / seconds } else { 0.0 };
        let SetScore { value: cider, interval } = cider;
        DecodingScore { frequency, decodes_per_s, cider, interval }
    };
    let scores: Vec<DecodingScore> = settings(keys).zip(ciders).enumerate().map(score).collect();
    let of_curves = scores.chunks(keys.frequencies.len().max(1)).zip(CURVES);
    let curves = of_curves.map(|(scores, (points, embedding))| DecodingCurve {
        points,
        embedding,
        scores: scores.to_vec(),
    });
    let mut curves = DecodingCurves {
        videos: told.len(),
        annotations: told.iter().map(|told| told.annotations.len()).sum(),
        seconds,
        compare_at: keys.compare_at,
        saving: None,
        curves: curves.collect(),
    };
    let pair = |score: &DecodingScore| (score.decodes_per_s, score.cider);
    let of = |points| scores_of(&curves, points).iter().map(pair).collect::<Vec<_>>();
    let [uniform, adaptive] = [DecodingPoints::Uniform, DecodingPoints::Adaptive].map(of);
    curves.saving = compared(&curves, DecodingPoints::Uniform)
        .and_then(|score| saving(score.cider, &uniform, &adaptive));
    curves
}

/// Scores at the frequencies of one kind of points, with the embeddings of the metrics.
fn scores_of(curves: &DecodingCurves, points: DecodingPoints) -> &[DecodingScore] {
    let mut all = curves.curves.iter();
    let curve = all.find(|curve| (curve.points, curve.embedding) == (points, OF_METRICS));
    curve.map_or(&[], |curve| &curve.scores)
}

/// Score at the frequency at which uniform and adaptive points are compared.
pub(super) fn compared(curves: &DecodingCurves, points: DecodingPoints) -> Option<&DecodingScore> {
    let same = |score: &&DecodingScore| score.frequency.to_bits() == curves.compare_at.to_bits();
    scores_of(curves, points).iter().find(same)
}

#[cfg(test)]
mod tests;
