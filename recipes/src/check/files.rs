//! Checks that the files that a recipe names exist.

use std::path::Path;

use super::{Problem, Problems, missing_tokenizers, missing_weights};
use crate::schema::{Candidates, EvaluationSet, Init, Recipe, SampleSource, TaskKind};
use crate::shard_names::{first_and_last, is_remote};

/// Returns a problem for each file of the recipe that does not exist. A run that has a checkpoint
/// does not read `init`, so its recipe is checked with `init: None`.
///
/// It is called where the run starts. Checking and planning a recipe do not call it, because they
/// also happen on machines without the files.
#[must_use]
pub fn check_files(recipe: &Recipe) -> Vec<Problem> {
    let mut found = Problems::default();
    let model = &recipe.model;
    for (key, path) in model.files() {
        file(&mut found, key, path);
    }
    for key in missing_tokenizers(recipe) {
        found.add(key, "is not set, but texts are tokenized with it", "name its `tokenizer.json`");
    }
    for key in missing_weights(recipe) {
        let help = "name the published file, which may be the same for both encoders";
        found.add(key, "is not set, and a dual encoder is not trained", help);
    }
    if let Some(init) = &recipe.init {
        initial(&mut found, init);
    }
    for (name, source) in &recipe.data.sources {
        shards(&mut found, &format!("data.sources.{name}.shards"), &source.shards);
    }
    for (index, task) in recipe.evaluation.tasks.iter().enumerate() {
        let key = format!("evaluation.tasks.{index}");
        match task.source() {
            SampleSource::Set(set) => root(&mut found, &format!("{key}.set.root"), set),
            SampleSource::Shards { shards, .. } if task.kind == TaskKind::Triplets => {
                file(&mut found, &format!("{key}.shards"), Path::new(shards));
            }
            SampleSource::Shards { shards, .. } => {
                self::shards(&mut found, &format!("{key}.shards"), shards);
            }
        }
        match &task.kind {
            TaskKind::Classification { candidates, expect, .. } => {
                let key = format!("{key}.kind.classification");
                labels(&mut found, &format!("{key}.candidates"), candidates);
                if let Some(path) = expect {
                    file(&mut found, &format!("{key}.expect"), path);
                }
            }
            TaskKind::QuestionAnswering { candidates, .. } => {
                let key = format!("{key}.kind.question_answering.candidates");
                labels(&mut found, &key, candidates);
            }
            TaskKind::Triplets
            | TaskKind::WorldPrediction
            | TaskKind::Retrieval
            | TaskKind::Captioning { .. }
            | TaskKind::SelectiveDecoding(_) => {}
        }
    }
    found.list
}

fn initial(found: &mut Problems, init: &Init) {
    let (path, name) = (init.path(), init.path().display());
    let help = match init {
        Init::Weights(_) => return file(found, init.key(), path),
        Init::Run(_) => "train that run first, or name the directory of another run".to_owned(),
        Init::Export(_) => format!("write it first: `vljepa-launch export RUN {name}`"),
    };
    if !path.is_dir() {
        let what = if path.exists() { "is not a folder" } else { "does not exist" };
        found.add(init.key(), format!("{name} {what}"), help);
    }
}

fn root(found: &mut Problems, key: &str, set: &EvaluationSet) {
    if !set.root.is_dir() {
        let what = format!("there is no folder {}", set.root.display());
        let help = format!("put the set `{}` there; it is published at {}", set.name, set.source);
        found.add(key, what, help);
    }
}

fn labels(found: &mut Problems, key: &str, candidates: &Candidates) {
    match candidates {
        Candidates::OfSet | Candidates::Labels(_) => {}
        Candidates::File(path) => file(found, key, path),
    }
}

fn file(found: &mut Problems, key: &str, path: &Path) {
    if path.is_dir() {
        found.add(key, format!("{} is a folder", path.display()), "name a file");
    } else if !path.is_file() {
        found.add(key, format!("there is no file {}", path.display()), advice(path));
    }
}

fn shards(found: &mut Problems, key: &str, shards: &str) {
    if is_remote(shards) {
        return;
    }
    let path = Path::new(shards);
    if path.is_dir() {
        let is_tar =
            |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|e| e == "tar");
        let any =
            std::fs::read_dir(path).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(is_tar)));
        if !any {
            found.add(
                key,
                format!("the folder {} has no `.tar` file", path.display()),
                advice(path),
            );
        }
        return;
    }
    // Only the ends of a range are checked, because it may hold a million files. A gap inside is
    // found when the shards are indexed.
    let Ok(ends) = first_and_last(shards) else { return };
    if let Some(path) = ends.iter().find(|path| !path.is_file()) {
        found.add(key, format!("there is no shard {}", path.display()), advice(path));
    }
}

fn advice(path: &Path) -> String {
    if path.starts_with("datasets/quickstart") {
        return "make the quickstart's data set first: `vljepa-shards synth datasets/quickstart`"
            .to_owned();
    }
    if path.starts_with("datasets/quickstart_stream") {
        return "make the stream first: `vljepa-shards synth-stream datasets/quickstart_stream`"
            .to_owned();
    }
    "paths are relative to the folder in which the command is started".to_owned()
}
