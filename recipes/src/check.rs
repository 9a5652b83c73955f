//! Rules across keys: what each key allows by its type may still contradict another. Nothing here touches the disk except
//! [`check_files`], because a recipe for a cluster is also checked and planned on machines that have none of its files.

mod cluster;
mod data;
mod evaluation;
mod files;
mod logging;
mod model;
mod training;

pub use files::check_files;

use crate::schema::Recipe;

/// A contradiction, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted key, list items by index: `stages.0.batch`.
    pub key: String,
    /// What is wrong, with the values.
    pub what: String,
    /// What to do.
    pub help: String,
}

/// All contradictions of a recipe, in the order of its keys; none for a recipe that can run.
#[must_use]
pub fn check(recipe: &Recipe) -> Vec<Problem> {
    let mut found = Problems::default();
    name(&mut found, "name", &recipe.name);
    if recipe.runs.as_os_str().is_empty() {
        found.add("runs", "is empty", "name a folder; the default is `runs`");
    }
    model::check(recipe, &mut found);
    data::check(recipe, &mut found);
    training::check(recipe, &mut found);
    evaluation::check(recipe, &mut found);
    cluster::check(recipe, &mut found);
    found.list
}

/// What is allowed but rarely meant.
#[must_use]
pub fn warnings(recipe: &Recipe) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in recipe.data.sources.keys() {
        let used = |stage: &crate::schema::Stage| stage.mixture.get(name).is_some_and(|&w| w > 0);
        if !recipe.stages.iter().any(used) {
            warnings.push(format!("data.sources.{name} is in no stage's mixture"));
        }
    }
    let world_size = recipe.cluster.world_size();
    for (index, stage) in recipe.stages.iter().enumerate() {
        if stage.batch % world_size != 0 {
            warnings.push(format!(
                "stages.{index}.batch: {} samples do not divide evenly among {world_size} ranks, so some wait for others",
                stage.batch
            ));
        }
    }
    if recipe.optimizer.multipliers.contains_key("x_encoder") && !recipe.model.x_encoder.trainable {
        warnings.push("optimizer.multipliers.x_encoder: the X-encoder is frozen".to_owned());
    }
    warnings
}

/// Collects problems.
#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    fn add(&mut self, key: impl Into<String>, what: impl Into<String>, help: impl Into<String>) {
        self.list.push(Problem { key: key.into(), what: what.into(), help: help.into() });
    }

    /// Sizes and counts that nothing works without.
    fn positive(&mut self, prefix: &str, values: &[(&str, usize)]) {
        for (key, value) in values {
            if *value == 0 {
                self.add(format!("{prefix}.{key}"), "is 0", "give it at least 1");
            }
        }
    }

    /// Numbers that must be finite and above 0.
    fn above_zero(&mut self, prefix: &str, values: &[(&str, f64)]) {
        for (key, value) in values {
            if !(value.is_finite() && *value > 0.0) {
                self.add(
                    format!("{prefix}.{key}"),
                    format!("is {value}"),
                    "give it a number above 0",
                );
            }
        }
    }
}

/// Names become parts of paths and metrics.
fn name(found: &mut Problems, key: &str, name: &str) {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 100 || !name.chars().all(fine) {
        let what = format!("`{name}` is not a name");
        found.add(key, what, "use up to 100 letters, digits, `-` and `_`");
    }
}
