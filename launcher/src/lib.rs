//! The launcher: command line, control plane, supervisor and report.
//!
//! The launcher makes a run directory from a recipe and starts the workers of the run. Workers
//! report over TCP; the launcher turns their messages into a progress line, `events.jsonl`,
//! restarts after faults and, at the end, `report.html`. It touches no tensor: all computing is
//! done by jobs of `vljepa-worker`.

mod cli;
mod commands;
mod control;
mod doctor;
mod environment;
mod error;
mod model_card;
mod plan;
mod platform;
mod process;
mod programs;
mod record;
mod report;
mod statistics;
mod supervise;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use commands::{
    jobs, latency, paper, programme, reproduce, score, sets, status, stop, stream, train, weights,
};
use error::LaunchError;
use platform::slurm::guard;

/// Runs the command line `arguments`, whose first item is the program's name, and returns the exit
/// code of the process. Results go to standard output, everything else to standard error.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // Messages name paths, so words are never broken at the end of a line.
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

/// Makes the tokio runtime of the launcher: a single thread, which handles messages and lost
/// connections in the order in which the kernel received them. Tokio's multi-threaded runtime runs
/// the task that was woken last first: if `srun` kills a rank because another one died, the
/// supervisor could see the second death before the first.
pub(crate) fn event_loop() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn dispatch(cli: Cli) -> Result<u8, LaunchError> {
    match cli.command {
        None => match &cli.train.recipe {
            Some(file) if programme::is_programme(file)? => {
                programme::launch(file, &cli.train).await
            }
            Some(_) | None => train::train(&cli.train).await,
        },
        Some(Command::Ask(ask)) => jobs::ask(&ask).await,
        Some(Command::Caption(caption)) => jobs::caption(&caption).await,
        Some(Command::Stream(stream)) => stream::stream(&stream).await,
        Some(Command::Latency(latency)) => latency::latency(&latency).await,
        Some(Command::Search(search)) => jobs::search(&search).await,
        Some(Command::Evaluate(run)) => jobs::evaluate(&run).await,
        Some(Command::Export(export)) => jobs::export(&export).await,
        Some(Command::Weights(arguments)) => weights::weights(&arguments).await,
        Some(Command::Plan(arguments)) if programme::is_programme(&arguments.recipe)? => {
            programme::plan(&arguments)
        }
        Some(Command::Plan(arguments)) => commands::plan::plan_recipe(&arguments),
        Some(Command::Paper(arguments)) => paper::paper(&arguments),
        Some(Command::Score(arguments)) => score::score(&arguments).await,
        Some(Command::Doctor(arguments)) => commands::doctor::doctor(&arguments).await,
        Some(Command::Sets(arguments)) => sets::sets(&arguments).await,
        Some(Command::Report(run)) => jobs::report(&run.run),
        Some(Command::Reproduce(reproduce)) => reproduce::reproduce(&reproduce).await,
        Some(Command::Status(of)) if programme::is_programme(&of.run)? => {
            programme::status(&of).await
        }
        Some(Command::Status(run)) => status::status(&run).await,
        Some(Command::Stop(of)) if programme::is_programme(&of.run)? => programme::stop(&of).await,
        Some(Command::Stop(run)) => stop::stop(&run).await,
        Some(Command::Guard(run)) => guard::guard(&run.run).await,
        Some(Command::Supervise(run)) => train::supervise_job(&run.run).await,
    }
}
