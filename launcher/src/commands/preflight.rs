//! Checks before a start or dry run: the files that the recipe names, the programs, and the
//! features of the worker.

use std::io::Write;

use vljepa_recipes::check::Problem;
use vljepa_recipes::protocol::Inputs;
use vljepa_recipes::schema::{Device, Recipe, Scheduler, TaskKind, Visual};
use vljepa_recipes::{Loaded, check_files};

use crate::error::{FileProblem, LaunchError};
use crate::programs::{Programs, inputs};
use crate::terminal;

/// Checks everything that a start needs, and returns the programs. `resumes` says that the run has
/// a checkpoint, so that it does not read `init`.
pub(crate) async fn preflight(loaded: &Loaded, resumes: bool) -> Result<Programs, LaunchError> {
    let recipe = &loaded.recipe;
    let init = recipe.init.clone().filter(|_| !resumes);
    refuse(check_files(&Recipe { init, ..recipe.clone() }))?;
    let programs = Programs::find()?;
    let (cluster, ranks) = (&recipe.cluster, recipe.cluster.world_size());
    let through_mpirun =
        cluster.scheduler == Scheduler::Local && recipe.device == Device::Host && ranks > 1;
    if through_mpirun && programs.mpirun.is_none() {
        return Err(LaunchError::MpirunMissing { ranks });
    }
    check_features(recipe, &programs).await?;
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
    let failed = |error: std::io::Error| LaunchError::Start {
        what: "writing the recipe for the worker".to_owned(),
        why: error.to_string(),
    };
    let mut file = tempfile::NamedTempFile::with_suffix(".yaml").map_err(failed)?;
    file.write_all(loaded.yaml.as_bytes()).map_err(failed)?;
    let checked = inputs(programs, file.path(), skip_missing, resumes);
    let Inputs { problems, warnings } = checked.await?;
    for warning in warnings {
        terminal::note(&format!("warning: {warning}"));
    }
    refuse(problems)
}

fn refuse(problems: Vec<Problem>) -> Result<(), LaunchError> {
    if problems.is_empty() {
        return Ok(());
    }
    let problems = problems.into_iter();
    let problem = |Problem { key, what, help }| FileProblem { key, what, help };
    Err(LaunchError::Files { problems: problems.map(problem).collect() })
}

/// Refuses a worker that was built without a feature that the recipe needs.
pub(crate) async fn check_features(
    recipe: &Recipe,
    programs: &Programs,
) -> Result<(), LaunchError> {
    let features = programs.features().await?;
    if recipe.device == Device::Cuda && !features.cuda {
        return Err(LaunchError::NoCuda { worker: programs.worker.clone() });
    }
    let ranks = recipe.cluster.world_size();
    let through_mpi = ranks > 1 && recipe.device == Device::Host;
    let mut sources = recipe.data.sources.iter();
    let clips = sources.find(|(_, source)| source.visual == Visual::Video);
    let clips = clips.map(|(name, _)| format!("data.sources.{name} contains clips"));
    let mut tasks = recipe.evaluation.tasks.iter();
    let long = tasks.find(|task| matches!(task.kind, TaskKind::SelectiveDecoding(_)));
    let long = long.map(|task| format!("the task {} decodes long videos", task.name));
    let needs = [
        ("mpi", features.mpi, through_mpi.then(|| format!("the run has {ranks} ranks"))),
        ("video", features.video, clips.or(long)),
    ];
    let others: String =
        needs.iter().filter(|need| need.1).map(|need| format!(",{}", need.0)).collect();
    for (feature, there, need) in needs {
        if let Some(what) = need.filter(|_| !there) {
            let worker = programs.worker.clone();
            return Err(LaunchError::WorkerLacks { worker, feature, what, others });
        }
    }
    Ok(())
}
