//! Rules for the keys under `checkpoints`, and for numbers of samples at which a run is saved or
//! scored.

use super::Problems;
use crate::schema::{KeepBest, Recipe};
use crate::suggest::suggestion;

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    let checkpoints = &recipe.checkpoints;
    if checkpoints.every_steps == 0 {
        found.add("checkpoints.every_steps", "is 0", "give it at least 1; the default is 500");
    }
    if checkpoints.keep == 0 {
        found.add("checkpoints.keep", "is 0", "keep at least 1; the default is 3");
    }
    if let Some(best) = &checkpoints.keep_best {
        keep_best(recipe, best, found);
    }
    samples(recipe, "checkpoints.keep_at.samples_seen", &checkpoints.keep_at.samples_seen, found);
}

fn keep_best(recipe: &Recipe, KeepBest { metric, count }: &KeepBest, found: &mut Problems) {
    let evaluation = &recipe.evaluation;
    let metrics: Vec<String> = evaluation.tasks.iter().flat_map(|task| task.metrics()).collect();
    if !metrics.contains(metric) {
        let help = match metrics.is_empty() {
            true => "add a task to `evaluation.tasks`".to_owned(),
            false => suggestion(metric, metrics.iter().map(String::as_str))
                .unwrap_or_else(|| format!("the metrics are {}", metrics.join(", "))),
        };
        let what = format!("`{metric}` is no metric of the tasks in `evaluation.tasks`");
        found.add("checkpoints.keep_best.metric", what, help);
    }
    if *count == 0 {
        found.add("checkpoints.keep_best.count", "is 0", "keep at least 1, or remove `keep_best`");
    }
    if evaluation.every_steps == 0 && evaluation.at_samples.is_empty() {
        let what = "has nothing to choose from: only the last step is evaluated";
        let help = "set `evaluation.every_steps` or `evaluation.at_samples`";
        found.add("checkpoints.keep_best", what, help);
    }
}

/// Reports numbers of samples that do not increase, or that the run does not reach.
pub(super) fn samples(recipe: &Recipe, key: &str, numbers: &[u64], found: &mut Problems) {
    let all = recipe.samples_after(u64::MAX);
    let mut before = 0;
    for (index, number) in numbers.iter().enumerate() {
        let key = format!("{key}.{index}");
        if *number <= before {
            let what = format!("{number} is not above {before}");
            found.add(&key, what, "write numbers of samples that increase, from 1 on");
        } else if *number > all {
            let what = format!("{number} samples are more than the {all} of all stages");
            found.add(&key, what, "remove it, or lengthen a stage");
        }
        before = *number;
    }
}
