//! `vljepa-launch RECIPE`: from the command line to a supervised run, and what is said at its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vljepa_recipes::protocol::Drill;
use vljepa_recipes::run_directory::{Found, RunDirectory, RunDirectoryError, RunLock};
use vljepa_recipes::schema::{Device, Recipe, Scheduler, Visual};
use vljepa_recipes::{Loaded, check_files, load};

use crate::cli::{Place, Train};
use crate::error::{FileProblem, LaunchError};
use crate::local::Programs;
use crate::plan::Plan;
use crate::platform::Platform;
use crate::provenance::RunRecord;
use crate::slurm::allocation::Allocation;
use crate::slurm::guard;
use crate::slurm::render::{BatchScript, REQUEUE};
use crate::slurm::requeue::requeue;
use crate::slurm::submit::{self, Submission};
use crate::supervise::{self, Ending, Limits, Run, Signals};
use crate::{report, terminal};

/// How long a lock that somebody else holds is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Trains a recipe, or says what that would be.
pub(crate) async fn train(arguments: &Train) -> Result<u8, LaunchError> {
    // Required by the command line.
    let Some(recipe) = &arguments.recipe else { return Ok(2) };
    let loaded = load(recipe, &arguments.place.set)?;
    warn(&loaded);
    check_drills(&arguments.drill, &loaded.recipe)?;
    if arguments.dry_run {
        terminal::result(&format!("{}\n", loaded.yaml.trim_end()));
        terminal::result(&Plan::of(&loaded.recipe).to_string());
        if loaded.recipe.cluster.scheduler == Scheduler::Slurm {
            terminal::result(&format!("\n{}", preview(&arguments.place, &loaded.recipe)));
        }
        return Ok(0);
    }
    let root = root(&arguments.place, &loaded.recipe);
    let how = How { drills: arguments.drill.clone(), follow: arguments.follow, reproduces: None };
    start(loaded, &root, how).await
}

/// What a run is started with beside its recipe.
#[derive(Debug, Default)]
pub(crate) struct How<'a> {
    /// Faults to rehearse.
    pub drills: Vec<Drill>,
    /// On Slurm: stay and watch.
    pub follow: bool,
    /// The run that this one repeats.
    pub reproduces: Option<&'a Path>,
}

/// Trains in `root`, or continues there; on a Slurm cluster, has it trained there.
pub(crate) async fn start(loaded: Loaded, root: &Path, how: How<'_>) -> Result<u8, LaunchError> {
    if let (Scheduler::Slurm, None) = (loaded.recipe.cluster.scheduler, submit::inside()) {
        return submit_run(root, &loaded, how).await;
    }
    let opened = open(root, &loaded)?;
    if let Some((directory, _lock)) = &opened
        && is_complete(directory, &loaded.recipe)
    {
        return Ok(0);
    }
    let programs = preflight(&loaded.recipe).await?;
    let (directory, _lock) = match opened {
        Some(opened) => opened,
        None => create(root, &loaded)?,
    };
    work_on(directory, loaded, programs, how).await
}

/// The batch script as it would be submitted.
fn preview(place: &Place, recipe: &Recipe) -> BatchScript {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let run = absolute(&root(place, recipe));
    let launcher = run.join("bin/…/vljepa-launch");
    BatchScript::of(recipe, &run, &absolute(Path::new(".")), &launcher)
}

/// `vljepa-launch supervise RUN`: the batch script's part of a submitted run. Where the run has to go on later, its job is put into the queue.
pub(crate) async fn supervise_job(run: &Path) -> Result<u8, LaunchError> {
    let Some(variables) = submit::inside() else { return Err(LaunchError::NotInJob) };
    let directory = RunDirectory::open(run)?;
    let code = {
        // Another job may take the run up before this one is gone from its nodes.
        let _lock = lock(&directory).await?;
        supervise_locked(&directory).await?
    };
    if code == REQUEUE { requeue(&directory, &variables.job).await } else { Ok(code) }
}

async fn supervise_locked(directory: &RunDirectory) -> Result<u8, LaunchError> {
    let loaded = directory.load_recipe()?;
    if is_complete(directory, &loaded.recipe) {
        return Ok(0);
    }
    let programs = Programs::find()?;
    check_features(&loaded.recipe, &programs).await?;
    let drills = Submission::read(directory).map(|s| s.drills).unwrap_or_default();
    work_on(directory.clone(), loaded, programs, How { drills, ..How::default() }).await
}

/// A supervisor that was killed a moment ago may still hold the lock, where locks travel over a network.
async fn lock(directory: &RunDirectory) -> Result<RunLock, LaunchError> {
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match directory.lock() {
            Err(RunDirectoryError::InUse { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            locked => return Ok(locked?),
        }
    }
}

/// Puts a run into Slurm's queue, and stays to watch it where that was asked for.
async fn submit_run(root: &Path, loaded: &Loaded, how: How<'_>) -> Result<u8, LaunchError> {
    let known = RunDirectory::open(root).ok();
    submit::check(known.as_ref()).await?;
    let opened = open(root, loaded)?;
    if let Some((directory, _lock)) = &opened
        && is_complete(directory, &loaded.recipe)
    {
        return Ok(0);
    }
    let programs = preflight(&loaded.recipe).await?;
    let (directory, lock) = match opened {
        Some(opened) => opened,
        None => create(root, loaded)?,
    };
    let mut record = RunRecord::collect(&directory, &loaded.recipe, &loaded.hash, &programs).await;
    if let Some(of) = how.reproduces {
        record.reproduces = Some(of.to_owned());
    }
    record.write(&directory)?;
    submit::submit(&directory, &loaded.recipe, &programs, &how.drills).await?;
    drop(lock);
    if !how.follow {
        return Ok(0);
    }
    let mut signals = listen()?;
    tokio::select! {
        complete = submit::follow(&directory, &loaded.recipe) => {
            let complete = complete?;
            if complete {
                conclude(&directory);
            }
            Ok(u8::from(!complete))
        }
        _ = signals.next() => {
            terminal::note("the job goes on; the same command with --follow is not needed to keep it running");
            Ok(0)
        }
    }
}

/// Says so when there is nothing left to do.
fn is_complete(directory: &RunDirectory, recipe: &Recipe) -> bool {
    let complete = supervise::completion_fault(directory, recipe).is_ok();
    if complete {
        terminal::note(&format!("the run in {} is complete already", directory.root().display()));
        conclude(directory);
    }
    complete
}

fn listen() -> Result<Signals, LaunchError> {
    Signals::listen().map_err(|error| LaunchError::Start {
        what: "listening to signals".to_owned(),
        why: error.to_string(),
    })
}

/// Supervises a run that this process holds, on this machine or in the Slurm job around it.
async fn work_on(
    directory: RunDirectory,
    loaded: Loaded,
    programs: Programs,
    how: How<'_>,
) -> Result<u8, LaunchError> {
    let platform = match (loaded.recipe.cluster.scheduler, submit::inside()) {
        (Scheduler::Slurm, Some(variables)) => Platform::Slurm(Allocation::of(&variables)?),
        (Scheduler::Slurm | Scheduler::Local, _) => Platform::Local,
    };
    if let Some(job) = platform.job() {
        submit::take_over(&directory, job)?;
        platform.clear().await;
    }
    drop(std::fs::remove_file(directory.stop()));
    let ahead = Duration::from_secs(loaded.recipe.cluster.slurm.signal_ahead_s);
    let mut signals = listen()?.watching(directory.stop(), platform.end().await, ahead);
    let mut record = RunRecord::collect(&directory, &loaded.recipe, &loaded.hash, &programs).await;
    if let Some(of) = how.reproduces {
        record.reproduces = Some(of.to_owned());
    }
    record.write(&directory)?;
    let limits = Limits::new(&loaded.recipe);
    terminal::note(&format!("run directory: {}", directory.root().display()));
    let mut run = Run {
        directory,
        recipe: loaded.recipe,
        recipe_hash: loaded.hash,
        programs,
        platform,
        limits,
        record,
        drills: how.drills,
    };
    let counting = run.platform.job().is_some().then(|| guard::count(&run.directory));
    let ended = supervise::supervise(&mut run, &mut signals).await;
    counting.inspect(tokio::task::JoinHandle::abort);
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
            Ok(signal.exit_code(run.platform.job().is_some()))
        }
        Ok(Ending::Unplaced(reason)) => {
            terminal::note(&format!("error: {reason}; to continue on other nodes: {command}"));
            Ok(REQUEUE)
        }
        Ok(Ending::Killed(signal)) => {
            terminal::note(&format!(
                "ended at once at step {step}; to continue from the newest checkpoint: {command}"
            ));
            Ok(signal.exit_code(run.platform.job().is_some()))
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

/// Refuses drills that could never happen.
fn check_drills(drills: &[Drill], recipe: &Recipe) -> Result<(), LaunchError> {
    let steps: u64 = recipe.stages.iter().map(|stage| stage.steps).sum();
    let ranks = recipe.cluster.world_size();
    for drill in drills {
        let why = match drill.rank() {
            Some(rank) if rank >= ranks => {
                format!("the run has {ranks} ranks, the first one is rank 0")
            }
            // The checkpoint of the last step bears the number of steps.
            _ if drill.step > steps => format!("the run has {steps} steps"),
            _ => continue,
        };
        return Err(LaunchError::Drill { drill: drill.to_string(), why });
    }
    Ok(())
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
    let problems: Vec<FileProblem> = check_files(recipe)
        .into_iter()
        .map(|problem| FileProblem { key: problem.key, what: problem.what, help: problem.help })
        .collect();
    if !problems.is_empty() {
        return Err(LaunchError::Files { problems });
    }
    let programs = Programs::find()?;
    let (cluster, ranks) = (&recipe.cluster, recipe.cluster.world_size());
    let through_mpirun =
        cluster.scheduler == Scheduler::Local && recipe.device == Device::Host && ranks > 1;
    if through_mpirun && programs.mpirun.is_none() {
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
    let through_mpi = ranks > 1 && recipe.device == Device::Host;
    let clips = recipe.data.sources.iter().find(|(_, source)| source.visual == Visual::Video);
    let needs = [
        ("mpi", features.mpi, through_mpi.then(|| format!("the run has {ranks} ranks"))),
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
