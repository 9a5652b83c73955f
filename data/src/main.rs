//! `vljepa-shards`: writes the synthetic set, shows what shards hold, makes their indexes.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vljepa_data::synthetic::SynthArgs;

mod commands;

/// WebDataset shards: write, inspect, index.
#[derive(Debug, Parser)]
#[command(name = "vljepa-shards", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes the synthetic set of the quickstart: moving shapes, captions, questions. The same pixels on every machine.
    Synth(SynthArgs),
    /// Shows what shards hold: samples, fields, sizes, what was dropped.
    Inspect {
        /// Folders, tars, or ranges such as clips-{000000..000127}.tar.
        #[arg(required = true)]
        shards: Vec<String>,
        /// Samples shown of each shard.
        #[arg(long, default_value_t = 3)]
        samples: usize,
    },
    /// Writes the index of each shard beside it, so that the first run need not.
    Index {
        /// Folders, tars, or ranges such as clips-{000000..000127}.tar.
        #[arg(required = true)]
        shards: Vec<String>,
    },
}

#[expect(clippy::print_stderr, reason = "the program's last words")]
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
        Command::Inspect { shards, samples } => commands::inspect(&shards, samples, output),
        Command::Index { shards } => commands::index(&shards, output),
    }
}
