//! Rules that the types of the keys cannot express: ranges, and contradictions between keys.
//!
//! Only [`check_files`] reads the disk, because a recipe for a cluster is also checked and planned
//! on machines that have none of its files.

mod checkpoints;
mod cluster;
mod data;
mod dual_encoder;
mod evaluation;
mod files;
mod gpu;
mod init;
mod logging;
mod model;
mod resnet;
mod set;
mod table;
mod training;
mod vlm;
mod y_decoder;

pub use dual_encoder::pair;
pub use files::check_files;
pub(crate) use gpu::kernels_of_row;
pub use gpu::{GPU_FORWARD_HEAD_WIDTHS, GPU_HEAD_WIDTHS, GPU_NORM_WIDTH};
pub use model::sizes;
pub use set::count_problems;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::schema::{ModelKind, Recipe, Task};

/// A value that a recipe must not have, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Dotted key; list items are named by their index, as in `stages.0.batch`.
    pub key: String,
    /// Description of the mistake with the values. It follows the key: `key: what`.
    pub what: String,
    /// Advice to the user.
    pub help: String,
}

/// Returns all problems of a recipe, in the order of its keys. The list is empty if the recipe can
/// run.
#[must_use]
pub fn check(recipe: &Recipe) -> Vec<Problem> {
    let mut found = Problems::default();
    check_name(&mut found, "name", &recipe.name);
    if recipe.runs.as_os_str().is_empty() {
        found.add("runs", "is empty", "name a folder; the default is `runs`");
    }
    if let Some(table) = &recipe.table {
        model::device(recipe, &mut found);
        table::check(recipe, table, &mut found);
        cluster::check(recipe, &mut found);
        return found.list;
    }
    model::check(recipe, &mut found);
    init::check(recipe, &mut found);
    data::check(recipe, &mut found);
    training::check(recipe, &mut found);
    checkpoints::check(recipe, &mut found);
    evaluation::check(recipe, &mut found);
    y_decoder::unused(recipe, &mut found);
    vlm::unused(recipe, &mut found);
    y_decoder::stages(recipe, &mut found);
    match recipe.model.kind {
        ModelKind::VlJepa => {
            training::needed(recipe, &mut found);
            y_decoder::behind(recipe, &mut found);
        }
        ModelKind::YDecoder => y_decoder::needed(recipe, &mut found),
        ModelKind::DualEncoder => dual_encoder::check(recipe, &mut found),
        ModelKind::Vlm => vlm::check(recipe, &mut found),
    }
    cluster::check(recipe, &mut found);
    found.list.extend(gpu::kernels(recipe));
    found.list
}

/// Returns all problems of an evaluation set and its task, whose keys start with `key`. Rules that
/// depend on the model of a recipe are not checked.
#[must_use]
pub fn set(task: &Task, key: &str) -> Vec<Problem> {
    let mut found = Problems::default();
    evaluation::task(task, key, &mut found);
    found.list
}

/// Returns one warning for each setting that is allowed but probably not intended.
#[must_use]
pub fn warnings(recipe: &Recipe) -> Vec<String> {
    if let Some(table) = &recipe.table {
        return table::warnings(recipe, table);
    }
    let mut warnings = Vec::new();
    for key in missing_tokenizers(recipe).into_iter().chain(missing_weights(recipe)) {
        warnings.push(format!("{key} is not set, and the run will need it"));
    }
    for name in recipe.data.sources.keys() {
        if !recipe.draws_from(name) {
            warnings.push(format!("data.sources.{name} is not in the mixture of any stage"));
        }
    }
    let world_size = recipe.cluster.world_size();
    for (index, stage) in recipe.stages.iter().enumerate() {
        if stage.batch % world_size != 0 {
            warnings.push(format!(
                "stages.{index}.batch: {} samples do not divide evenly among {world_size} ranks, so some ranks wait for others",
                stage.batch
            ));
        }
    }
    if recipe.optimizer.multipliers.contains_key("x_encoder") && !recipe.model.x_encoder.trainable()
    {
        warnings.push(
            "optimizer.multipliers.x_encoder has no effect: the X-encoder is frozen".to_owned(),
        );
    }
    warnings
}

/// Keys of the tokenizers that a recipe does not name yet.
fn missing_tokenizers(recipe: &Recipe) -> Vec<&'static str> {
    let model = &recipe.model;
    let of_queries = ("model.predictor.tokenizer", model.predictor.tokenizer.as_deref());
    let of_targets = ("model.y_encoder.tokenizer", model.y_encoder.tokenizer());
    let mut tokenizers = match model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => vec![of_queries, of_targets],
        ModelKind::DualEncoder => vec![of_targets],
        ModelKind::Vlm => Vec::new(),
    };
    if let Some(decoder) = model.decoder() {
        tokenizers.push(("model.y_decoder.tokenizer", decoder.tokenizer()));
    }
    if let Some(l) = model.vlm() {
        tokenizers.push(("model.language_model.tokenizer", l.tokenizer.as_deref()));
    }
    let missing = |(key, path): (_, Option<&Path>)| path.is_none().then_some(key);
    tokenizers.into_iter().filter_map(missing).collect()
}

/// Keys of the weights that a dual encoder does not name yet. Another model starts from random
/// weights where it names none.
fn missing_weights(recipe: &Recipe) -> impl Iterator<Item = &'static str> {
    let model = &recipe.model;
    let weights = [
        ("model.x_encoder.weights", model.x_encoder.weights()),
        ("model.y_encoder.weights", model.y_encoder.weights()),
    ];
    let needed = model.kind == ModelKind::DualEncoder;
    weights.into_iter().filter(move |(_, path)| needed && path.is_none()).map(|(key, _)| key)
}

#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    fn add(&mut self, key: impl Into<String>, what: impl Into<String>, help: impl Into<String>) {
        self.list.push(Problem { key: key.into(), what: what.into(), help: help.into() });
    }

    /// Reports each size or count that is 0.
    fn positive(&mut self, prefix: &str, values: &[(&str, usize)]) {
        for (key, value) in values {
            if *value == 0 {
                self.add(format!("{prefix}.{key}"), "is 0", "give it at least 1");
            }
        }
    }

    /// Reports each number that is not finite and above 0.
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

/// Returns a problem if a programme cannot have this name.
pub(crate) fn programme_name(name: &str) -> Vec<Problem> {
    let mut found = Problems::default();
    check_name(&mut found, "name", name);
    found.list
}

/// Reports a name that cannot become part of a path or of a metric's name.
fn check_name(found: &mut Problems, key: &str, name: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 100 || !name.chars().all(allowed) {
        let what = format!("`{name}` is not a valid name");
        found.add(key, what, "use up to 100 letters, digits, `-` and `_`");
    }
}
