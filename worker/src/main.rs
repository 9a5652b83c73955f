//! `vljepa-worker`: one process per device. `vljepa-launch` starts it, through `mpirun` or `srun`
//! for several ranks on CPUs.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vljepa_worker::rank::{device, sources};
use vljepa_worker::{inputs, job, score, sets, weights};

/// Runs one rank of a VL-JEPA run. `vljepa-launch` starts it; it is rarely started by hand.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Print the features of this build as JSON and exit.
    #[arg(long)]
    features: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one job in a run directory.
    Run {
        /// Run directory that holds the resolved recipe.
        #[arg(long)]
        run: PathBuf,
        /// JSON file that describes the job.
        #[arg(long)]
        job: PathBuf,
        /// Address of the supervisor, HOST:PORT. Without it the job runs unsupervised.
        #[arg(long)]
        control: Option<String>,
    },
    /// Check the files that a recipe names (tokenizers, weights, shards, labels) and print what is
    /// wrong with them as JSON. `vljepa-launch` does this before each start and dry run.
    Inputs {
        /// Recipe whose files are checked.
        recipe: PathBuf,
        /// Do not report files that do not exist.
        #[arg(long)]
        skip_missing: bool,
        /// Do not check `init`: the run has a checkpoint of its own.
        #[arg(long)]
        resumes: bool,
    },
    /// Say which models a file of published weights holds, and print it as JSON. `vljepa-launch
    /// weights` shows it.
    Weights {
        /// File of weights: safetensors, an index of several, or one of PyTorch.
        file: PathBuf,
        /// Copy the models to this new safetensors file.
        #[arg(long, value_name = "OUT")]
        convert: Option<PathBuf>,
    },
    /// Compare captions with references, and print CIDEr, BLEU-4 and ROUGE-L as JSON.
    /// `vljepa-launch score` shows them.
    Score {
        /// File of the captions to score.
        hypotheses: PathBuf,
        /// Files of the right captions.
        #[arg(required = true)]
        references: Vec<PathBuf>,
    },
    /// Say what this disk holds of evaluation sets, and print it as JSON. `vljepa-launch sets`
    /// shows it.
    Sets {
        /// Files of sets.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Measure how fast this machine computes the networks of a recipe, and print the rates from
    /// which `vljepa-launch plan RECIPE --rates FILE` computes time. Takes a minute or two.
    Rates {
        /// Recipe whose device and networks are measured.
        recipe: PathBuf,
        /// Override a key of the recipe: KEY=VALUE.
        #[arg(long = "set")]
        changes: Vec<String>,
        /// Compute threads of a rank on the host [default: those of this machine].
        #[arg(long)]
        threads: Option<NonZeroUsize>,
    },
    /// Load NVIDIA's libraries and print their versions and files as JSON; none in a build without
    /// the feature `cuda`. `vljepa-launch doctor` shows them.
    Libraries,
    /// Read shards of each source of a recipe for a second and print the rates as JSON.
    /// `vljepa-launch doctor` shows them.
    Feed {
        /// Recipe whose sources are read.
        recipe: PathBuf,
    },
    /// Compile the GPU kernels of recipes before their runs, and print the resources they need.
    /// Needs NVRTC, but no GPU.
    #[cfg(feature = "cuda")]
    Compile {
        /// Recipes whose kernels are compiled. A kernel that several recipes use is compiled once.
        #[arg(required = true)]
        recipes: Vec<PathBuf>,
        /// GPU architecture to compile for. H100 and H200 are sm_90a.
        #[arg(long, default_value = "sm_90a")]
        architecture: String,
        /// Folder for the compiled kernels [default: ~/.cache/vljepa/kernels].
        #[arg(long)]
        cache: Option<PathBuf>,
    },
    /// Run steps of every stage and one evaluation batch on a recording device that computes
    /// nothing. Print the memory, launches, copies and synchronisations that they request. Needs no
    /// GPU.
    #[cfg(feature = "cuda")]
    Rehearse {
        /// Recipes to rehearse, at their full size.
        #[arg(required = true)]
        recipes: Vec<PathBuf>,
        /// Override a key of the recipes: KEY=VALUE.
        #[arg(long = "set")]
        changes: Vec<String>,
        /// Memory of the GPU in GiB. A stage that needs more is an error. Without it the memory is
        /// unlimited.
        #[arg(long)]
        memory_gib: Option<usize>,
        /// Tokens per target text of each step, such as 64,17,512 [default: two steps of the
        /// longest text that the recipe allows].
        #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
        target_tokens: Vec<u16>,
    },
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the program's output")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.features {
        println!("{}", job::features());
        return ExitCode::SUCCESS;
    }
    let result = match arguments.command {
        None => {
            eprintln!("vljepa-worker is started by vljepa-launch; see `vljepa-launch --help`");
            return ExitCode::from(2);
        }
        Some(Command::Run { run, job, control }) => job::run(&run, &job, control.as_deref()),
        Some(Command::Inputs { recipe, skip_missing, resumes }) => {
            inputs::run(&recipe, skip_missing, resumes).map(Some)
        }
        Some(Command::Weights { file, convert }) => {
            weights::run(&file, convert.as_deref()).map(Some)
        }
        Some(Command::Score { hypotheses, references }) => {
            score::run(&hypotheses, &references).map(Some)
        }
        Some(Command::Sets { files }) => sets::run(&files).map(Some),
        Some(Command::Rates { recipe, changes, threads }) => {
            let threads = threads.or_else(|| std::thread::available_parallelism().ok());
            let threads = threads.map_or(1, NonZeroUsize::get);
            vljepa_worker::rates::run(&recipe, &changes, threads).map(Some)
        }
        Some(Command::Libraries) => device::libraries().map(Some),
        Some(Command::Feed { recipe }) => {
            sources::feed(&recipe, |line| println!("{line}")).map(|()| None)
        }
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
