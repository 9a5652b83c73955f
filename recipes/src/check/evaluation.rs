//! Rules for the keys under `evaluation`.

use std::collections::BTreeMap;
use std::path::Path;

use super::Problems;
use crate::schema::{
    Candidates, Control, LABEL, Recipe, SHORTEST_STRIDE_S, SampleSource, SelectiveDecoding, Task,
    TaskKind,
};

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    super::checkpoints::samples(
        recipe,
        "evaluation.at_samples",
        &recipe.evaluation.at_samples,
        found,
    );
    for (index, task) in recipe.evaluation.tasks.iter().enumerate() {
        let key = format!("evaluation.tasks.{index}.frames");
        if let Some(frames) = task.frames {
            super::data::check_frames(recipe, &key, frames, found);
        }
        let frames = task.frames.unwrap_or_else(|| recipe.default_frames());
        if task.kind == TaskKind::WorldPrediction && frames < 2 {
            let what = format!("a clip of two pictures cannot have {frames} frame");
            found.add(key, what, "write an even number of frames");
        }
    }
    tasks(&recipe.evaluation.tasks, found);
}

/// Rules of tasks that no other key concerns.
pub(super) fn tasks(tasks: &[Task], found: &mut Problems) {
    let mut metrics: BTreeMap<String, usize> = BTreeMap::new();
    for (index, task) in tasks.iter().enumerate() {
        let key = format!("evaluation.tasks.{index}");
        for metric in task.metrics() {
            if let Some(earlier) = metrics.insert(metric.clone(), index) {
                let what = format!("gives the metric {metric}, which task {earlier} gives too");
                found.add(format!("{key}.name"), what, "give each task a name of its own");
                break;
            }
        }
        self::task(task, &key, found);
    }
}

/// Rules of a task that no other key concerns.
pub(super) fn task(task: &Task, key: &str, found: &mut Problems) {
    super::check_name(found, &format!("{key}.name"), &task.name);
    check_samples(task, key, found);
    check_parts(task, key, found);
    check_kind(task, key, found);
}

fn check_parts(task: &Task, key: &str, found: &mut Problems) {
    match task.kind {
        TaskKind::QuestionAnswering { question_kind: None, .. } | TaskKind::Triplets => {}
        TaskKind::QuestionAnswering { question_kind: Some(_), .. } if !task.parts.is_empty() => {
            let help = "keep `parts`, or `question_kind` alone";
            found.add(format!("{key}.parts"), "all questions are of one kind", help);
        }
        TaskKind::QuestionAnswering { .. } => {}
        TaskKind::Classification { .. }
        | TaskKind::Retrieval
        | TaskKind::Captioning { .. }
        | TaskKind::WorldPrediction
        | TaskKind::SelectiveDecoding(_) => {
            if !task.parts.is_empty() {
                let what = "only questions and triplets have parts";
                found.add(format!("{key}.parts"), what, "remove it");
            }
        }
    }
    for (index, part) in task.parts.iter().enumerate() {
        let key = format!("{key}.parts.{index}");
        super::check_name(found, &key, part);
        if task.parts[..index].contains(part) {
            found.add(key, format!("`{part}` appears twice"), "list each part once");
        }
    }
}

fn check_samples(task: &Task, key: &str, found: &mut Problems) {
    if task.limit == Some(0) {
        found.add(
            format!("{key}.limit"),
            "is 0",
            "give it at least 1, or remove it to take all samples",
        );
    }
    let triplets = task.kind == TaskKind::Triplets;
    match task.source() {
        SampleSource::Set(set) => {
            if task.shards.is_some() {
                let help = "keep one of them";
                found.add(format!("{key}.shards"), "`shards` and `set` are both given", help);
            }
            if task.catalogue.is_some() {
                found.add(format!("{key}.catalogue"), "a set has no catalogue", "remove it");
            }
            super::set::check(set, task, key, found);
        }
        SampleSource::Shards { .. } if task.shards.is_none() => {
            let help = "add `shards: …`, or `set: FILE` with the file of an evaluation set";
            found.add(key, "neither `shards` nor `set` is given", help);
        }
        SampleSource::Shards { shards, .. } if triplets => {
            json(found, &format!("{key}.shards"), Path::new(shards), "name a `.json` file");
        }
        SampleSource::Shards { shards, catalogue } => {
            super::data::shards(found, key, shards, catalogue);
        }
    }
    if let Some(kind) = super::set::lacks_candidates(task) {
        let help = "list them: `[red, green]`, or name a `.json` file";
        found.add(
            format!("{key}.kind.{kind}.candidates"),
            "only a set has labels of its own",
            help,
        );
    }
    if !triplets {
        return;
    }
    if task.frames.is_some() {
        found.add(format!("{key}.frames"), "triplets have no visual input", "remove it");
    }
    match task.control {
        Control::None | Control::Collapsed => {}
        Control::SingleFrame | Control::Reversed => {
            found.add(format!("{key}.control"), "triplets have no visual input", "remove it");
        }
    }
}

fn check_kind(task: &Task, key: &str, found: &mut Problems) {
    let no_query = |found: &mut Problems, why: &str| {
        if !task.query.is_empty() {
            found.add(format!("{key}.query"), why, "remove it");
        }
    };
    match &task.kind {
        TaskKind::Classification { field, candidates, templates, expect } => {
            let key = format!("{key}.kind.classification");
            check_templates(templates, &format!("{key}.templates"), found);
            super::data::field(found, format!("{key}.field"), field);
            check_candidates(candidates, &format!("{key}.candidates"), found);
            if let Some(path) = expect {
                let help = "name a `.json` file";
                json(found, &format!("{key}.expect"), path, help);
            }
        }
        TaskKind::Retrieval => {}
        TaskKind::QuestionAnswering { candidates, .. } => {
            no_query(found, "the query is each sample's question");
            let key = format!("{key}.kind.question_answering.candidates");
            check_candidates(candidates, &key, found);
        }
        TaskKind::SelectiveDecoding(keys) => {
            check_selective(keys, &format!("{key}.kind.selective_decoding"), found);
        }
        TaskKind::Triplets => no_query(found, "triplets have no visual input to ask about"),
        TaskKind::WorldPrediction if task.set.is_none() => {
            let help = "name a set: `set: FILE`";
            found.add(format!("{key}.kind"), "only a set has pictures and actions", help);
        }
        TaskKind::WorldPrediction => {
            if task.limit.is_some() {
                let what = "a question has several samples, so that the last one may lack some";
                found.add(format!("{key}.limit"), what, "remove it");
            }
        }
        TaskKind::Captioning { names, references } => {
            let key = format!("{key}.kind.captioning");
            if names.is_empty() && references.is_empty() {
                let help = "name fields that the captions must name, such as `names: [shape]`, or \
                            fields with right captions: `references: [caption]`";
                found.add(&key, "has neither `names` nor `references`", help);
            }
            for (list, fields) in [("names", names), ("references", references)] {
                for (index, field) in fields.iter().enumerate() {
                    super::data::field(found, format!("{key}.{list}.{index}"), field);
                }
            }
        }
    }
}

fn check_selective(keys: &SelectiveDecoding, key: &str, found: &mut Problems) {
    let SelectiveDecoding { window_s, stride_s, frequencies, compare_at } = keys;
    found.above_zero(key, &[("window_s", *window_s), ("stride_s", *stride_s)]);
    if (0.0..SHORTEST_STRIDE_S).contains(stride_s) && *stride_s > 0.0 {
        let what = format!("{stride_s} is less than {SHORTEST_STRIDE_S}, the time of a frame");
        found.add(format!("{key}.stride_s"), what, "raise it");
    }
    if frequencies.is_empty() {
        found.add(format!("{key}.frequencies"), "is empty", "remove it to take the default");
    }
    for (index, &frequency) in frequencies.iter().enumerate() {
        let key = format!("{key}.frequencies");
        found.above_zero(&key, &[(&index.to_string(), frequency)]);
        if frequency * stride_s > 1.0 {
            let what = format!(
                "is {frequency} decodes per second, but there is one embedding each {stride_s} s"
            );
            let help = "lower `stride_s` or the frequency";
            found.add(format!("{key}.{index}"), what, help);
        }
        if index > 0 && frequency >= frequencies[index - 1] {
            let what = format!("{frequency} is not below the frequency before it");
            found.add(format!("{key}.{index}"), what, "list them from the highest to the lowest");
        }
    }
    if !frequencies.contains(compare_at) {
        let what = format!("{compare_at} is none of the `frequencies`");
        found.add(format!("{key}.compare_at"), what, "name one of them, or add it to the list");
    }
}

fn check_templates(templates: &[String], key: &str, found: &mut Problems) {
    if templates.is_empty() {
        found.add(key, "is empty", "remove it to use the texts of the labels alone");
    }
    for (index, template) in templates.iter().enumerate() {
        let labels = template.matches(LABEL).count();
        if labels != 1 {
            let what = format!("`{template}` has {labels} times `{LABEL}`, where the label goes");
            found.add(format!("{key}.{index}"), what, "write it once: `a video of {}.`");
        }
    }
}

fn check_candidates(candidates: &Candidates, key: &str, found: &mut Problems) {
    match candidates {
        Candidates::OfSet => {}
        Candidates::File(path) => {
            json(found, key, path, "name a `.json` file, or list the labels: `[red, green]`");
        }
        Candidates::Labels(labels) => {
            if labels.len() < 2 {
                let what = format!("has too few candidates: {}", labels.len());
                found.add(key, what, "name at least 2 candidates to choose from");
            }
            for (index, label) in labels.iter().enumerate() {
                if label.trim().is_empty() || labels[..index].contains(label) {
                    let what = format!("`{label}` is empty or appears twice");
                    found.add(format!("{key}.{index}"), what, "list each label once");
                }
            }
        }
    }
}

fn json(found: &mut Problems, key: &str, path: &Path, help: &str) {
    if path.extension().is_none_or(|extension| extension != "json") {
        let what = format!("`{}` does not end in `.json`", path.display());
        found.add(key, what, help);
    }
}
