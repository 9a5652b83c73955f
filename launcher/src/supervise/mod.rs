//! The supervisor: starts attempts, watches them and restarts a run that can continue. It never
//! leaves a process behind.
//!
//! This file loops over attempts. `health` and `nodes` check the nodes before one. `attempt` starts
//! the workers and receives their events (`attempt/messages`: a lost connection is a dead rank)
//! until all have ended; `stall` finds a hung rank, `checkpoints` coordinates a save, `signals`
//! watches for requests to stop, and `post_mortem` reads from the logs how a rank ended. `restart`
//! decides what follows. `observer`, `progress` and `prometheus` show the run's numbers.

mod attempt;
mod checkpoints;
mod health;
mod nodes;
mod observer;
mod post_mortem;
mod progress;
mod prometheus;
mod restart;
mod signals;
mod stall;
mod start_up;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{Act, Drill, Job, Phase};
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::{Device, Recipe};

pub(crate) use health::Patience;
pub(crate) use observer::Observed;
pub(crate) use signals::{Signals, StopSignal};
pub(crate) use stall::Limits;

use crate::control::listen::Listen;
use crate::control::{Expected, Server};
use crate::error::LaunchError;
use crate::platform::Platform;
use crate::platform::slurm::allocation::NodeChoice;
use crate::platform::workers::Group;
use crate::programs::{Programs, WorkerArguments};
use crate::record::completion;
use crate::record::events::{Event, EventLog, Fault, FaultKind};
use crate::record::provenance::{AttemptOutcome, RunRecord};
use crate::terminal;
use attempt::{Attempt, End, Facts};
use observer::Observer;
use progress::Progress;
use restart::{Decision, Failure, Restarts};
use start_up::StartUp;

/// A run to supervise.
#[derive(Debug)]
pub(crate) struct Run {
    pub directory: RunDirectory,
    pub recipe: Recipe,
    pub recipe_hash: String,
    pub programs: Programs,
    pub platform: Platform,
    /// Limits beyond which a rank counts as hung.
    pub limits: Limits,
    /// How long failed health checks are repeated.
    pub patience: Patience,
    /// Content of `run.json`.
    pub record: RunRecord,
    /// Faults to inject.
    pub drills: Vec<Drill>,
}

/// How the supervision of a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The run has a valid completion record.
    Completed,
    /// A request stopped the run after a checkpoint was saved.
    Stopped(StopSignal),
    /// A second request ended the run at once.
    Killed(StopSignal),
    /// Too few nodes of the job are healthy, for the given reason: Slurm has to allocate others.
    NoNodes(String),
}

/// Supervises the run until it is complete, was stopped or cannot continue.
///
/// # Errors
/// If the run cannot continue: the fault, and why no restart follows.
pub(crate) async fn supervise(run: &mut Run, signals: &mut Signals) -> Result<Ending, LaunchError> {
    let mut observer = Observer::start(run).await?;
    let mut progress = Progress::new(&run.recipe);
    let has_trained = run.record.attempts.iter().any(|attempt| attempt.first_step.is_some());
    let mut restarts = Restarts::new(run.recipe.cluster.restart.clone(), has_trained);
    let mut facts = Facts::default();
    loop {
        let begun = Instant::now();
        let choice = tokio::select! {
            chosen = nodes::choose(run, &progress) => match chosen? {
                Ok(choice) => choice,
                Err(reason) => return Ok(progress.end(nodes::too_few(run, reason)?)),
            },
            signal = signals.next() => return Ok(progress.end(Ending::Stopped(signal))),
        };
        let number = begin(run, &choice, &progress)?;
        let events = EventLog::new(&run.directory, number);
        progress.restart();
        observer.attempt(number, choice.world_size);
        let watch = Watch { progress: &mut progress, observer: &mut observer };
        let ended = one_attempt(run, number, (&choice, begun), facts, watch, signals).await;
        observer.end_attempt().await;
        run.record.note_hosts(observer.hosts());
        let (end, reached) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                progress.finish();
                let outcome = AttemptOutcome::Failed;
                run.record.end_attempt(outcome, None, 0, Some(error.to_string()));
                run.record.write(&run.directory)?;
                return Err(error);
            }
        };
        let end = match end {
            End::Completed => {
                check_record(run, number, &reached).map_or(End::Completed, End::Fault)
            }
            End::Stopped | End::Killed | End::Fault(_) => end,
        };
        close(run, &events, &end, &reached);
        let stop = reached.stop;
        let asked = stop.unwrap_or(StopSignal::Terminate);
        let fault = match end {
            End::Completed => return Ok(progress.end(Ending::Completed)),
            End::Stopped => return Ok(progress.end(Ending::Stopped(asked))),
            End::Killed => return Ok(progress.end(Ending::Killed(asked))),
            End::Fault(fault) => fault,
        };
        observer.fault(fault.kind);
        show(&progress, &fault);
        let delay = match decide(&mut restarts, &reached, &fault) {
            Decision::Restart(delay) => delay,
            // Slurm was about to take the nodes: the run continues from the newest checkpoint when
            // the job has nodes again.
            Decision::GiveUp(_) if stop.is_some() && run.platform.job().is_some() => {
                return Ok(progress.end(Ending::Stopped(asked)));
            }
            Decision::GiveUp(reason) => {
                progress.finish();
                let (fault, log) = (fault.to_string(), fault.log);
                return Err(LaunchError::RunFailed { fault, reason, log });
            }
        };
        announce(run, &progress, &events, &restarts, delay);
        observer.restarted();
        if let Some(signal) = wait(delay, signals).await {
            return Ok(progress.end(Ending::Stopped(signal)));
        }
        facts = Facts { newest_saved: reached.newest_saved, again: true, ..Facts::default() };
    }
}

/// Decides whether another attempt follows a fault.
fn decide(restarts: &mut Restarts, reached: &Facts, fault: &Fault) -> Decision {
    if reached.stop.is_some() {
        return Decision::GiveUp("a stop was requested".to_owned());
    }
    restarts.decide(&Failure {
        saved: reached.saved,
        trained: reached.trained,
        kind: fault.kind,
        error: fault.error.clone(),
    })
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> LaunchError {
    LaunchError::Start { what: what.to_owned(), why: error.to_string() }
}

/// Records the start of an attempt and returns its number. Warns if the shards of a source changed
/// since the previous attempt.
fn begin(run: &mut Run, choice: &NodeChoice, progress: &Progress) -> Result<u32, LaunchError> {
    run.record.refresh_shards(&run.recipe);
    let number = run.record.begin_attempt(choice.world_size);
    run.record.note_job(run.platform.job());
    run.record.write(&run.directory)?;
    for changed in run.record.changed_shards() {
        progress.note(&format!("warning: {changed}"));
        EventLog::new(&run.directory, number).write(Event::ShardsChanged(changed));
    }
    Ok(number)
}

/// The parts that show a run to the user.
pub(in crate::supervise) struct Watch<'a> {
    pub(in crate::supervise) progress: &'a mut Progress,
    pub(in crate::supervise) observer: &'a mut Observer,
}

/// Starts the workers of an attempt and supervises them until the attempt ends. The choice of its
/// nodes has begun at `begun`.
async fn one_attempt(
    run: &Run,
    number: u32,
    (choice, begun): (&NodeChoice, Instant),
    facts: Facts,
    watch: Watch<'_>,
    signals: &mut Signals,
) -> Result<(End, Facts), LaunchError> {
    let world_size = choice.world_size;
    let token = new_token().map_err(|error| failed("making a token", &error))?;
    let expected =
        Expected { token: token.clone(), world_size, recipe_hash: run.recipe_hash.clone() };
    let listen = Listen::of(&run.recipe.cluster, &run.record.host.name);
    let server = Server::start(expected, &listen).await?;
    if run.platform == Platform::Local {
        let show = |line: &str| watch.progress.note(line);
        tokio::select! {
            checked = health::check_here(run, &token, server.address(), !facts.again, show) => {
                checked?;
            }
            signal = signals.next() => {
                return Ok((End::Stopped, Facts { stop: Some(signal), ..facts }));
            }
        }
    }
    let drills = run.drills.clone();
    let job = serde_json::to_vec_pretty(&Job::Train { attempt: number, world_size, drills })
        .map_err(|error| failed("writing job.json", &error))?;
    atomic_write(&run.directory.job(), &job)?;
    let arguments = WorkerArguments {
        run: run.directory.path().to_owned(),
        job: run.directory.job(),
        control: Some(server.address().to_owned()),
    };
    let (command, step) =
        run.platform.command(&run.programs, &run.recipe, choice, number, &arguments)?;
    let events = EventLog::new(&run.directory, number);
    events.write(Event::AttemptStarted { world_size, command: command.clone() });
    let output = output_log(run, number);
    let one_by_one = run.recipe.device == Device::Cuda && world_size > 1;
    let start_up = StartUp::new(begun.elapsed(), Instant::now());
    let group = match step {
        Some(step) => Group::step(&command, step, &token, &output),
        None if one_by_one => {
            Group::ranks(&command, world_size, run.recipe.deterministic, &token, &output)
        }
        None => Group::program(&command, &token, &output),
    };
    let group = group.map_err(|error| failed(&command[0], &error))?;
    let log = Box::new(move |rank| run.directory.log(rank, number));
    let mut attempt =
        Attempt::new(world_size, server, group, events, &run.limits, watch, log, output, facts);
    attempt.start_up = start_up;
    let kills = run.drills.iter().filter(|d| d.act == Act::KillSupervisor && d.attempt == number);
    attempt.kill_supervisor_at = kills.map(|drill| drill.step).min();
    let end = attempt.run(signals).await;
    Ok((end, std::mem::take(&mut attempt.facts)))
}

/// Writes an attempt's end to `events.jsonl` and `run.json`.
fn close(run: &mut Run, events: &EventLog, end: &End, facts: &Facts) {
    let (outcome, fault) = match end {
        End::Completed => (AttemptOutcome::Completed, None),
        End::Stopped => (AttemptOutcome::Stopped, None),
        End::Killed => (AttemptOutcome::Killed, None),
        End::Fault(fault) => (AttemptOutcome::Failed, Some(fault)),
    };
    if let Some(fault) = fault {
        events.write(Event::Fault(fault.clone()));
    }
    events.write(Event::AttemptEnded { outcome, step: facts.last_step });
    if let Some(checkpoint) = &facts.initialised {
        run.record.note_init(checkpoint);
    }
    let text = fault.map(ToString::to_string);
    run.record.end_attempt(outcome, facts.first_step, facts.last_step, text);
    // A full disk must not end a run that could continue. The next start writes all attempts again.
    if let Err(error) = run.record.write(&run.directory) {
        terminal::note(&format!("warning: run.json: {error}"));
    }
}

/// Checks the completion record after all workers succeeded. Exit codes are not enough: a run is
/// complete only if the worker of rank 0 wrote the record.
fn check_record(run: &Run, number: u32, facts: &Facts) -> Option<Fault> {
    let error = completion::check(&run.directory, &run.recipe).err()?;
    Some(Fault {
        kind: FaultKind::NoRecord,
        rank: None,
        step: facts.last_step,
        phase: Phase::Checkpoint,
        error,
        log: run.directory.log(0, number).display().to_string(),
    })
}

/// Prints a fault, the path of its log, and the last lines of the log.
fn show(progress: &Progress, fault: &Fault) {
    progress.note(&format!("error: {fault}\n  log: {}", fault.log));
    let lines = post_mortem::last_lines(fault.log.as_ref(), 5);
    if !lines.is_empty() {
        progress.note(&format!("  │ {}", lines.join("\n  │ ")));
    }
}

fn announce(
    run: &Run,
    progress: &Progress,
    events: &EventLog,
    restarts: &Restarts,
    delay: Duration,
) {
    let delay_s = delay.as_secs_f64();
    events.write(Event::Restart { delay_s });
    let (from, progressed) = match run.recipe.stages.is_empty() {
        true => ("with what was measured", "progress"),
        false => ("from the newest checkpoint", "a new checkpoint"),
    };
    progress.note(&format!(
        "restarting {from} in {delay_s:.0} s (restart {} of {} without {progressed})",
        restarts.without_progress(),
        run.recipe.cluster.restart.max_without_progress
    ));
}

/// Waits for `delay`. Returns the signal if one arrives during the wait.
async fn wait(delay: Duration, signals: &mut Signals) -> Option<StopSignal> {
    tokio::select! {
        () = tokio::time::sleep(delay) => None,
        signal = signals.next() => Some(signal),
    }
}

/// File for the output of `mpirun` or `srun` and for output of the workers outside their own logs.
fn output_log(run: &Run, number: u32) -> PathBuf {
    run.directory.logs().join(format!("output-attempt-{number}.log"))
}

/// Makes a token: 128 random bits as 32 hexadecimal digits.
fn new_token() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
