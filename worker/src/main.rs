//! `vljepa-worker`: one process per device, started by `vljepa-launch` (through `mpirun` or `srun` where there are several).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vljepa_worker::session;

/// One rank of a VL-JEPA run. Started by vljepa-launch; rarely by hand.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Print the features of this build as JSON and end.
    #[arg(long)]
    features: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a job of a run directory.
    Run {
        /// The run directory.
        #[arg(long)]
        run: PathBuf,
        /// The job, a JSON file.
        #[arg(long)]
        job: PathBuf,
        /// Where the supervisor listens; none for a job that runs alone.
        #[arg(long)]
        control: Option<String>,
    },
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the program's output")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.features {
        println!("{}", session::features());
        return ExitCode::SUCCESS;
    }
    let Some(Command::Run { run, job, control }) = arguments.command else {
        eprintln!("vljepa-worker is started by vljepa-launch; see `vljepa-launch --help`");
        return ExitCode::from(2);
    };
    match session::run(&run, &job, control.as_deref()) {
        Ok(output) => {
            if let Some(output) = output {
                println!("{output}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
