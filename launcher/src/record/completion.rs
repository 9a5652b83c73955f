//! The completion record, `completed.json`: the only sign of success of a run.

use std::path::Path;

use serde_json::Value;
use vljepa_recipes::clock;
use vljepa_recipes::run_directory::{RunDirectory, RunDirectoryError, atomic_write};
use vljepa_recipes::schema::Recipe;

/// Writes the record of a table of scores that other runs have measured. All other records are
/// written by the worker of rank 0.
pub(crate) fn write_collected(
    directory: &RunDirectory,
    recipe_hash: &str,
) -> Result<(), RunDirectoryError> {
    let record = serde_json::json!({
        "step": 0,
        "samples": 0,
        "bad_samples": 0,
        "recipe_hash": recipe_hash,
        "time": clock::now_text(),
    });
    atomic_write(&directory.completed(), record.to_string().as_bytes())
}

/// Checks that the run has a completion record and that the record is of the recipe's last step.
/// The error says what is wrong with the record.
pub(crate) fn check(directory: &RunDirectory, recipe: &Recipe) -> Result<(), String> {
    let path = directory.completed();
    let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let text = std::fs::read(&path).map_err(|error| wrong(&error))?;
    let record: Value = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    let total = recipe.total_steps();
    match record.get("step").and_then(Value::as_u64) {
        Some(step) if step == total => Ok(()),
        Some(step) => Err(wrong(&format!("the record is of step {step}, the recipe has {total}"))),
        None => Err(wrong(&"the record has no step")),
    }
}

/// Time of a run's completion record, or `None` if there is no record or it has no time.
pub(crate) fn time(directory: &RunDirectory) -> Option<jiff::Timestamp> {
    let record: Value = serde_json::from_slice(&std::fs::read(directory.completed()).ok()?).ok()?;
    record.get("time")?.as_str()?.parse().ok()
}

/// Checks that a directory holds a run that is complete according to its own recipe. The error says
/// why it is not.
pub(crate) fn check_run(run: &Path) -> Result<(), String> {
    let directory = RunDirectory::open(run).map_err(|error| error.to_string())?;
    let recipe = directory.load_recipe().map_err(|error| error.to_string())?.recipe;
    check(&directory, &recipe)
}
