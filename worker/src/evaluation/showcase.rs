//! Selects the samples that the report shows, with the texts that the model finds nearest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use vljepa_data::reader::LoadedSample;
use vljepa_recipes::schema::{Control, Task, TaskKind};

use super::labels::Labels;
use super::metrics::ranked;
use super::truth::label_texts;
use crate::evaluation::embed::Embedder;

/// Samples shown of the task with captions, and texts shown per sample. Other tasks show half as
/// many.
const SHOWN: (usize, usize) = (8, 3);

/// One sample in the report's grid.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shown {
    task: String,
    frames: Vec<String>,
    query: String,
    caption: String,
    /// Text that the model writes. `None` in a model that writes none.
    written: Option<String>,
    predictions: Vec<Prediction>,
    /// Whether the nearest text is the true one. `None` if none was compared.
    correct: Option<bool>,
}

/// A text and its similarity to the sample.
#[derive(Debug, Clone, Serialize)]
struct Prediction {
    text: String,
    score: f64,
}

/// Returns samples of a task whose samples have captions, with the nearest captions, then samples
/// of every question-answering task with their nearest answers. A model that writes texts also
/// writes theirs.
pub(super) fn samples(
    captioned: &Task,
    tasks: &[Task],
    embedder: &Embedder<'_>,
) -> anyhow::Result<Vec<Shown>> {
    let mut shown = captions(captioned, embedder)?;
    for task in tasks {
        if let TaskKind::QuestionAnswering { question_kind, candidates } = &task.kind
            && task.control == Control::None
        {
            let texts = label_texts(&task.kind, candidates, task.set.as_ref())?;
            let labels = Labels::of(texts, embedder, |texts| embedder.texts(texts))?;
            shown.extend(answers(task, question_kind.as_deref(), &labels, embedder)?);
        }
    }
    Ok(shown)
}

fn captions(task: &Task, embedder: &Embedder<'_>) -> anyhow::Result<Vec<Shown>> {
    let reader = embedder.reader_of(task)?;
    let options = embedder.load_options(task.frames);
    let count = reader.len().min(task.limit.unwrap_or(usize::MAX));
    let mut texts = Vec::new();
    let mut chosen = Vec::new();
    for index in 0..count {
        // A sample that cannot be read was logged when it was counted as wrong.
        let Ok((_, of_sample)) = reader.texts(index) else { continue };
        let Ok(Some(caption)) = of_sample.caption() else { continue };
        texts.push(caption.to_owned());
        // Choose samples spread over the set, so that the grid shows its variety.
        if index % count.div_ceil(SHOWN.0) == 0 {
            chosen.extend(reader.load(index, &options));
        }
    }
    // A VLM has no embeddings that would rank the captions of the whole set.
    let embeddings = if embedder.embeds() { embedder.texts(&texts)? } else { Vec::new() };
    let mut shown = Vec::new();
    for sample in &chosen {
        let input = [(sample, &*task.query)];
        let truth = sample.texts.caption().ok().flatten().unwrap_or_default().to_owned();
        let order = match embedder.embeds() {
            true => ranked(&embedder.samples(&input)?[0], &embeddings),
            false => Vec::new(),
        };
        let asked = (&*task.query, truth);
        let shown_of = entry(task, sample, options.frames, asked, &order, &texts)?;
        shown.push(Shown { written: written(embedder, &input)?, ..shown_of });
    }
    Ok(shown)
}

fn answers(
    task: &Task,
    kind: Option<&str>,
    labels: &Labels,
    embedder: &Embedder<'_>,
) -> anyhow::Result<Vec<Shown>> {
    let reader = embedder.reader_of(task)?;
    let options = embedder.load_options(task.frames);
    let mut shown = Vec::new();
    for index in 0..reader.len().min(SHOWN.0 / 2) {
        let Ok(sample) = reader.load(index, &options) else { continue };
        let mut asked = sample.texts.questions().unwrap_or_default().iter();
        let Some(question) = asked.find(|q| kind.is_none_or(|kind| q.kind == kind)) else {
            continue;
        };
        let input = [(&sample, question.question.as_str())];
        let order = labels.order(&labels.rows(embedder, &input)?[0]);
        let asked = (question.question.as_str(), question.answer.clone());
        let shown_of = entry(task, &sample, options.frames, asked, &order, &labels.names)?;
        shown.push(Shown { written: written(embedder, &input)?, ..shown_of });
    }
    Ok(shown)
}

/// Text that the model writes about one sample, if it writes texts.
fn written(
    embedder: &Embedder<'_>,
    input: &[(&LoadedSample, &str)],
) -> anyhow::Result<Option<String>> {
    if embedder.writes() { Ok(embedder.answers(input)?.pop()) } else { Ok(None) }
}

fn entry(
    task: &Task,
    sample: &LoadedSample,
    frames: usize,
    (query, truth): (&str, String),
    order: &[(usize, f64)],
    names: &[String],
) -> anyhow::Result<Shown> {
    let nearest = order.iter().take(SHOWN.1);
    Ok(Shown {
        task: task.name.clone(),
        frames: pictures(sample, frames)?,
        query: query.to_owned(),
        correct: order.first().map(|&(i, _)| names[i] == truth),
        caption: truth,
        written: None,
        predictions: nearest
            .map(|&(i, score)| Prediction { text: names[i].clone(), score })
            .collect(),
    })
}

/// Encodes the frames as PNG data URLs. Equal consecutive frames, as of a picture, are encoded
/// once.
fn pictures(sample: &LoadedSample, frames: usize) -> anyhow::Result<Vec<String>> {
    let len = sample.frames.len() / frames.max(1);
    let side = u32::try_from((len / 3).isqrt())?;
    let mut urls: Vec<String> = Vec::new();
    for frame in sample.frames.chunks_exact(len) {
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        image::ImageEncoder::write_image(
            encoder,
            frame,
            side,
            side,
            image::ExtendedColorType::Rgb8,
        )?;
        urls.push(format!("data:image/png;base64,{}", STANDARD.encode(&png)));
    }
    urls.dedup();
    Ok(urls)
}
