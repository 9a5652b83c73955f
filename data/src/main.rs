//! `vljepa-shards`: prepares raw sets, writes the synthetic set, shows the contents of shards,
//! writes their catalogue, and measures how fast they are read.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vljepa_data::synthetic::{StreamArgs, SynthArgs};

mod commands;

/// Prepares, writes, inspects, indexes and measures WebDataset shards.
#[derive(Debug, Parser)]
#[command(name = "vljepa-shards", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes the synthetic set of the quickstart: moving shapes, captions, questions. The pixels
    /// are the same on every machine.
    Synth(SynthArgs),
    /// Writes long videos of the quickstart's moving shapes, one motion after the other, with a
    /// caption at the middle of each, to evaluate selective decoding.
    SynthStream(StreamArgs),
    /// Makes training-ready shards of a raw set: pictures and clips are scaled down and stored so
    /// that frames are read quickly; captions, questions, licences and URLs are kept. After an
    /// interruption, the same command goes on where it was.
    Prepare {
        /// The raw set.
        #[command(subcommand)]
        set: vljepa_data::prepare::SetCommand,
    },
    /// Shows the contents of shards: samples, fields, sizes, dropped samples.
    Inspect {
        /// Folders of tars, single tars, ranges such as clips-{000000..000127}.tar, or .txt files
        /// that list shards; local or with a URL (s3://, gs://, http://, https://).
        #[arg(required = true)]
        shards: Vec<String>,
        /// Number of samples to show from each shard.
        #[arg(long, default_value_t = 3)]
        samples: usize,
    },
    /// Reads the headers of all shards and writes their catalogue, so that the first run does not
    /// have to. It asks servers for the version of each remote shard, which a run does only for
    /// those that it lists. An update that was interrupted goes on where it was.
    Index {
        /// Folders of tars, single tars, ranges such as clips-{000000..000127}.tar, or .txt files
        /// that list shards; local or with a URL (s3://, gs://, http://, https://).
        #[arg(required = true)]
        shards: Vec<String>,
        /// Folder for the catalogue, as the key `catalogue` beside `shards` in a recipe. Remote
        /// shards need one. Default: the folder vljepa-catalogue beside the shards.
        #[arg(long)]
        catalogue: Option<PathBuf>,
    },
    /// Measures how fast this machine reads and decodes shards, how many GPUs that feeds, and what
    /// limits it.
    Bench(commands::BenchArgs),
}

#[expect(clippy::print_stderr, reason = "prints the error that ends the program")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let output = &mut std::io::stdout().lock();
    match Arguments::parse().command {
        Command::Synth(args) => Ok(write!(output, "{}", vljepa_data::synthetic::run(&args)?)?),
        Command::SynthStream(args) => {
            Ok(write!(output, "{}", vljepa_data::synthetic::run_stream(&args)?)?)
        }
        Command::Prepare { set } => commands::prepare(&set, output),
        Command::Inspect { shards, samples } => commands::inspect(&shards, samples, output),
        Command::Index { shards, catalogue } => {
            commands::index(&shards, catalogue.as_deref(), output)
        }
        Command::Bench(arguments) => commands::bench(&arguments, output),
    }
}
