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
    /// Compile the GPU kernels of recipes ahead of their runs, and print what they need. Needs NVRTC, no GPU.
    #[cfg(feature = "cuda")]
    Compile {
        /// Recipes; kernels that several of them use are compiled once.
        #[arg(required = true)]
        recipes: Vec<PathBuf>,
        /// What to compile for: H100 and H200 are sm_90a.
        #[arg(long, default_value = "sm_90a")]
        architecture: String,
        /// Where compiled kernels are kept [default: ~/.cache/vljepa/kernels].
        #[arg(long)]
        cache: Option<PathBuf>,
    },
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the program's output")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.features {
        println!("{}", session::features());
        return ExitCode::SUCCESS;
    }
    let result = match arguments.command {
        None => {
            eprintln!("vljepa-worker is started by vljepa-launch; see `vljepa-launch --help`");
            return ExitCode::from(2);
        }
        Some(Command::Run { run, job, control }) => session::run(&run, &job, control.as_deref()),
        #[cfg(feature = "cuda")]
        Some(Command::Compile { recipes, architecture, cache }) => {
            vljepa_worker::compile::run(&recipes, &architecture, cache).map(Some)
        }
    };
    match result {
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
