//! The command line as it is typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vljepa_recipes::protocol::Drill;

const AFTER_HELP: &str = "\
Exit codes:
  0    all that was asked is done (for a run: its completion record is there)
  1    the run or the job failed
  2    the command line, the recipe or a file it names is wrong; nothing was started
  3    this machine lacks something: mpirun, vljepa-worker, one of its features
  75   a job of Slurm's has saved itself because its time is over; its batch script puts it into the queue again
  130  stopped by Ctrl-C or `stop` (143: by TERM, 138: USR1, 140: USR2, 129: the terminal went away); the same command continues

The first Ctrl-C saves at the next step boundary and ends; a second one ends at once.";

/// Train VL-JEPA from a recipe, and use what was trained.
#[derive(Debug, Parser)]
#[command(
    name = "vljepa-launch",
    version,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub train: Train,
}

/// Train a recipe, or continue where its run stopped.
#[derive(Debug, Args)]
pub(crate) struct Train {
    /// The recipe, a YAML file.
    #[arg(required = true)]
    pub recipe: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
    /// Print the resolved recipe and the plan, and end.
    #[arg(long)]
    pub dry_run: bool,
    /// On Slurm: stay and show how the run gets on, through its requeues, until it ends. Ctrl-C only stops showing.
    #[arg(long)]
    pub follow: bool,
    /// Rehearse a fault: KIND:rank=R,step=S[,phase=P][,attempt=A], such as `kill:rank=1,step=5,phase=backward`. May be given several
    /// times. Kinds: kill, stop, panic, error, exit, nan, slow (with seconds=T), kill-supervisor (without a rank).
    #[arg(long, value_name = "DRILL")]
    pub drill: Vec<Drill>,
}

/// Where a recipe runs and what it changes.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Run directory; `<runs>/<name>` of the recipe when not given.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Change a key of the recipe: `--set stages.0.steps=100`. May be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What can be done with a run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Rank answers to a question about a picture or a clip.
    Ask(Ask),
    /// Rank the samples of shards by a text.
    Search(Search),
    /// Measure the recipe's tasks with the newest checkpoint, and make the report again.
    Evaluate(RunJson),
    /// Write the newest checkpoint's weights under published names.
    Export(Export),
    /// Make a run that starts from published weights.
    Import(Import),
    /// Make report.html again.
    Report(RunOnly),
    /// Check what a run was made from, start the same again in a new run, and compare.
    Reproduce(Reproduce),
    /// Say how a run stands.
    Status(RunJson),
    /// Ask a run, wherever it works, to save itself and end; one that waits in Slurm's queue is cancelled.
    Stop(RunOnly),
    /// Work on a submitted run from inside its Slurm job; its batch script does this.
    #[command(hide = true)]
    Supervise(RunOnly),
    /// Watch over the supervisor of a Slurm job from another of its nodes; the batch script does this.
    #[command(hide = true)]
    Guard(RunOnly),
}

/// `ask`
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// Run directory.
    pub run: PathBuf,
    /// A jpg, png, mp4 …
    pub file: PathBuf,
    /// The question.
    pub question: String,
    /// Candidates, separated by commas (or given several times).
    #[arg(long, value_delimiter = ',', required = true)]
    pub answers: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `search`
#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Run directory.
    pub run: PathBuf,
    /// A folder of shards, one tar, or a brace range.
    pub shards: String,
    /// What to look for.
    pub text: String,
    /// Results wanted.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `reproduce`
#[derive(Debug, Args)]
pub(crate) struct Reproduce {
    /// The run to reproduce.
    #[arg(value_name = "RUN")]
    pub of: PathBuf,
    /// The new run directory; `<RUN>-reproduced` when not given.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Start although data or recipe are not those of the run.
    #[arg(long)]
    pub allow_differences: bool,
    /// Print what is the same and what is not, and end.
    #[arg(long)]
    pub dry_run: bool,
}

/// `export`
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Run directory.
    pub run: PathBuf,
    /// A folder that is made.
    pub folder: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `import`
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The recipe, a YAML file.
    pub recipe: PathBuf,
    /// A folder as `export` writes it.
    pub folder: PathBuf,
    #[command(flatten)]
    pub place: Place,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A run directory.
#[derive(Debug, Args)]
pub(crate) struct RunOnly {
    /// Run directory.
    pub run: PathBuf,
}

/// A run directory and a form of output.
#[derive(Debug, Args)]
pub(crate) struct RunJson {
    /// Run directory.
    pub run: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_recipe_needs_no_subcommand_and_answers_are_split_at_commas() {
        let cli = Cli::parse_from(["l", "a.yaml", "--set", "a.b=c", "--set", "d=e", "--dry-run"]);
        assert!(cli.command.is_none() && cli.train.dry_run);
        assert_eq!(cli.train.place.set, ["a.b=c", "d=e"]);
        let cli = Cli::parse_from(["l", "ask", "run", "x.jpg", "what?", "--answers", "a,b c,d"]);
        assert!(matches!(cli.command, Some(Command::Ask(ask)) if ask.answers == ["a", "b c", "d"]));
        let cli = Cli::parse_from(["l", "a.yaml", "--drill", "nan:rank=0,step=1"]);
        assert_eq!(cli.train.drill.len(), 1);
        let typo = Cli::try_parse_from(["l", "a.yaml", "--drill", "nam:rank=0,step=1"]);
        assert!(typo.unwrap_err().to_string().contains("did you mean `nan`?"));
        for wrong in [vec!["l"], vec!["l", "ask", "run"], vec!["l", "a.yaml", "--sett", "x"]] {
            assert!(Cli::try_parse_from(wrong).is_err());
        }
    }
}
