//! What a recipe needs of the programs: `mpirun`, and features of the worker.

use vljepa_recipes::schema::{Device, Recipe, Scheduler, TaskKind, Visual};

use super::Programs;
use crate::error::LaunchError;

/// Refuses programs with which the recipe cannot start on this machine.
pub(crate) async fn check(recipe: &Recipe, programs: &Programs) -> Result<(), LaunchError> {
    let (cluster, ranks) = (&recipe.cluster, recipe.cluster.world_size());
    let through_mpirun =
        cluster.scheduler == Scheduler::Local && recipe.device == Device::Host && ranks > 1;
    if through_mpirun && programs.mpirun.is_none() {
        return Err(LaunchError::MpirunMissing { ranks });
    }
    check_features(recipe, programs).await
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
