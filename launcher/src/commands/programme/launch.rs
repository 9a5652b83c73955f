//! `vljepa-launch PROGRAMME`: runs one after another on this machine, or a chain of Slurm jobs.

use std::future::ready;
use std::path::Path;

use vljepa_recipes::Programme;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::Scheduler;

use super::{check, load, plan, state};
use crate::cli::Train;
use crate::commands::status::Job;
use crate::commands::train::{self, StartOptions, follow, listen, submit_checked};
use crate::error::LaunchError;
use crate::platform::slurm::client::JobState;
use crate::platform::slurm::submit::{self, After};
use crate::supervise::{Signals, StopSignal};
use crate::terminal;

/// Starts or continues all runs of a programme that are not complete, or with `--dry-run` prints
/// the plan and checks the files.
pub(crate) async fn launch(file: &Path, arguments: &Train) -> Result<u8, LaunchError> {
    let refused = [
        ("--drill", !arguments.drill.is_empty(), "rehearse a fault with one of its recipes"),
        ("--run", arguments.options.run.is_some(), "an entry names its directory: `run: DIR`"),
    ];
    if let Some((option, _, help)) = refused.into_iter().find(|(_, given, _)| *given) {
        return Err(LaunchError::ForOneRun { option, programme: file.to_owned(), help });
    }
    let programme = load(file, &arguments.options.set)?;
    let complete = state::complete(&programme);
    if arguments.dry_run {
        terminal::result(&plan::ProgrammePlan::of(&programme, None, None)?.to_string());
        check::present(&programme, &complete).await?;
        return Ok(0);
    }
    let scheduler = check::scheduler(&programme)?;
    check::directories(&programme)?;
    if complete.iter().all(|complete| *complete) {
        let count = programme.runs.len();
        terminal::note(&format!("all {count} runs of {} are already complete", programme.name));
        return Ok(0);
    }
    match (scheduler, submit::current_job()) {
        (Scheduler::Slurm, None) => {
            submit_all(&programme, &complete).await?;
            if arguments.follow { follow_all(&programme, &complete).await } else { Ok(0) }
        }
        (Scheduler::Slurm | Scheduler::Local, _) => one_by_one(programme, &complete).await,
    }
}

/// Starts the runs one after another, until one does not end with success. Returns its exit code.
async fn one_by_one(programme: Programme, complete: &[bool]) -> Result<u8, LaunchError> {
    let starting: Vec<usize> = (0..complete.len()).filter(|index| !complete[*index]).collect();
    check::all(&programme, &starting, complete).await?;
    let Programme { name, runs } = programme;
    let (count, mut signals) = (runs.len(), listen()?);
    for (index, run) in runs.into_iter().enumerate() {
        let place = format!("run {} of {count}, {}", index + 1, run.name());
        if complete[index] {
            terminal::note(&format!("{place}: already complete"));
            continue;
        }
        if let Some(signal) = arrived(&mut signals).await {
            terminal::note(&format!("{name}: stopped before {place}"));
            return Ok(signal.exit_code(submit::current_job().is_some()));
        }
        terminal::note(&format!("{place}:"));
        let options = StartOptions { signals: Some(listen()?), ..StartOptions::default() };
        let ended = train::start(run.loaded, &run.directory, options).await;
        if !matches!(ended, Ok(0)) {
            terminal::note(&format!(
                "{name}: {place} is not complete, so no other run starts; to continue, give the same command again"
            ));
            return ended;
        }
    }
    terminal::note(&format!("{name}: all {count} runs are complete"));
    Ok(0)
}

/// The request to stop that has arrived, if there is one.
async fn arrived(signals: &mut Signals) -> Option<StopSignal> {
    tokio::select! {
        biased;
        signal = signals.next() => Some(signal),
        () = ready(()) => None,
    }
}

/// Submits a job for each run that is not complete and has none. It starts when the jobs of the
/// runs that it needs have ended with success.
async fn submit_all(programme: &Programme, complete: &[bool]) -> Result<(), LaunchError> {
    submit::check(None).await?;
    let waiting = waiting_jobs(programme, complete).await?;
    let is_missing = |index: &usize| !complete[*index] && waiting[*index].is_none();
    let starting: Vec<usize> = (0..complete.len()).filter(is_missing).collect();
    let programs = check::all(programme, &starting, complete).await?;
    // The checks take a while, and Slurm refuses to wait for a job that it has forgotten.
    let complete = state::complete(programme);
    let mut waiting = waiting_jobs(programme, &complete).await?;
    for (index, run) in programme.runs.iter().enumerate() {
        if complete[index] {
            terminal::note(&format!("{}: already complete", run.name()));
            continue;
        }
        if let Some(job) = &waiting[index] {
            terminal::note(&format!("{}: job {job} is in the queue", run.name()));
            continue;
        }
        let needed = run.needs.iter().filter(|need| !complete[**need]);
        let after = After {
            jobs: needed.filter_map(|need| waiting[*need].clone()).collect(),
            runs: run.needs.iter().map(|need| programme.runs[*need].directory.clone()).collect(),
        };
        let submitted = submit_checked(&run.directory, &run.loaded, &programs, &after).await?;
        let jobs = match after.jobs.is_empty() {
            true => String::new(),
            false => format!(" after {}", after.jobs.join(", ")),
        };
        terminal::result(&format!("submitted job {}: {}{jobs}", submitted.job, run.name()));
        waiting[index] = Some(submitted.job);
    }
    terminal::note("`vljepa-launch status` and `vljepa-launch stop` also take the programme");
    Ok(())
}

/// Ids of the jobs that work on runs or wait in the queue.
///
/// # Errors
/// If Slurm does not answer, and if a job is leaving its nodes: its run may go on in the same job.
async fn waiting_jobs(
    programme: &Programme,
    complete: &[bool],
) -> Result<Vec<Option<String>>, LaunchError> {
    let mut waiting = Vec::new();
    for (job, complete) in state::jobs(programme).await.into_iter().zip(complete) {
        let Some(Job { id, state }) = job.filter(|_| !complete) else {
            waiting.push(None);
            continue;
        };
        waiting.push(match state {
            Some(JobState::Pending(_) | JobState::Running) => Some(id),
            Some(JobState::Gone) => None,
            Some(JobState::Ending(_)) => {
                return Err(LaunchError::Submitted { job: id, state: "ending".to_owned() });
            }
            None => {
                let why = format!("squeue does not answer for job {id}");
                return Err(LaunchError::NoSlurm { why });
            }
        });
    }
    Ok(waiting)
}

/// Shows the progress of one run after another until all are complete or one is not.
async fn follow_all(programme: &Programme, complete: &[bool]) -> Result<u8, LaunchError> {
    let mut signals = listen()?;
    for (index, run) in programme.runs.iter().enumerate().filter(|(index, _)| !complete[*index]) {
        let place = format!("run {} of {}, {}", index + 1, complete.len(), run.name());
        terminal::note(&format!("{place}:"));
        let directory = RunDirectory::open(&run.directory)?;
        tokio::select! {
            complete = follow(&directory, &run.loaded.recipe) => if !complete? {
                terminal::note(&format!("{place} is not complete, so the runs that need it do not start"));
                return Ok(1);
            },
            _ = signals.next() => {
                terminal::note("the display has ended, the jobs continue");
                return Ok(0);
            }
        }
    }
    Ok(0)
}
