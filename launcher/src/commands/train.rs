//! `vljepa-launch RECIPE`: starts or continues a run, on this machine or on Slurm, and reports how
//! it ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vljepa_recipes::protocol::Drill;
use vljepa_recipes::run_directory::{Found, RunDirectory, RunDirectoryError, RunLock};
use vljepa_recipes::schema::{Recipe, Scheduler};
use vljepa_recipes::{Loaded, load};

use super::preflight;
use crate::cli::{RecipeOptions, Train};
use crate::error::LaunchError;
use crate::plan::Overview;
use crate::platform::Platform;
use crate::platform::slurm::allocation::Allocation;
use crate::platform::slurm::guard;
use crate::platform::slurm::render::{BatchScript, REQUEUE};
use crate::platform::slurm::requeue::requeue;
use crate::platform::slurm::submit::{self, After, Submission};
use crate::programs::{Programs, needs};
use crate::record::history::Scores;
use crate::record::provenance::RunRecord;
use crate::record::{completion, history};
use crate::supervise::{self, Ending, Limits, Patience, Run, Signals};
use crate::{report, terminal};

/// How long a supervisor inside a Slurm job waits for the lock of the run directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a command waits for the lock: `status` holds it for some microseconds to test it.
pub(super) const BRIEF_LOCK_TIMEOUT: Duration = Duration::from_millis(300);

/// Trains a recipe, or with `--dry-run` prints the resolved recipe, the plan and, for Slurm, the
/// batch script.
pub(crate) async fn train(arguments: &Train) -> Result<u8, LaunchError> {
    // clap requires the recipe, so it is always given.
    let Some(recipe) = &arguments.recipe else { return Ok(2) };
    let loaded = load(recipe, &arguments.options.set)?;
    warn(&loaded);
    check_drills(&arguments.drill, &loaded.recipe)?;
    if arguments.dry_run {
        terminal::result(&format!("{}\n", loaded.yaml.trim_end()));
        terminal::result(&Overview::of(&loaded.recipe).to_string());
        if loaded.recipe.cluster.scheduler == Scheduler::Slurm {
            terminal::result(&format!("\n{}", preview(&arguments.options, &loaded.recipe)));
        }
        let run = RunDirectory::open(&run_dir(&arguments.options, &loaded.recipe));
        let resumes = run.is_ok_and(|run| run.newest_checkpoint().is_some());
        preflight::check_present_files(&loaded, resumes).await?;
        return Ok(0);
    }
    let run_dir = run_dir(&arguments.options, &loaded.recipe);
    let options = StartOptions {
        drills: arguments.drill.clone(),
        follow: arguments.follow,
        ..StartOptions::default()
    };
    start(loaded, &run_dir, options).await
}

/// Options of a start that are not in the recipe.
#[derive(Debug, Default)]
pub(crate) struct StartOptions<'a> {
    /// Faults to inject.
    pub drills: Vec<Drill>,
    /// On Slurm: show the progress until the run ends.
    pub follow: bool,
    /// Directory of the run that this run reproduces.
    pub reproduces: Option<&'a Path>,
    /// Requests to stop since before the start, or `None` to listen from the first attempt.
    pub signals: Option<Signals>,
}

/// Starts the run in the directory `run_dir` or continues it. With `cluster.scheduler: slurm` and
/// outside a Slurm job, submits the run instead.
pub(crate) async fn start(
    loaded: Loaded,
    run_dir: &Path,
    options: StartOptions<'_>,
) -> Result<u8, LaunchError> {
    if is_collected(&loaded.recipe) {
        return collect(run_dir, &loaded).await;
    }
    if let (Scheduler::Slurm, None) = (loaded.recipe.cluster.scheduler, submit::current_job()) {
        return submit_run(run_dir, &loaded, options).await;
    }
    let opened = open(run_dir, &loaded).await?;
    if let Some((directory, _lock)) = &opened
        && is_over(directory, &loaded.recipe)
    {
        return Ok(0);
    }
    let programs = preflight::preflight(&loaded, resumes(opened.as_ref())).await?;
    let (directory, _lock) = match opened {
        Some(opened) => opened,
        None => create(run_dir, &loaded).await?,
    };
    measure_again(&directory, &loaded.recipe)?;
    supervise_run(directory, loaded, programs, options).await
}

/// Whether the recipe is a table of scores that other runs have measured.
fn is_collected(recipe: &Recipe) -> bool {
    recipe.table.is_some() && recipe.evaluation.tasks.is_empty()
}

/// Prints and writes a table of the scores that the runs of its rows have measured themselves.
async fn collect(run_dir: &Path, loaded: &Loaded) -> Result<u8, LaunchError> {
    let (directory, _lock) = match open(run_dir, loaded).await? {
        Some(opened) => opened,
        None => create(run_dir, loaded).await?,
    };
    collect_locked(&directory, loaded)
}

/// Collects the scores in a directory whose lock this process holds.
fn collect_locked(directory: &RunDirectory, loaded: &Loaded) -> Result<u8, LaunchError> {
    let Some(text) = report::scores_table(directory, Scores::new()) else {
        let rows = loaded.recipe.table.iter().flat_map(|table| table.rows.values());
        let runs = rows.filter_map(|row| Some(row.run.as_ref()?.display().to_string()));
        let runs: Vec<String> = runs.collect();
        return Err(LaunchError::NothingMeasured { runs: runs.join(", ") });
    };
    terminal::result(&text);
    make_report(directory);
    completion::write_collected(directory, &loaded.hash)?;
    Ok(0)
}

/// Batch script as it would be submitted, for `--dry-run`.
fn preview(options: &RecipeOptions, recipe: &Recipe) -> BatchScript {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let run = absolute(&run_dir(options, recipe));
    let launcher = run.join("bin/…/vljepa-launch");
    BatchScript::of(recipe, &run, &absolute(Path::new(".")), &launcher)
}

/// `vljepa-launch supervise RUN`, which the batch script calls: supervises a submitted run, and
/// requeues its job if the run has to continue later.
pub(crate) async fn supervise_job(run: &Path) -> Result<u8, LaunchError> {
    let Some(variables) = submit::current_job() else { return Err(LaunchError::NotInJob) };
    let directory = RunDirectory::open(run)?;
    let code = {
        // Another job of this run may start while this one is still leaving its nodes.
        let _lock = lock(&directory, LOCK_TIMEOUT).await?;
        supervise_locked(&directory).await?
    };
    if code == REQUEUE { requeue(&directory, &variables.job).await } else { Ok(code) }
}

async fn supervise_locked(directory: &RunDirectory) -> Result<u8, LaunchError> {
    let loaded = directory.load_recipe()?;
    if is_complete(directory, &loaded.recipe) {
        return Ok(0);
    }
    let submission = Submission::read(directory);
    if let Some(submission) = &submission
        && directory.newest_checkpoint().is_none()
    {
        check_needs(submission)?;
    }
    if is_collected(&loaded.recipe) {
        return collect_locked(directory, &loaded);
    }
    let programs = Programs::find()?;
    needs::check_features(&loaded.recipe, &programs).await?;
    let drills = submission.map(|submission| submission.drills).unwrap_or_default();
    let options = StartOptions { drills, ..StartOptions::default() };
    supervise_run(directory.clone(), loaded, programs, options).await
}

/// Checks that the runs that a run needs are complete. Its job may start before they are: for Slurm
/// the job of a stopped run has succeeded, and so has one whose run continues in another job.
fn check_needs(submission: &Submission) -> Result<(), LaunchError> {
    for run in &submission.after {
        completion::check_run(run).map_err(|why| {
            let command = submission.command.join(" ");
            LaunchError::NotComplete { run: run.clone(), why, command }
        })?;
    }
    Ok(())
}

/// Locks the run directory, and retries for `timeout`: on a network file system a supervisor that
/// was just killed may hold the lock a little longer.
pub(super) async fn lock(
    directory: &RunDirectory,
    timeout: Duration,
) -> Result<RunLock, LaunchError> {
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        match directory.lock() {
            Err(RunDirectoryError::InUse { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            locked => return Ok(locked?),
        }
    }
}

/// Submits a run to Slurm and, with `--follow`, shows its progress until it ends.
async fn submit_run(
    run_dir: &Path,
    loaded: &Loaded,
    options: StartOptions<'_>,
) -> Result<u8, LaunchError> {
    let known = RunDirectory::open(run_dir).ok();
    submit::check(known.as_ref()).await?;
    let opened = open(run_dir, loaded).await?;
    if let Some((directory, _lock)) = &opened
        && is_over(directory, &loaded.recipe)
    {
        return Ok(0);
    }
    let programs = preflight::preflight(loaded, resumes(opened.as_ref())).await?;
    let (directory, lock) = match opened {
        Some(opened) => opened,
        None => create(run_dir, loaded).await?,
    };
    let submission =
        submit_locked(&directory, loaded, &programs, &options, &After::default()).await?;
    submit::show(&directory, &submission);
    drop(lock);
    if !options.follow {
        return Ok(0);
    }
    let mut signals = listen()?;
    tokio::select! {
        complete = follow(&directory, &loaded.recipe) => Ok(u8::from(!complete?)),
        _ = signals.next() => {
            terminal::note("the display has ended, the job continues; `vljepa-launch status` shows its state");
            Ok(0)
        }
    }
}

/// Submits a run whose files were checked, and whose job starts after others.
pub(super) async fn submit_checked(
    run_dir: &Path,
    loaded: &Loaded,
    programs: &Programs,
    after: &After,
) -> Result<Submission, LaunchError> {
    let (directory, _lock) = match open(run_dir, loaded).await? {
        Some(opened) => opened,
        None => create(run_dir, loaded).await?,
    };
    submit_locked(&directory, loaded, programs, &StartOptions::default(), after).await
}

/// Submits a run whose lock this process holds.
async fn submit_locked(
    directory: &RunDirectory,
    loaded: &Loaded,
    programs: &Programs,
    options: &StartOptions<'_>,
    after: &After,
) -> Result<Submission, LaunchError> {
    measure_again(directory, &loaded.recipe)?;
    let mut record = RunRecord::collect(directory, &loaded.recipe, &loaded.hash, programs).await;
    if let Some(of) = options.reproduces {
        record.reproduces = Some(of.to_owned());
    }
    record.write(directory)?;
    submit::submit(directory, &loaded.recipe, programs, &options.drills, after).await
}

/// Shows the progress of a submitted run until it ends, and its scores. Returns whether it is
/// complete.
pub(super) async fn follow(directory: &RunDirectory, recipe: &Recipe) -> Result<bool, LaunchError> {
    let complete = submit::follow(directory, recipe).await?;
    if complete {
        conclude(directory);
    }
    Ok(complete)
}

/// Whether a run that was opened has a checkpoint to continue from.
fn resumes(opened: Option<&(RunDirectory, RunLock)>) -> bool {
    opened.is_some_and(|(directory, _)| directory.newest_checkpoint().is_some())
}

/// Whether there is nothing left to do for a run that is complete. A table is measured again: its
/// weights or sets may have changed.
fn is_over(directory: &RunDirectory, recipe: &Recipe) -> bool {
    recipe.table.is_none() && is_complete(directory, recipe)
}

/// Removes the records of a table that was measured before. What its models gave is kept.
fn measure_again(directory: &RunDirectory, recipe: &Recipe) -> Result<(), LaunchError> {
    let Some(table) = &recipe.table else { return Ok(()) };
    let records = table.rows.keys().map(|name| directory.row(name).row_json());
    for record in records.chain([directory.completed()]) {
        match std::fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LaunchError::Start {
                    what: format!("removing {}", record.display()),
                    why: error.to_string(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the run is complete; if it is, prints so, its scores and the path of its report.
fn is_complete(directory: &RunDirectory, recipe: &Recipe) -> bool {
    let complete = completion::check(directory, recipe).is_ok();
    if complete {
        terminal::note(&format!("the run in {} is already complete", directory.path().display()));
        conclude(directory);
    }
    complete
}

/// Listens for requests to stop.
pub(super) fn listen() -> Result<Signals, LaunchError> {
    Signals::listen().map_err(|error| LaunchError::Start {
        what: "listening to signals".to_owned(),
        why: error.to_string(),
    })
}

/// Supervises a run whose lock this process holds: on this machine, or on the nodes of the Slurm
/// job that this process belongs to.
async fn supervise_run(
    directory: RunDirectory,
    loaded: Loaded,
    programs: Programs,
    options: StartOptions<'_>,
) -> Result<u8, LaunchError> {
    let signals = options.signals.map_or_else(listen, Ok)?;
    let platform = match (loaded.recipe.cluster.scheduler, submit::current_job()) {
        (Scheduler::Slurm, Some(variables)) => Platform::Slurm(Allocation::of(&variables)?),
        (Scheduler::Slurm | Scheduler::Local, _) => Platform::Local,
    };
    if let Some(job) = platform.job() {
        submit::take_over(&directory, job)?;
        platform.clear().await;
    }
    drop(std::fs::remove_file(directory.stop()));
    let ahead = Duration::from_secs(loaded.recipe.cluster.slurm.signal_ahead_s);
    let mut signals = signals.watching(directory.stop(), platform.end().await, ahead);
    let mut record = RunRecord::collect(&directory, &loaded.recipe, &loaded.hash, &programs).await;
    if let Some(of) = options.reproduces {
        record.reproduces = Some(of.to_owned());
    }
    record.write(&directory)?;
    let limits = Limits::new(&loaded.recipe);
    terminal::note(&format!("run directory: {}", directory.path().display()));
    let mut run = Run {
        directory,
        recipe: loaded.recipe,
        recipe_hash: loaded.hash,
        programs,
        platform,
        limits,
        patience: Patience::default(),
        record,
        drills: options.drills,
    };
    let counting = run.platform.job().is_some().then(|| guard::count(&run.directory));
    let ended = supervise::supervise(&mut run, &mut signals).await;
    counting.inspect(tokio::task::JoinHandle::abort);
    finish(&run, ended)
}

/// Prints how a started run ended, writes its report, and returns the exit code.
fn finish(run: &Run, ended: Result<Ending, LaunchError>) -> Result<u8, LaunchError> {
    let step = run.record.attempts.last().map_or(0, |attempt| attempt.last_step);
    let command = run.record.command.join(" ");
    match ended {
        Ok(Ending::Completed) => {
            terminal::note(&match step {
                0 => "complete".to_owned(),
                step => format!("complete: {} steps", terminal::thousands(step)),
            });
            conclude(&run.directory);
            Ok(0)
        }
        Ok(Ending::Stopped(signal)) => {
            terminal::note(&match run.recipe.stages.is_empty() {
                true => format!("stopped; what was measured is kept; to continue, run: {command}"),
                false => format!("saved and stopped at step {step}; to continue, run: {command}"),
            });
            make_report(&run.directory);
            Ok(signal.exit_code(run.platform.job().is_some()))
        }
        Ok(Ending::NoNodes(reason)) => {
            terminal::note(&format!("error: {reason}; to continue on other nodes, run: {command}"));
            Ok(REQUEUE)
        }
        Ok(Ending::Killed(signal)) => {
            terminal::note(&format!(
                "ended at once at step {step}; to continue from the newest checkpoint, run: {command}"
            ));
            Ok(signal.exit_code(run.platform.job().is_some()))
        }
        Err(error) => {
            make_report(&run.directory);
            Err(error)
        }
    }
}

/// Prints the scores, writes the report and prints its path.
fn conclude(directory: &RunDirectory) {
    if let Some(table) = report::scores_table(directory, history::scores_of(&directory.scores())) {
        terminal::result(&table);
    }
    make_report(directory);
}

/// Writes the report and prints its path. A failure is only a warning: it does not change how the
/// run ended.
fn make_report(directory: &RunDirectory) {
    match report::write(directory) {
        Ok(path) => terminal::note(&format!("report: {}", path.display())),
        Err(error) => terminal::note(&format!("warning: the report was not written: {error}")),
    }
}

/// Refuses drills whose rank or step the run does not have.
fn check_drills(drills: &[Drill], recipe: &Recipe) -> Result<(), LaunchError> {
    let steps = recipe.total_steps();
    let ranks = recipe.cluster.world_size();
    for drill in drills {
        let why = match drill.rank() {
            Some(rank) if rank >= ranks => {
                format!("the run has {ranks} ranks, numbered from 0")
            }
            // `step == steps` is allowed: the last checkpoint is numbered with the number of steps.
            _ if drill.step > steps => format!("the run has {steps} steps"),
            _ => continue,
        };
        return Err(LaunchError::Drill { drill: drill.to_string(), why });
    }
    Ok(())
}

/// Prints the warnings of the recipe check.
pub(super) fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        terminal::note(&format!("warning: {warning}"));
    }
}

/// Run directory: `--run`, or `<runs>/<name>` of the recipe.
pub(super) fn run_dir(options: &RecipeOptions, recipe: &Recipe) -> PathBuf {
    options.run.clone().unwrap_or_else(|| recipe.runs.join(&recipe.name))
}

/// Opens and locks the run directory `run_dir`, or returns `None` if there is none. The lock is
/// taken first, because a recipe that differs in permitted keys replaces the stored one.
async fn open(
    run_dir: &Path,
    loaded: &Loaded,
) -> Result<Option<(RunDirectory, RunLock)>, LaunchError> {
    let Ok(directory) = RunDirectory::open(run_dir) else { return Ok(None) };
    let lock = lock(&directory, BRIEF_LOCK_TIMEOUT).await?;
    let (directory, found) = RunDirectory::create(run_dir, loaded)?;
    match found {
        Found::Existing { changes } if !changes.is_empty() => terminal::note(&format!(
            "continuing {} with these changed keys:\n{}",
            run_dir.display(),
            changes.join("\n")
        )),
        Found::Existing { .. } | Found::New => {}
    }
    Ok(Some((directory, lock)))
}

/// Creates the run directory `run_dir` and locks it.
async fn create(run_dir: &Path, loaded: &Loaded) -> Result<(RunDirectory, RunLock), LaunchError> {
    let (directory, _) = RunDirectory::create(run_dir, loaded)?;
    let lock = lock(&directory, BRIEF_LOCK_TIMEOUT).await?;
    Ok((directory, lock))
}
