//! `vljepa-launch RECIPE`: from the command line to a supervised run, and what is said at its end.

use std::path::{Path, PathBuf};

use vljepa_recipes::run_directory::{Found, RunDirectory, RunLock};
use vljepa_recipes::schema::{Device, Recipe, Scheduler, Visual};
use vljepa_recipes::{Loaded, check_files, load};

use crate::cli::{Place, Train};
use crate::error::{FileProblem, LaunchError};
use crate::local::Programs;
use crate::plan::Plan;
use crate::provenance::RunRecord;
use crate::supervise::{self, Ending, Limits, Run, Signals};
use crate::{report, terminal};

/// Trains a recipe, or says what that would be.
pub(crate) async fn train(arguments: &Train) -> Result<u8, LaunchError> {
    // Required by the command line.
    let Some(recipe) = &arguments.recipe else { return Ok(2) };
    let loaded = load(recipe, &arguments.place.set)?;
    warn(&loaded);
    if arguments.dry_run {
        terminal::result(&format!("{}\n", loaded.yaml.trim_end()));
        terminal::result(&Plan::of(&loaded.recipe).to_string());
        return Ok(0);
    }
    let root = root(&arguments.place, &loaded.recipe);
    start(loaded, &root, None).await
}

/// Trains in `root`, or continues there. `reproduces` is the run that this one repeats.
pub(crate) async fn start(
    loaded: Loaded,
    root: &Path,
    reproduces: Option<&Path>,
) -> Result<u8, LaunchError> {
    let opened = open(root, &loaded)?;
    if let Some((directory, _lock)) = &opened
        && supervise::completion_fault(directory, &loaded.recipe).is_ok()
    {
        terminal::note(&format!("the run in {} is complete already", root.display()));
        conclude(directory);
        return Ok(0);
    }
    let programs = preflight(&loaded.recipe).await?;
    let (directory, _lock) = match opened {
        Some(opened) => opened,
        None => create(root, &loaded)?,
    };
    let mut signals = Signals::listen().map_err(|error| LaunchError::Start {
        what: "listening to signals".to_owned(),
        why: error.to_string(),
    })?;
    let mut record = RunRecord::collect(&directory, &loaded.recipe, &loaded.hash, &programs).await;
    if let Some(of) = reproduces {
        record.reproduces = Some(of.to_owned());
    }
    record.write(&directory)?;
    let limits = Limits::new(loaded.recipe.cluster.start_timeout_s);
    terminal::note(&format!("run directory: {}", root.display()));
    let mut run = Run {
        directory,
        recipe: loaded.recipe,
        recipe_hash: loaded.hash,
        programs,
        limits,
        record,
    };
    let ended = supervise::supervise(&mut run, &mut signals).await;
    finish(&run, ended)
}

/// The last words of a run that was started.
fn finish(run: &Run, ended: Result<Ending, LaunchError>) -> Result<u8, LaunchError> {
    let step = run.record.attempts.last().map_or(0, |attempt| attempt.last_step);
    let command = run.record.command.join(" ");
    match ended {
        Ok(Ending::Completed) => {
            terminal::note(&format!("complete: {} steps", terminal::thousands(step)));
            conclude(&run.directory);
            Ok(0)
        }
        Ok(Ending::Stopped(signal)) => {
            terminal::note(&format!("saved and stopped at step {step}; to continue: {command}"));
            make_report(&run.directory);
            Ok(signal.exit_code())
        }
        Ok(Ending::Killed(signal)) => {
            terminal::note(&format!(
                "ended at once at step {step}; to continue from the newest checkpoint: {command}"
            ));
            Ok(signal.exit_code())
        }
        Err(error) => {
            make_report(&run.directory);
            Err(error)
        }
    }
}

/// The scores and where the report is.
fn conclude(directory: &RunDirectory) {
    if let Some(table) = report::scores_table(directory) {
        terminal::result(&table);
    }
    make_report(directory);
}

/// A report that cannot be written does not change how the run ended.
fn make_report(directory: &RunDirectory) {
    match report::write(directory) {
        Ok(path) => terminal::note(&format!("report: {}", path.display())),
        Err(error) => terminal::note(&format!("warning: no report: {error}")),
    }
}

/// Shows what is allowed but rarely meant.
pub(crate) fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        terminal::note(&format!("warning: {warning}"));
    }
}

/// Where the run is written.
pub(crate) fn root(place: &Place, recipe: &Recipe) -> PathBuf {
    place.run.clone().unwrap_or_else(|| recipe.runs.join(&recipe.name))
}

/// Takes a run directory that is there; none when there is none. The lock comes first, because a recipe that differs in
/// permitted keys is written over the old one.
pub(crate) fn open(
    root: &Path,
    loaded: &Loaded,
) -> Result<Option<(RunDirectory, RunLock)>, LaunchError> {
    let Ok(directory) = RunDirectory::open(root) else { return Ok(None) };
    let lock = directory.lock()?;
    let (directory, found) = RunDirectory::create(root, loaded)?;
    match found {
        Found::Existing { changes } if !changes.is_empty() => terminal::note(&format!(
            "continuing {} with changed keys:\n{}",
            root.display(),
            changes.join("\n")
        )),
        Found::Existing { .. } | Found::New => {}
    }
    Ok(Some((directory, lock)))
}

/// Makes and takes a run directory.
pub(crate) fn create(root: &Path, loaded: &Loaded) -> Result<(RunDirectory, RunLock), LaunchError> {
    let (directory, _) = RunDirectory::create(root, loaded)?;
    let lock = directory.lock()?;
    Ok((directory, lock))
}

/// Everything that can be refused before something is started.
pub(crate) async fn preflight(recipe: &Recipe) -> Result<Programs, LaunchError> {
    let cluster = &recipe.cluster;
    match cluster.scheduler {
        Scheduler::Slurm => return Err(LaunchError::Scheduler),
        Scheduler::Local => {}
    }
    let problems: Vec<FileProblem> = check_files(recipe)
        .into_iter()
        .map(|problem| FileProblem { key: problem.key, what: problem.what, help: problem.help })
        .collect();
    if !problems.is_empty() {
        return Err(LaunchError::Files { problems });
    }
    let programs = Programs::find()?;
    let ranks = cluster.world_size();
    if ranks > 1 && programs.mpirun.is_none() {
        return Err(LaunchError::MpirunMissing { ranks });
    }
    check_features(recipe, &programs).await?;
    Ok(programs)
}

/// Refuses a worker that was built without what the recipe needs.
async fn check_features(recipe: &Recipe, programs: &Programs) -> Result<(), LaunchError> {
    let features = programs.features().await?;
    if recipe.device == Device::Cuda && !features.cuda {
        return Err(LaunchError::NoCuda { worker: programs.worker.clone() });
    }
    let ranks = recipe.cluster.world_size();
    let clips = recipe.data.sources.iter().find(|(_, source)| source.visual == Visual::Video);
    let needs = [
        ("mpi", features.mpi, (ranks > 1).then(|| format!("the run has {ranks} ranks"))),
        (
            "video",
            features.video,
            clips.map(|(name, _)| format!("data.sources.{name} holds clips")),
        ),
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
