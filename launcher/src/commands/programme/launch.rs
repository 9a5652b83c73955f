//! `vljepa-launch PROGRAMME`: runs one after another on this machine, or a chain of Slurm jobs.

use std::future::ready;
use std::path::Path;

use tokio::time::Instant;
use vljepa_recipes::Programme;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::Scheduler;

use super::queue::{self, Decision};
use super::{check, load, plan, state};
use crate::cli::Train;
use crate::commands::train::{self, StartOptions, follow, listen, submit_checked};
use crate::error::LaunchError;
use crate::platform::slurm::submit::{self, After, GONE_TIMEOUT};
use crate::programs::Programs;
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
    for (run, _) in programme.runs.iter().zip(&complete).filter(|(_, complete)| **complete) {
        if let Some(init) = state::replaced_init(run) {
            terminal::note(&format!(
                "warning: {run} was trained from weights of {init} that were replaced later; it counts as complete. To train it again, delete {run}",
                run = run.name(),
                init = init.display()
            ));
        }
    }
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
            submit_all(&programme).await?;
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

/// Submits a job for each run that is not complete and has none, or one that waits for other jobs
/// than it must. It starts when the jobs of the runs that it needs have ended with success.
async fn submit_all(programme: &Programme) -> Result<(), LaunchError> {
    submit::check(None).await?;
    let (decisions, programs) = checked_decisions(programme).await?;
    queue::cancel_replaced(programme, &decisions).await?;
    let mut jobs: Vec<Option<String>> = decisions.iter().map(|d| d.kept().cloned()).collect();
    for (index, run) in programme.runs.iter().enumerate() {
        if !decisions[index].is_start() {
            terminal::note(&match &jobs[index] {
                Some(job) => format!("{}: job {job} is in the queue", run.name()),
                None => format!("{}: already complete", run.name()),
            });
            continue;
        }
        let after = After {
            jobs: run.needs.iter().filter_map(|need| jobs[*need].clone()).collect(),
            runs: queue::reads(programme, run),
        };
        let submitted = submit_checked(&run.directory, &run.loaded, &programs, &after).await?;
        let behind = match after.jobs.is_empty() {
            true => String::new(),
            false => format!(" after {}", after.jobs.join(", ")),
        };
        terminal::result(&format!("submitted job {}: {}{behind}", submitted.job, run.name()));
        jobs[index] = Some(submitted.job);
    }
    terminal::note("`vljepa-launch status` and `vljepa-launch stop` also take the programme");
    Ok(())
}

/// Decides about all runs and checks those that start. `squeue` does not list a job while it is
/// requeued, so a run is submitted again only if two looks [`GONE_TIMEOUT`] apart miss its job.
async fn checked_decisions(
    programme: &Programme,
) -> Result<(Vec<Decision>, Programs), LaunchError> {
    let starts = |decisions: &[Decision]| -> Vec<usize> {
        (0..decisions.len()).filter(|index| decisions[*index].is_start()).collect()
    };
    let mut decisions = queue::decisions(programme).await?;
    loop {
        let (looked, starting) = (Instant::now(), starts(&decisions));
        let complete: Vec<bool> = decisions.iter().map(|d| *d == Decision::Complete).collect();
        let programs = check::all(programme, &starting, &complete).await?;
        if decisions.contains(&Decision::SubmitAgain) && looked.elapsed() < GONE_TIMEOUT {
            let seconds = GONE_TIMEOUT.as_secs();
            terminal::note(&format!(
                "waiting up to {seconds} s: a job that is not in the queue may just be requeued"
            ));
            tokio::time::sleep_until(looked + GONE_TIMEOUT).await;
        }
        // The checks take a while, and Slurm refuses to wait for a job that it has forgotten.
        decisions = queue::decisions(programme).await?;
        if starts(&decisions).iter().all(|index| starting.contains(index)) {
            return Ok((decisions, programs));
        }
    }
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
