//! One-shot jobs on a run: `ask`, `caption`, `search`, `evaluate`, `export`. Each starts one
//! worker, waits for its JSON result and prints it; `report` needs no worker.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::Job;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::ModelKind;

use super::call::{absolute, run_worker};
use super::train::{BRIEF_LOCK_TIMEOUT, lock};
use crate::cli::{self, OfStep};
use crate::error::LaunchError;
use crate::record::history::Scores;
use crate::record::shards;
use crate::{model_card, report, terminal};

/// Result of the job `ask`.
#[derive(Debug, Serialize, Deserialize)]
struct Answers {
    answers: Vec<Answer>,
    step: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    text: String,
    score: f64,
}

/// Result of the job `caption`.
#[derive(Debug, Serialize, Deserialize)]
struct Captions {
    captions: Vec<Caption>,
    step: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Caption {
    file: PathBuf,
    text: String,
}

/// Result of the job `search`.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    results: Vec<Sample>,
    step: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Sample {
    shard: String,
    key: String,
    caption: Option<String>,
    score: f64,
}

/// Result of the job `evaluate`.
#[derive(Debug, Serialize, Deserialize)]
struct Evaluated {
    scores: Scores,
    step: u64,
}

/// Result of the job `export`.
#[derive(Debug, Serialize, Deserialize)]
struct Exported {
    files: Vec<String>,
    step: u64,
    /// Reason why transformers cannot run the model, or `None` if it can.
    unsupported: Option<String>,
}

/// `vljepa-launch ask`: prints the candidate answers, best first, or the answer that a Y-decoder or
/// a VLM writes.
pub(crate) async fn ask(arguments: &cli::Ask) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    if !arguments.file.is_file() {
        return Err(path_error("the image or clip", &arguments.file, "is not a file"));
    }
    let answers = arguments.answers.iter().map(|answer| answer.trim().to_owned());
    let answers: Vec<_> = answers.filter(|answer| !answer.is_empty()).collect();
    if answers.is_empty() {
        if !writes(&directory)? {
            let why = "has no Y-decoder that could write an answer; give candidates with --answers";
            return Err(path_error("the run", &arguments.run, why));
        }
        let query = Some(arguments.question.clone());
        let job = (arguments.checkpoint, query, arguments.json);
        return write_texts(&directory, &[&arguments.file], job).await;
    }
    let job = Job::Ask {
        step: arguments.checkpoint.step,
        file: absolute(&arguments.file),
        question: arguments.question.clone(),
        answers,
    };
    let found: Answers = run_worker(&directory, &job).await?;
    if arguments.json {
        return show_json(&found);
    }
    let mut rows = vec![row(["rank", "answer", "score"])];
    rows.extend(found.answers.iter().enumerate().map(|(index, answer)| {
        vec![(index + 1).to_string(), answer.text.clone(), format!("{:.4}", answer.score)]
    }));
    terminal::result(&terminal::table(&rows));
    note_checkpoint(&directory, found.step);
    Ok(0)
}

/// `vljepa-launch caption`: prints what a Y-decoder or a VLM writes about each file.
pub(crate) async fn caption(arguments: &cli::Caption) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    if !writes(&directory)? {
        let why = "has no Y-decoder that could write captions; recipes/decoder.yaml trains one";
        return Err(path_error("the run", &arguments.run, why));
    }
    if let Some(missing) = arguments.files.iter().find(|file| !file.is_file()) {
        return Err(path_error("the image or clip", missing, "is not a file"));
    }
    let files: Vec<&PathBuf> = arguments.files.iter().collect();
    let job = (arguments.checkpoint, arguments.query.clone(), arguments.json);
    write_texts(&directory, &files, job).await
}

/// Prints the texts that the model of a run writes about files, given the checkpoint, the query and
/// whether to print JSON.
async fn write_texts(
    directory: &RunDirectory,
    files: &[&PathBuf],
    (OfStep { step }, query, as_json): (OfStep, Option<String>, bool),
) -> Result<u8, LaunchError> {
    let absolutes = files.iter().map(|file| absolute(file)).collect();
    let written: Captions =
        run_worker(directory, &Job::Caption { step, files: absolutes, query }).await?;
    if as_json {
        return show_json(&written);
    }
    let line = |(file, caption): (&&PathBuf, &Caption)| match files.len() {
        1 => caption.text.clone(),
        _ => format!("{}: {}", file.display(), caption.text),
    };
    let lines: Vec<String> = files.iter().zip(&written.captions).map(line).collect();
    terminal::result(&lines.join("\n"));
    note_checkpoint(directory, written.step);
    Ok(0)
}

/// Whether the model of a run writes texts.
fn writes(directory: &RunDirectory) -> Result<bool, LaunchError> {
    let model = directory.load_recipe()?.recipe.model;
    Ok(model.decoder().is_some() || model.vlm().is_some())
}

/// `vljepa-launch search`: prints the samples that match a text best.
pub(crate) async fn search(arguments: &cli::Search) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    if directory.load_recipe()?.recipe.model.vlm().is_some() {
        let why = "has a VLM, which has no embeddings to search by";
        return Err(path_error("the run", &arguments.run, why));
    }
    let files = shards::files(&arguments.shards);
    let missing = files.iter().find(|file| !file.is_file());
    if files.is_empty() || missing.is_some() {
        let path = missing.cloned().unwrap_or_else(|| PathBuf::from(&arguments.shards));
        let why = "are neither a tar file nor a folder with tar files";
        return Err(path_error("the shards", &path, why));
    }
    let job = Job::Search {
        step: arguments.checkpoint.step,
        shards: absolute(Path::new(&arguments.shards)).display().to_string(),
        text: arguments.text.clone(),
        limit: usize::try_from(arguments.limit).unwrap_or(usize::MAX),
    };
    let found: Found = run_worker(&directory, &job).await?;
    if arguments.json {
        return show_json(&found);
    }
    let mut rows = vec![row(["rank", "score", "shard", "sample", "caption"])];
    rows.extend(found.results.iter().enumerate().map(|(index, sample)| {
        vec![
            (index + 1).to_string(),
            format!("{:.4}", sample.score),
            short_shard(&sample.shard),
            sample.key.clone(),
            sample.caption.clone().unwrap_or_else(|| "–".to_owned()),
        ]
    }));
    terminal::result(&terminal::table(&rows));
    note_checkpoint(&directory, found.step);
    Ok(0)
}

/// `vljepa-launch evaluate`: measures the scores, prints them and writes the report.
pub(crate) async fn evaluate(arguments: &cli::Evaluate) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    let _lock = lock(&directory, BRIEF_LOCK_TIMEOUT).await?;
    let job = Job::Evaluate { step: arguments.checkpoint.step };
    let measured: Evaluated = run_worker(&directory, &job).await?;
    if arguments.json {
        show_json(&measured)?;
    } else if let Some(table) = report::scores_table(&directory, measured.scores) {
        terminal::result(&table);
        note_checkpoint(&directory, measured.step);
    }
    let path = report::write(&directory)?;
    terminal::note(&format!("report: {}", path.display()));
    Ok(0)
}

/// `vljepa-launch export`: writes the model to a folder and prints the files. The folder gets its
/// name when all files are written, so an interrupted export does not look like a whole one.
pub(crate) async fn export(arguments: &cli::Export) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    let refused = match directory.load_recipe()?.recipe.model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => None,
        ModelKind::DualEncoder => {
            Some("is a dual encoder, whose weights are the published files that its recipe names")
        }
        ModelKind::Vlm => Some("has a VLM, which is not exported"),
    };
    if let Some(why) = refused {
        return Err(path_error("the run", &arguments.run, why));
    }
    let folder = &arguments.folder;
    if folder.is_file()
        || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(path_error("the folder", folder, "already exists and is not empty"));
    }
    let part = part(folder)?;
    let written = export_to(&directory, arguments.checkpoint, &part).await.and_then(|exported| {
        std::fs::rename(&part, folder).map_err(|error| {
            path_error("the folder", folder, &format!("cannot get its name: {error}"))
        })?;
        Ok(exported)
    });
    if written.is_err() {
        // Only the first error is reported.
        drop(std::fs::remove_dir_all(&part));
    }
    let exported = written?;
    if arguments.json {
        return show_json(&exported);
    }
    terminal::result(&exported.files.join("\n"));
    terminal::note(&format!("weights of step {} in {}", exported.step, folder.display()));
    Ok(0)
}

/// Creates the folder `<folder>.part`, which holds the files until all are written.
fn part(folder: &Path) -> Result<PathBuf, LaunchError> {
    let mut part = absolute(folder).into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let created = part.parent().map_or(Ok(()), std::fs::create_dir_all);
    created.and_then(|()| std::fs::create_dir(&part)).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                "exists: another export is writing it, or was interrupted. Delete it then"
                    .to_owned()
            }
            _ => format!("cannot be created: {error}"),
        };
        path_error("the folder", &part, &why)
    })?;
    Ok(part)
}

/// Lets a worker write a checkpoint's model to `folder`, and adds recipe and model card.
async fn export_to(
    directory: &RunDirectory,
    OfStep { step }: OfStep,
    folder: &Path,
) -> Result<Exported, LaunchError> {
    let job = Job::Export { step, folder: folder.to_owned() };
    let mut exported: Exported = run_worker(directory, &job).await?;
    let loaded = directory.load_recipe()?;
    let unsupported = exported.unsupported.as_deref();
    let card = model_card::text(directory, &loaded, exported.step, unsupported);
    for (name, text) in [("recipe.yaml", &loaded.yaml), ("README.md", &card)] {
        atomic_write(&folder.join(name), text.as_bytes())?;
        exported.files.push(name.to_owned());
    }
    Ok(exported)
}

/// `vljepa-launch report`: writes the report and prints its path.
pub(crate) fn report(run: &Path) -> Result<u8, LaunchError> {
    let directory = RunDirectory::open(run)?;
    terminal::result(&report::write(&directory)?.display().to_string());
    Ok(0)
}

/// Opens the directory of a run that has the wanted weights: a checkpoint or, for a dual encoder,
/// the files that its recipe names.
pub(super) fn with_weights(
    run: &Path,
    OfStep { step }: OfStep,
) -> Result<RunDirectory, LaunchError> {
    let directory = RunDirectory::open(run)?;
    let recipe = directory.load_recipe()?.recipe;
    if recipe.table.is_some() {
        let why = "is a table, which has no weights of its own; name the run of one of its rows";
        return Err(path_error("the run", run, why));
    }
    match (recipe.model.kind, step) {
        (ModelKind::DualEncoder, None) => return Ok(directory),
        (ModelKind::DualEncoder, Some(_)) => {
            let why = "is a dual encoder, which has no steps; leave `--step` out";
            return Err(path_error("the run", run, why));
        }
        (ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::Vlm, _) => {}
    }
    let steps = directory.checkpoint_steps();
    match step {
        _ if steps.is_empty() => Err(LaunchError::NoCheckpoint { run: run.to_owned() }),
        Some(step) if !steps.contains(&step) => {
            Err(LaunchError::NoSuchCheckpoint { run: run.to_owned(), step, steps })
        }
        Some(_) | None => Ok(directory),
    }
}

/// Prints the step of the weights, unless they are published ones.
pub(super) fn note_checkpoint(directory: &RunDirectory, step: u64) {
    if directory.newest_checkpoint().is_some() {
        terminal::note(&format!("checkpoint of step {step}"));
    }
}

pub(super) fn show_json(value: &impl Serialize) -> Result<u8, LaunchError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| LaunchError::JobFailed { error: error.to_string() })?;
    terminal::result(&text);
    Ok(0)
}

pub(super) fn path_error(what: &'static str, path: &Path, why: &str) -> LaunchError {
    LaunchError::Path { what, path: path.to_owned(), why: why.to_owned() }
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn short_shard(shard: &str) -> String {
    Path::new(shard)
        .file_name()
        .map_or_else(|| shard.to_owned(), |n| n.to_string_lossy().into_owned())
}
