//! Recipes with which the rows of a table are measured.

use std::path::Path;

use serde_json::Value;

use crate::check::{self, Problem};
use crate::load::load_resolved;
use crate::run_directory::RunDirectory;
use crate::schema::{
    Checkpoints, Data, Init, Model, ModelKind, Recipe, Row, RowWeights, Table, Task,
};

/// Recipe with which a row of a table is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct RowRecipe {
    /// Name of the row.
    pub name: String,
    /// Recipe of the row's run, export or dual encoder, with the tasks, the device and the data
    /// threads of the table's recipe. `init` names the run or the export.
    pub recipe: Recipe,
    /// Step of the run's checkpoint. `None` for the newest one, and if the row names no run.
    pub step: Option<u64>,
    /// Whether the row's run has still to be made, so that `init` cannot be read yet.
    pub is_awaited: bool,
}

/// Recipe of a run that has still to be made, by its directory. `None` if the directory is read.
pub type Awaited<'a> = &'a dyn Fn(&Path) -> Option<Recipe>;

impl RowRecipe {
    /// Returns a problem of the row's recipe under the key of the table's recipe that it concerns.
    #[must_use]
    pub fn problem(&self, problem: Problem) -> Problem {
        let Problem { key, what, help } = problem;
        let row = format!("table.rows.{}", self.name);
        match (key.strip_prefix("init"), &self.recipe.init) {
            (Some(rest), Some(_)) => Problem { key: row + rest, what, help },
            _ if key.starts_with("evaluation.") => Problem { key, what, help },
            // The keys of the model are in the recipe of the run or export.
            (_, Some(init)) => {
                let own = init.key().trim_start_matches("init");
                Problem { key: row + own, what: format!("its {key}: {what}"), help }
            }
            (_, None) => Problem { key: format!("{row}.{key}"), what, help },
        }
    }

    /// The recipe with the files that the measurement reads, and no others: without training data,
    /// without a run that is awaited and, if the table leaves them out, without sets that are not
    /// on this disk.
    #[must_use]
    pub fn read(&self, table: &Table) -> Recipe {
        let mut recipe = self.recipe.clone();
        recipe.data.sources.clear();
        recipe.init = recipe.init.filter(|_| !self.is_awaited);
        if table.skip_absent_sets {
            recipe.evaluation.tasks.retain(|task| !is_absent(task));
        }
        recipe
    }
}

/// Whether the task measures a set that is not on this disk.
#[must_use]
pub fn is_absent(task: &Task) -> bool {
    task.set.as_ref().is_some_and(|set| !set.root.is_dir())
}

/// Returns the recipe of each row of a table, in the order of their names, or the reason why it
/// cannot be measured. Empty if the recipe has no table.
///
/// The recipes of runs and exports are read from the disk, so that a table can be checked and
/// planned on machines that have none of them.
#[must_use]
pub fn row_recipes(recipe: &Recipe) -> Vec<Result<RowRecipe, Problem>> {
    row_recipes_with(recipe, &|_| None)
}

/// Returns what [`row_recipes`] returns, with the given recipes for runs that have still to be
/// made.
#[must_use]
pub fn row_recipes_with(recipe: &Recipe, awaited: Awaited<'_>) -> Vec<Result<RowRecipe, Problem>> {
    let rows = recipe.table.iter().flat_map(|table| &table.rows);
    rows.map(|(name, row)| row_recipe(recipe, name, row, awaited)).collect()
}

/// Returns a problem for each file of the recipe that does not exist, as [`check::check_files`]
/// does, and for a table those of its rows. A table without tasks needs none.
#[must_use]
pub fn check_files(recipe: &Recipe) -> Vec<Problem> {
    check_files_with(recipe, &|_| None)
}

/// Returns what [`check_files`] returns, with the given recipes for runs that have still to be
/// made.
#[must_use]
pub fn check_files_with(recipe: &Recipe, awaited: Awaited<'_>) -> Vec<Problem> {
    let Some(table) = &recipe.table else { return check::check_files(recipe) };
    let mut found: Vec<Problem> = Vec::new();
    if recipe.evaluation.tasks.is_empty() {
        return found;
    }
    for row in row_recipes_with(recipe, awaited) {
        let of_row = match row {
            Ok(row) => {
                let problems = check::check_files(&row.read(table)).into_iter();
                problems.map(|problem| row.problem(problem)).collect()
            }
            Err(problem) => vec![problem],
        };
        // The tasks are the same for all rows.
        found.extend(
            of_row.into_iter().filter(|problem| !found.contains(problem)).collect::<Vec<_>>(),
        );
    }
    if table.skip_absent_sets && recipe.evaluation.tasks.iter().all(is_absent) {
        let what = "no set of the table is on this disk".to_owned();
        let help = "`vljepa-launch sets` says where the sets are published".to_owned();
        found.push(Problem { key: "evaluation.tasks".to_owned(), what, help });
    }
    found
}

fn row_recipe(
    recipe: &Recipe,
    name: &str,
    row: &Row,
    awaited: Awaited<'_>,
) -> Result<RowRecipe, Problem> {
    let key = |key: &str| format!("table.rows.{name}.{key}");
    let problem =
        |at: &str, what: String, help: &str| Problem { key: key(at), what, help: help.to_owned() };
    let none = || problem("run", "is not set".to_owned(), "name a run, an export or a model");
    let mut is_awaited = false;
    let (own, step) = match row.weights().ok_or_else(none)? {
        RowWeights::Model(model) => (Recipe { model: model.clone(), ..recipe.clone() }, None),
        RowWeights::Run(run, step) => {
            let own = if let Some(own) = awaited(run) {
                is_awaited = true;
                own
            } else {
                let read = RunDirectory::open(run).and_then(|run| run.load_recipe());
                let help = "train that run first, or leave the row out: `null`";
                read.map_err(|error| problem("run", error.to_string(), help))?.recipe
            };
            if own.table.is_some() || own.model.kind == ModelKind::DualEncoder {
                let what = format!("{} has no weights of its own", run.display());
                let help = "name a run that was trained, or the model with the key `model`";
                return Err(problem("run", what, help));
            }
            let init = Some(Init::Run(run.to_owned()));
            (Recipe { model: without_weights(&own.model, true), init, ..own }, step)
        }
        RowWeights::Export(folder) => {
            let own = exported(folder).map_err(|what| {
                problem("export", what, "write it first: `vljepa-launch export RUN FOLDER`")
            })?;
            let init = Some(Init::Export(folder.to_owned()));
            (Recipe { model: without_weights(&own.model, false), init, ..own }, None)
        }
    };
    let recipe = measured(recipe, name, own);
    let own = check::check(&recipe).into_iter().find(|found| concerns_tasks(&found.key));
    if let Some(Problem { key, what, help }) = own {
        return Err(Problem { key, what: format!("{what} (row {name})"), help });
    }
    // A run that was trained on the host may have sizes that no GPU computes.
    let kernels = check::kernels_of_row(&recipe).into_iter().next();
    let row = RowRecipe { name: name.to_owned(), recipe, step, is_awaited };
    match kernels {
        Some(problem) => Err(row.problem(problem)),
        None => Ok(row),
    }
}

/// Whether a problem lies in the tasks: the other keys of a row are those of a run that was checked
/// when it started.
fn concerns_tasks(key: &str) -> bool {
    key.starts_with("evaluation.tasks")
}

/// The recipe `own` of a row with what the recipe of the table says about a measurement.
fn measured(table: &Recipe, name: &str, own: Recipe) -> Recipe {
    let Recipe { device, precision, deterministic, evaluation, .. } = table.clone();
    let data = Data { sources: own.data.sources, ..table.data.clone() };
    Recipe {
        name: name.to_owned(),
        device,
        precision,
        deterministic,
        data,
        evaluation,
        table: None,
        // They may name metrics that the table does not measure.
        checkpoints: Checkpoints::default(),
        ..own
    }
}

fn exported(folder: &Path) -> Result<Recipe, String> {
    let path = folder.join("recipe.yaml");
    if !path.is_file() {
        return Err(format!("{} has no recipe.yaml", folder.display()));
    }
    Ok(load_resolved(&path).map_err(|error| error.to_string())?.recipe)
}

/// The model with `weights: null` in all its parts, because `init` brings them. An export may lack
/// the `decoder`, which then has the weights that its own file holds.
fn without_weights(model: &Model, decoder: bool) -> Model {
    let mut keys = serde_json::to_value(model).expect("keys of recipes are plain values");
    for (part, keys) in keys.as_object_mut().into_iter().flatten() {
        if let Some(weights) = keys.get_mut("weights").filter(|_| decoder || part != "y_decoder") {
            *weights = Value::Null;
        }
    }
    serde_json::from_value(keys).expect("files are optional")
}
