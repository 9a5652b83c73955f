//! Checks before a start or dry run: the files that the recipe names, the programs, and the
//! features of the worker.

use vljepa_recipes::check::Problem;
use vljepa_recipes::protocol::Inputs;
use vljepa_recipes::schema::Recipe;
use vljepa_recipes::{Loaded, check_files};

use crate::error::{FileProblem, LaunchError};
use crate::programs::{self, Programs, needs, recipe_file};
use crate::terminal;

/// Checks everything that a start needs, and returns the programs. `resumes` says that the run has
/// a checkpoint, so that it does not read `init`.
pub(crate) async fn preflight(loaded: &Loaded, resumes: bool) -> Result<Programs, LaunchError> {
    let recipe = &loaded.recipe;
    let init = recipe.init.clone().filter(|_| !resumes);
    refuse(check_files(&Recipe { init, ..recipe.clone() }))?;
    let programs = Programs::find()?;
    needs::check(recipe, &programs).await?;
    check_inputs(loaded, &programs, false, resumes).await?;
    Ok(programs)
}

/// Checks the files of the recipe that exist on this machine, as a start does.
pub(crate) async fn check_present_files(loaded: &Loaded, resumes: bool) -> Result<(), LaunchError> {
    match Programs::find() {
        Ok(programs) => check_inputs(loaded, &programs, true, resumes).await,
        Err(error) => {
            terminal::note(&format!("warning: the recipe's files were not checked: {error}"));
            Ok(())
        }
    }
}

/// Lets the worker, which reads shards and weights, check the files.
async fn check_inputs(
    loaded: &Loaded,
    programs: &Programs,
    skip_missing: bool,
    resumes: bool,
) -> Result<(), LaunchError> {
    let Inputs { problems, warnings } =
        inputs(&loaded.yaml, programs, skip_missing, resumes).await?;
    for warning in warnings {
        terminal::note(&format!("warning: {warning}"));
    }
    refuse(problems)
}

/// Lets the worker check the files that a resolved recipe names.
pub(crate) async fn inputs(
    yaml: &str,
    programs: &Programs,
    skip_missing: bool,
    resumes: bool,
) -> Result<Inputs, LaunchError> {
    let file = recipe_file(yaml)?;
    programs::inputs(programs, file.path(), skip_missing, resumes).await
}

fn refuse(problems: Vec<Problem>) -> Result<(), LaunchError> {
    if problems.is_empty() {
        return Ok(());
    }
    let problems = problems.into_iter();
    let problem = |Problem { key, what, help }| FileProblem { key, what, help };
    Err(LaunchError::Files { problems: problems.map(problem).collect() })
}
