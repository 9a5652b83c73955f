//! Checks the files that a recipe names, before a run starts: tokenizers, weights, shards and what
//! the evaluation tasks need of their samples.
//!
//! The launcher asks for this check once, so that a file that cannot be used stops the run before a
//! rank starts, and not hours later when the file is read.

mod tasks;

use std::path::Path;

use rayon::prelude::*;
use vljepa_data::catalogue::{CatalogueFolder, Expanded, Unlisted, update};
use vljepa_data::storage::{Location, Storage, StorageOptions};
use vljepa_data::{Conversation, DataError, Tokenizer};
use vljepa_kernels::Device;
use vljepa_model::weights::{Parts, Published};
use vljepa_model::{DualEncoder, ModelError, VlJepa, Vlm, weights};
use vljepa_recipes::check::Problem;
use vljepa_recipes::protocol::Inputs;
use vljepa_recipes::schema::{self, Init, ModelKind, RowWeights, Table};
use vljepa_recipes::{Recipe, RunDirectory, row_recipes};

use crate::checkpoint::OtherRun;
use crate::collectives::{Collectives, Solo};
use crate::engine::Network;
use crate::initial;

/// Largest number of shards of one source or task that are reported one by one.
const SHOWN_SHARDS: usize = 20;

/// Checks the files of the recipe in the file `recipe` and returns [`Inputs`] as JSON. With
/// `skip_missing`, files that do not exist are not reported: a recipe for a cluster is also planned
/// on machines that have none of its files. A run that `resumes` from a checkpoint of its own does
/// not read `init`, which is then not checked.
///
/// # Errors
/// Fails if the recipe does not load.
pub fn run(recipe: &Path, skip_missing: bool, resumes: bool) -> anyhow::Result<String> {
    let mut recipe = vljepa_recipes::load(recipe, &[])?.recipe;
    if resumes {
        recipe.init = None;
    }
    Ok(serde_json::to_string(&check(&recipe, skip_missing))?)
}

/// Checks the files of a recipe. See [`run`].
#[must_use]
pub fn check(recipe: &Recipe, skip_missing: bool) -> Inputs {
    match &recipe.table {
        Some(table) => check_rows(recipe, table, skip_missing),
        None => check_model(recipe, None, skip_missing),
    }
}

/// Checks the files of each row of a table. A table without tasks reads no files.
fn check_rows(recipe: &Recipe, table: &Table, skip_missing: bool) -> Inputs {
    let mut found = Inputs::default();
    if recipe.evaluation.tasks.is_empty() {
        return found;
    }
    for row in row_recipes(recipe) {
        let of_row = match row {
            Ok(row) => {
                let Inputs { problems, warnings } =
                    check_model(&row.read(table), row.step, skip_missing);
                let problems = problems.into_iter().map(|problem| row.problem(problem)).collect();
                Inputs { problems, warnings }
            }
            Err(Problem { key, what, .. }) if skip_missing && is_awaited(table, &key) => {
                let text = format!("{key}: {what}, so that this row cannot be measured yet");
                Inputs { problems: Vec::new(), warnings: vec![text] }
            }
            Err(problem) => Inputs { problems: vec![problem], warnings: Vec::new() },
        };
        // The tasks are the same for all rows.
        for problem in of_row.problems {
            if !found.problems.contains(&problem) {
                found.problems.push(problem);
            }
        }
        for warning in of_row.warnings {
            if !found.warnings.contains(&warning) {
                found.warnings.push(warning);
            }
        }
    }
    found
}

/// Whether the key names the run or the export of a row, and there is none yet.
fn is_awaited(table: &Table, key: &str) -> bool {
    table.rows.iter().any(|(name, row)| match row.weights() {
        Some(RowWeights::Run(path, _)) => {
            key == format!("table.rows.{name}.run") && RunDirectory::open(path).is_err()
        }
        Some(RowWeights::Export(path)) => {
            key == format!("table.rows.{name}.export") && !path.exists()
        }
        Some(RowWeights::Model(_)) | None => false,
    })
}

/// Checks the files of a recipe with a model. `step` is that of the checkpoint that `init.run`
/// names.
fn check_model(recipe: &Recipe, step: Option<u64>, skip_missing: bool) -> Inputs {
    let mut found = Inputs::default();
    let storage = match Storage::new(StorageOptions::of(&recipe.data)) {
        Ok(storage) => storage,
        // The folder of the cache is on the nodes.
        Err(_) if skip_missing => Storage::default(),
        Err(error) => {
            let (key, what) = ("data.shard_cache".to_owned(), error.to_string());
            let help = "name a folder that can be written, on every node".to_owned();
            found.problems.push(Problem { key, what, help });
            Storage::default()
        }
    };
    let mut inspection = Inspection { found, skip_missing, step, storage };
    let tokenizers = inspection.tokenizers(recipe);
    inspection.weights(recipe);
    for (name, source) in recipe.data.sources.iter().filter(|(name, _)| recipe.draws_from(name)) {
        let key = format!("data.sources.{name}");
        let catalogue = source.catalogue.as_deref();
        inspection.shards(&format!("{key}.shards"), &source.shards, catalogue);
        for (index, rule) in source.targets.iter().enumerate() {
            inspection.text(tokenizers.queries.as_ref(), &rule.query, || {
                format!("{key}.targets.{index}.query")
            });
        }
    }
    for (index, task) in recipe.evaluation.tasks.iter().enumerate() {
        inspection.task(&format!("evaluation.tasks.{index}"), task, &tokenizers);
    }
    inspection.found
}

/// Tokenizers of a recipe, each `None` if it cannot be used.
struct Tokenizers {
    queries: Option<Tokenizer>,
    targets: Option<Tokenizer>,
}

/// Check of one recipe, with the problems that were found so far.
struct Inspection {
    found: Inputs,
    skip_missing: bool,
    /// Step of the checkpoint that `init.run` names; `None` for the newest.
    step: Option<u64>,
    storage: Storage,
}

impl Inspection {
    fn add(&mut self, key: impl Into<String>, what: impl Into<String>, help: impl Into<String>) {
        let problem = Problem { key: key.into(), what: what.into(), help: help.into() };
        self.found.problems.push(problem);
    }

    /// Whether a missing file is not to be reported.
    fn is_skipped(&self, path: &Path) -> bool {
        self.skip_missing && !path.exists()
    }

    fn tokenizers(&mut self, recipe: &Recipe) -> Tokenizers {
        let model = &recipe.model;
        let mut load = |part: &str, path: Option<&Path>, loaded: fn(&_) -> _| {
            if path.is_none_or(|path| self.is_skipped(path)) {
                return None;
            }
            let error = match loaded(model) {
                Ok(tokenizer) => return Some(tokenizer),
                Err(error) => error,
            };
            let (key, what) = match error {
                DataError::Recipe { key, reason } => (key, reason),
                other => (format!("model.{part}.tokenizer"), other.to_string()),
            };
            self.add(key, what, "name the `tokenizer.json` that was published with the weights");
            None
        };
        let (queries, targets) = match model.kind {
            ModelKind::VlJepa | ModelKind::YDecoder => {
                (model.predictor.tokenizer.as_deref(), model.y_encoder.tokenizer())
            }
            ModelKind::DualEncoder => (None, model.y_encoder.tokenizer()),
            ModelKind::Vlm => {
                let path = model.vlm().and_then(|l| l.tokenizer.as_deref());
                let questions = |model: &_| Conversation::of(model).map(|c| c.questions);
                let answers = |model: &_| Conversation::of(model).map(|c| c.answers);
                let queries = load("language_model", path, questions);
                // The same file: its mistakes were reported.
                let targets = queries.as_ref().and_then(|_| answers(model).ok());
                return Tokenizers { queries, targets };
            }
        };
        let outputs = model.decoder().and_then(schema::YDecoder::tokenizer);
        load("y_decoder", outputs, Tokenizer::of_outputs);
        Tokenizers {
            queries: load("predictor", queries, Tokenizer::of_queries),
            targets: load("y_encoder", targets, Tokenizer::of_targets),
        }
    }

    /// Checks that a text of the recipe has tokens that the embedding has rows for.
    fn text(&mut self, tokenizer: Option<&Tokenizer>, text: &str, key: impl Fn() -> String) {
        if let Some(Err(error)) = tokenizer.map(|tokenizer| tokenizer.encode(text)) {
            self.add(key(), error.to_string(), "use another text");
        }
    }

    /// Checks headers, shapes and numbers of the weights.
    fn weights(&mut self, recipe: &Recipe) {
        let mut published = weights::published(&recipe.model);
        published.retain(|file| !self.is_skipped(&file.path));
        let init = recipe.init.as_ref().filter(|init| !self.is_awaited(init));
        if published.is_empty() && init.is_none() {
            return;
        }
        match recipe.model.kind {
            ModelKind::VlJepa | ModelKind::YDecoder => {
                self.weights_of::<VlJepa>(recipe, &published, init);
            }
            ModelKind::DualEncoder => self.weights_of::<DualEncoder>(recipe, &published, init),
            ModelKind::Vlm => self.weights_of::<Vlm>(recipe, &published, init),
        }
    }

    fn weights_of<M: Network>(
        &mut self,
        recipe: &Recipe,
        published: &[Published],
        init: Option<&Init>,
    ) {
        match M::build(recipe, Device::Host) {
            Ok(model) => {
                self.published(model.parts(), published);
                if let Some(init) = init {
                    self.init(init, model.parts());
                }
            }
            Err(error) => self.add("model", error.to_string(), "correct this size"),
        }
    }

    /// Checks the published files of a model.
    fn published(&mut self, model: Parts<'_>, published: &[Published]) {
        let errors: Vec<_> = published
            .par_iter()
            .filter_map(|file| {
                let error = weights::check(model, file.source, &file.path).err()?;
                Some((file.key, error))
            })
            .collect();
        for (key, error) in errors {
            let help = match error {
                ModelError::MisshapenTensor { .. } => {
                    "the sizes of this part of the model must be those of the published model"
                }
                ModelError::MissingTensors { .. } => "name the weights of the model of this part",
                ModelError::UnusedTensors { .. } => {
                    "the number of layers must be that of the published model"
                }
                _ => "name a whole file with the weights of this part of the model",
            };
            self.add(key, error.to_string(), help);
        }
    }

    /// Whether the path in `init` does not exist yet and need not exist now. Adds a warning then,
    /// because a run must write the weights before this recipe can start.
    fn is_awaited(&mut self, init: &Init) -> bool {
        let awaited = self.skip_missing && !initial::is_there(init);
        if awaited {
            let (key, path) = (init.key(), init.path().display());
            let what = match init {
                Init::Run(_) => "holds no run with a checkpoint",
                Init::Export(_) | Init::Weights(_) => "does not exist",
            };
            let text = format!("{key}: {path} {what}, so that this recipe cannot start yet");
            self.found.warnings.push(text);
        }
        awaited
    }

    /// Checks the weights that `init` names.
    fn init(&mut self, init: &Init, model: Parts<'_>) {
        let files = initial::files(init, model).into_par_iter();
        let mut errors: Vec<ModelError> =
            files.filter_map(|file| initial::check(model, file).err()).collect();
        if let Init::Run(run) = init {
            match OtherRun::open(run, self.step, &Collectives::Solo(Solo)) {
                Ok(run) => {
                    errors.extend(run.check(model.layout()).err());
                    let warning =
                        |passed| format!("{}: a checkpoint does not verify: {passed}", init.key());
                    self.found.warnings.extend(run.passed_over.into_iter().map(warning));
                }
                Err(error) => {
                    let help = "name the directory of another run, or restore its files";
                    self.add(init.key(), format!("{error:#}"), help);
                }
            }
        }
        for error in errors {
            let help = match (&error, init) {
                (
                    ModelError::MisshapenTensor { .. }
                    | ModelError::MissingTensors { .. }
                    | ModelError::UnusedTensors { .. },
                    _,
                ) => "the model of the recipe must be the model that these weights were trained in",
                (_, Init::Export(_)) => "name a whole folder that `vljepa-launch export` wrote",
                (_, Init::Run(_) | Init::Weights(_)) => "name a whole file with these weights",
            };
            self.add(init.key(), error.to_string(), help);
        }
    }

    /// Checks the shards of an entry, and updates their catalogue in the folder `chosen`. Returns
    /// whether all of them can be used.
    fn shards(&mut self, key: &str, entry: &str, chosen: Option<&Path>) -> bool {
        // A plan is made on machines that reach neither the shards nor their servers.
        if self.skip_missing && vljepa_recipes::is_remote(entry) {
            return false;
        }
        let mut set = match Expanded::of(&self.storage, entry) {
            Ok(set) => set,
            // The launcher itself reports a local entry that matches no file.
            Err(DataError::NoShards { .. }) if !vljepa_recipes::is_remote(entry) => return false,
            Err(error) => {
                self.add(key, error.to_string(), "name a folder, a tar, a range or a list of tars");
                return false;
            }
        };
        let named = set.shards.len();
        set.shards.retain(|shard| match &shard.location {
            Location::Local(path) => !self.is_skipped(path),
            Location::Remote(_) => !self.skip_missing,
        });
        let folder = match CatalogueFolder::of(&set, chosen) {
            Ok(folder) => folder,
            Err(error) => {
                self.add(key, error.to_string(), "set the key `catalogue` beside `shards`");
                return false;
            }
        };
        let updated = update(&self.storage, &set.shards, &folder, Unlisted::Believe, &|_| {});
        if let Some(error) = updated.unwritten {
            self.found.warnings.push(format!(
                "{key}: the catalogue {} cannot be written, so that every start reads all shards: \
                 {error}",
                folder.path.display()
            ));
        }
        let samples: u64 = updated.shards.iter().map(|(_, record)| record.samples).sum();
        let (mut errors, mut remarks) = (updated.errors, Vec::new());
        for (path, record) in updated.shards.iter().filter(|(_, record)| record.remarks > 0) {
            match folder.open_shard(&self.storage, path, record) {
                Ok((_, index)) => remarks.extend(
                    index.remarks().iter().map(|remark| format!("{key}: {path}: {remark}")),
                ),
                Err(error) => errors.push(error),
            }
        }
        let bad = errors.len();
        for error in errors.iter().take(SHOWN_SHARDS) {
            self.add(key, error.to_string(), "repair the shard, or remove it from the data");
        }
        let more = remarks.len().saturating_sub(SHOWN_SHARDS);
        self.found.warnings.extend(remarks.into_iter().take(SHOWN_SHARDS));
        if more > 0 {
            let text = format!("{key}: {more} more warnings; `vljepa-shards inspect` shows them");
            self.found.warnings.push(text);
        }
        if bad > SHOWN_SHARDS {
            let what = format!("{bad} of the {named} shards cannot be used");
            self.add(key, what, "`vljepa-shards index` names all of them");
        } else if samples == 0 && bad == 0 && !set.shards.is_empty() {
            let what = format!("the {named} shards of `{entry}` hold no complete sample");
            self.add(key, what, "`vljepa-shards inspect` shows why");
        }
        bad == 0 && samples > 0 && set.shards.len() == named
    }
}

#[cfg(test)]
mod tests;
