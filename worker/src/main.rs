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
    /// Run steps of every stage and one evaluation batch of recipes on a device that computes
    /// nothing, and print the memory, launches, copies and synchronisations that they ask for.
    /// Needs no GPU.
    #[cfg(feature = "cuda")]
    Rehearse {
        /// Recipes, which are rehearsed at their full size.
        #[arg(required = true)]
        recipes: Vec<PathBuf>,
        /// Change a key of the recipes: KEY=VALUE.
        #[arg(long = "set")]
        changes: Vec<String>,
        /// Memory of the GPU in GiB: a stage that needs more is an error. Without it memory is
        /// unlimited.
        #[arg(long)]
        memory_gib: Option<usize>,
        /// Tokens of the target texts of each step, such as 64,17,512 [default: two steps of the
        /// longest that the recipe allows].
        #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
        target_tokens: Vec<u16>,
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
        #[cfg(feature = "cuda")]
        Some(Command::Rehearse { recipes, changes, memory_gib, target_tokens }) => {
            let tokens: Vec<usize> = target_tokens.into_iter().map(usize::from).collect();
            vljepa_worker::rehearsal::run(&recipes, &changes, memory_gib, &tokens).map(Some)
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
