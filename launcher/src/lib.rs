//! The command line, the control plane, the supervisor and the report.
//!
//! A recipe becomes a run directory, the run directory becomes workers, and what workers say over TCP becomes a live line, events,
//! restarts and at last a report. Nothing here touches a tensor: all computing is jobs of `vljepa-worker`.

mod cli;
mod control;
mod environment;
mod error;
mod events;
mod fingerprints;
mod health;
mod jobs;
mod listen;
mod local;
mod plan;
mod platform;
mod prometheus;
mod provenance;
mod report;
mod reproduce;
mod shards;
mod slurm;
mod status;
mod stop;
mod supervise;
mod terminal;
mod train;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use error::LaunchError;

/// Does what the command line says and returns the process's exit code.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // Texts name paths, which wrapped lines would break.
    let handler = |_: &_| -> Box<dyn miette::ReportHandler> {
        Box::new(miette::MietteHandlerOpts::new().width(120).break_words(false).build())
    };
    miette::set_hook(Box::new(handler)).ok();
    let ended = event_loop()
        .map_err(|error| LaunchError::Start {
            what: "starting the launcher's event loop".to_owned(),
            why: error.to_string(),
        })
        .and_then(|runtime| runtime.block_on(dispatch(cli)));
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.exit_code();
            terminal::note(&format!("{:?}", miette::Report::new(error)));
            ExitCode::from(code)
        }
    }
}

/// What the launcher's tasks run on: one thread, which hears the ranks in the order in which the
/// kernel heard them. The workers of tokio's other runtime run the task that was woken last first:
/// the supervisor would hear the death of a rank that `srun` killed before the death that made
/// `srun` do so.
pub(crate) fn event_loop() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn dispatch(cli: Cli) -> Result<u8, LaunchError> {
    match cli.command {
        None => train::train(&cli.train).await,
        Some(Command::Ask(ask)) => jobs::ask(&ask).await,
        Some(Command::Search(search)) => jobs::search(&search).await,
        Some(Command::Evaluate(run)) => jobs::evaluate(&run).await,
        Some(Command::Export(export)) => jobs::export(&export).await,
        Some(Command::Import(import)) => jobs::import(&import).await,
        Some(Command::Report(run)) => jobs::report(&run.run),
        Some(Command::Reproduce(reproduce)) => reproduce::reproduce(&reproduce).await,
        Some(Command::Status(run)) => status::status(&run).await,
        Some(Command::Stop(run)) => stop::stop(&run.run).await,
        Some(Command::Guard(run)) => slurm::guard::guard(&run.run).await,
        Some(Command::Supervise(run)) => train::supervise_job(&run.run).await,
    }
}
