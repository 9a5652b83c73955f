//! Instructional videos with tasks and steps: COIN and CrossTask.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vljepa_recipes::schema::Labelled;

use super::OpenSet;
use super::entries::{Entries, Id};
use super::files::{Annotations, fill};
use super::items::{Template, labelled, own_texts};
use crate::error::DataError;

/// Part of COIN that is measured. The README of the set names it `validation`.
const COIN_TESTED: &str = "testing";

/// Words of COIN's task names that splitting before capitals tears apart.
const COIN_ACRONYMS: [(&str, &str); 6] = [
    (" t v", " TV"),
    (" c d", " CD"),
    ("s i m", "SIM"),
    ("n b a", "NBA"),
    ("s s d", "SSD"),
    ("r j45", "RJ45"),
];

/// Steps of COIN with another text than published, as the literature reads them.
const COIN_STEPS: [(&str, &str); 2] = [
    ("process (crop, fold) paper", "crop and fold paper"),
    (
        "try to press gun head, spray residual old grease",
        "try to press gun head to spray residual old grease",
    ),
];

/// COIN. The labels are those of all videos; the samples are the part for testing. Steps with
/// equal texts are one label.
pub(super) fn coin(
    root: &Path,
    annotations: &Path,
    videos: &str,
    by: Labelled,
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct File {
        database: Entries<Video>,
    }
    #[derive(Deserialize)]
    struct Video {
        class: String,
        subset: String,
        recipe_type: Id,
        annotation: Vec<Step>,
    }
    #[derive(Deserialize)]
    struct Step {
        segment: [f64; 2],
        label: String,
    }
    let annotations = Annotations::read(root, annotations)?;
    let template = Template { root, text: videos, annotations: &annotations };
    let File { database: Entries(database) } = annotations.json()?;
    let (mut samples, mut labels) = (Vec::new(), BTreeSet::new());
    for (id, Video { class, subset, recipe_type, annotation }) in database {
        let fields = [("video_id", &*id), ("class", &*class), ("recipe_type", &*recipe_type.0)];
        let path = template.path(&fields)?;
        let tested = subset == COIN_TESTED;
        match by {
            Labelled::Tasks => {
                let label = coin_task(&class);
                if tested {
                    samples.push(labelled(id, path, None, &label));
                }
                labels.insert(label);
            }
            Labelled::Steps => {
                for (number, Step { segment: [start, end], label }) in annotation.iter().enumerate()
                {
                    let label = coin_step(label);
                    if tested {
                        let key = format!("{id}_{number}");
                        samples.push(labelled(key, path.clone(), Some(*start..*end), label));
                    }
                    labels.insert(label.to_owned());
                }
            }
        }
    }
    Ok(OpenSet { samples, labels: own_texts(labels) })
}

/// Text of a task whose name is in camel case: `ReplaceSIMCard` is `replace SIM card`.
fn coin_task(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(c.to_lowercase());
    }
    for (torn, word) in COIN_ACRONYMS {
        text = text.replace(torn, word);
    }
    text
}

fn coin_step(label: &str) -> &str {
    let label = label.trim();
    COIN_STEPS.iter().find(|(published, _)| *published == label).map_or(label, |(_, text)| text)
}

/// Task of CrossTask.
struct CrossTaskTask {
    name: String,
    steps: Vec<String>,
}

/// `CrossTask`. The videos are those of the list whose task is in the file of tasks. Steps of
/// several tasks with equal texts are one label.
pub(super) fn cross_task(
    root: &Path,
    [tasks, list]: [&PathBuf; 2],
    [segments, videos]: [&String; 2],
    by: Labelled,
) -> Result<OpenSet, DataError> {
    let tasks = cross_task_tasks(&Annotations::read(root, tasks)?)?;
    let labels = match by {
        Labelled::Tasks => own_texts(tasks.values().map(|task| task.name.clone())),
        Labelled::Steps => own_texts(tasks.values().flat_map(|task| task.steps.iter().cloned())),
    };
    let list = Annotations::read(root, list)?;
    let template = Template { root, text: videos, annotations: &list };
    let mut samples = Vec::new();
    for row in list.rows(3)? {
        let (id, video) = (row.values[0].trim(), row.values[1].trim());
        let Some(task) = tasks.get(id) else { continue };
        let fields = [("task", id), ("video_id", video)];
        let (path, key) = (template.path(&fields)?, format!("{id}_{video}"));
        if by == Labelled::Tasks {
            samples.push(labelled(key, path, None, &task.name));
            continue;
        }
        let segments = fill(segments, &fields).map_err(|reason| list.wrong(reason))?;
        let file = Annotations::read(root, &segments)?;
        for (number, row) in file.rows(3)?.iter().enumerate() {
            let wrong = |what: &str| file.wrong(format!("line {}: {what}", row.line));
            let step: Option<usize> = row.values[0].trim().parse().ok();
            let step = step.and_then(|step| task.steps.get(step.checked_sub(1)?));
            let step = step.ok_or_else(|| wrong("the task has no step of this number"))?;
            let time = |column: usize| {
                let time = row.values[column].trim().parse::<f64>();
                time.map_err(|_| wrong("a time is not a number of seconds"))
            };
            let seconds = Some(time(1)?..time(2)?);
            samples.push(labelled(format!("{key}_{number}"), path.clone(), seconds, step));
        }
    }
    Ok(OpenSet { samples, labels })
}

/// Tasks by their ids. A task is five lines (id, name, URL, number of steps, steps), and blank
/// lines are between tasks.
fn cross_task_tasks(file: &Annotations) -> Result<BTreeMap<String, CrossTaskTask>, DataError> {
    let lines: Vec<(usize, &str)> = (1..)
        .zip(file.text().lines().map(str::trim))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let mut tasks = BTreeMap::new();
    for block in lines.chunks(5) {
        let first = block[0].0;
        let wrong = |what: String| file.wrong(format!("the task in line {first} {what}"));
        let [(_, id), (_, name), _, (_, count), (_, steps)] = block else {
            return Err(wrong("has less than five lines".to_owned()));
        };
        let steps: Vec<String> = steps.split(',').map(|step| step.trim().to_owned()).collect();
        if count.parse() != Ok(steps.len()) {
            return Err(wrong(format!("has {} steps, not `{count}`", steps.len())));
        }
        let task = CrossTaskTask { name: (*name).to_owned(), steps };
        if tasks.insert((*id).to_owned(), task).is_some() {
            return Err(wrong(format!("repeats the id {id}")));
        }
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::{coin_step, coin_task};

    #[test]
    fn names_of_coin_become_sentences() {
        for (name, text) in [
            ("ReplaceSIMCard", "replace SIM card"),
            ("AttendNBASkillsChallenge", "attend NBA skills challenge"),
            ("MakeRJ45Cable", "make RJ45 cable"),
            ("InstallCeilingFan", "install ceiling fan"),
        ] {
            assert_eq!(coin_task(name), text);
        }
        assert_eq!(coin_step(" process (crop, fold) paper"), "crop and fold paper");
        assert_eq!(coin_step("cut paper"), "cut paper");
    }
}
