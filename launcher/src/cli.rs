//! Arguments and subcommands of `vljepa-launch`. Doc comments of fields and variants are the help
//! texts.

mod doctor;
mod model;
mod plan;
mod status;
mod stream;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vljepa_recipes::protocol::Drill;

pub(crate) use self::doctor::Doctor;
pub(crate) use self::model::{Ask, Caption, Latency, Search};
pub(crate) use self::plan::{Devices, Plan};
pub(crate) use self::status::Status;
pub(crate) use self::stream::{Stream, StreamSpeed};

const AFTER_HELP: &str = "\
Exit codes:
  0    success (for a run: its completion record was written)
  1    the run or the job failed
  2    the command line, the recipe or a file named in it is wrong; nothing was started
  3    this machine lacks something: mpirun, vljepa-worker, one of its features; a fact of `doctor` fails
  75   inside a Slurm job: the run has to continue later (its time is over, USR1 or USR2, too few healthy nodes);
       a job that vljepa-launch submitted is requeued
  130  stopped by Ctrl-C or `vljepa-launch stop` (143: by TERM, 138: USR1, 140: USR2, 129: the terminal was closed);
       give the same command again to continue

The first Ctrl-C saves a checkpoint at the next step boundary and ends the run; a second one ends it at once.";

/// Train VL-JEPA from a recipe, and use the trained model.
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

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// Recipe to train, a YAML file. If its run was started before, the run continues. Also a
    /// programme, a list of recipes: each run starts when those that it reads are complete.
    #[arg(required = true)]
    pub recipe: Option<PathBuf>,
    #[command(flatten)]
    pub options: RecipeOptions,
    /// Print the resolved recipe and the plan, and start nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// On Slurm: stay after submitting and show the progress until the run ends, also across
    /// requeues. Ctrl-C ends the display, not the job.
    #[arg(long)]
    pub follow: bool,
    /// Rehearse a fault: KIND:rank=R,step=S[,phase=P][,attempt=A], for example
    /// `kill:rank=1,step=5,phase=backward`. Can be given several times. Kinds: kill, stop, panic,
    /// error, exit, nan, slow (with seconds=T), kill-supervisor (without a rank).
    #[arg(long, value_name = "DRILL")]
    pub drill: Vec<Drill>,
}

#[derive(Debug, Args)]
pub(crate) struct RecipeOptions {
    /// Run directory; default: `<runs>/<name>` with both values from the recipe.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Change a key of the recipe, for example `--set stages.0.steps=100`. Can be given several
    /// times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Rank candidate answers to a question about an image or a clip, or write the answer with a
    /// Y-decoder or a VLM.
    Ask(Ask),
    /// Write captions of images and clips with a Y-decoder or a VLM.
    Caption(Caption),
    /// Watch a video and print a caption, with its time, when what it shows changes.
    Stream(Stream),
    /// Measure how long the model takes to answer: query, encoder and decoder.
    Latency(Latency),
    /// Rank the samples of shards by how well they match a text.
    Search(Search),
    /// Run the recipe's evaluation tasks with a checkpoint, and update the report.
    Evaluate(Evaluate),
    /// Write the weights of a checkpoint under the published tensor names.
    Export(Export),
    /// Say which models a file of published weights holds, and which lines of a recipe read them.
    Weights(Weights),
    /// Compare captions with reference captions as coco-caption does: CIDEr, BLEU-4, ROUGE-L.
    Score(Score),
    /// Say how long a run, or each run of a programme, will take, what it needs and costs, what
    /// limits it, and what to change.
    Plan(Plan),
    /// Say which claims of the paper hold for computed tables, and write one page with all of them.
    Paper(Paper),
    /// Say what is wrong with this machine, or inside a Slurm job with all of its nodes, before a
    /// run starts: CPUs, memory, disks, libraries, GPUs, network, clocks, Slurm.
    Doctor(Doctor),
    /// List evaluation sets: what this disk holds of them, and where they are published.
    Sets(Sets),
    /// Write the report.html of a run again.
    Report(RunOnly),
    /// Compare sources, data and programs with those of a run, repeat it as a new run, and compare
    /// the losses.
    Reproduce(Reproduce),
    /// Show the state of a run: step, loss, rates, where the time went, Slurm job, slowest ranks.
    /// Of a programme: one line for each run.
    Status(Status),
    /// Ask a run, or all runs of a programme, to save a checkpoint and end, on whichever machine
    /// they work; a job that waits in Slurm's queue is cancelled.
    Stop(Stop),
    /// Supervise a submitted run inside its Slurm job (the batch script calls this).
    #[command(hide = true)]
    Supervise(RunOnly),
    /// Watch the supervisor of a Slurm job from another node of the job (the batch script calls
    /// this).
    #[command(hide = true)]
    Guard(RunOnly),
}

/// Checkpoint that a command reads.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OfStep {
    /// Read the checkpoint of this step and no other; default: the newest that verifies.
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// Run directory with a checkpoint.
    pub run: PathBuf,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Paper {
    /// Run directories of tables and figures. Several of one table are its seeds: scores are then
    /// means, and a claim holds if it holds for each of them.
    #[arg(required = true)]
    pub tables: Vec<PathBuf>,
    /// Write a page with the claims and all tables.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Reproduce {
    /// Run directory of the run to reproduce.
    #[arg(value_name = "RUN")]
    pub of: PathBuf,
    /// Directory of the new run; default: `<RUN>-reproduced`.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Start even if the data or the recipe differ from those of the run.
    #[arg(long)]
    pub allow_differences: bool,
    /// Print which facts are the same and which differ, and start nothing.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Run directory with a checkpoint.
    pub run: PathBuf,
    /// Folder for the weights; it is created, or must be empty.
    pub folder: PathBuf,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Weights {
    /// File of weights: safetensors, the index of several such files
    /// (`model.safetensors.index.json`), or a `.pt` or `.pth` of PyTorch, which is not executed.
    pub file: PathBuf,
    /// Copy the models that a recipe can use to this new safetensors file, with no other tensors.
    #[arg(long, value_name = "OUT")]
    pub convert: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Score {
    /// Score to compute. CIDEr is printed as coco-caption prints it; papers multiply it by 100.
    #[arg(value_enum)]
    pub metric: CaptionScore,
    /// Captions to score: one per line, or COCO's results, a JSON list of `{image_id, caption}`.
    pub hypotheses: PathBuf,
    /// Right captions: files whose lines have the same numbers, or JSON files of COCO's
    /// annotations.
    #[arg(required = true)]
    pub references: Vec<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Sets {
    /// Files of sets. Default: those in recipes/evaluate/sets.
    pub files: Vec<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Scores of `vljepa-launch score`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaptionScore {
    /// CIDEr-D, from 0 to 10.
    Cider,
    /// BLEU-4, from 0 to 1.
    Bleu4,
    /// ROUGE-L, from 0 to 1.
    #[value(name = "rouge_l")]
    RougeL,
    /// All of these.
    All,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Directory of the run, or file of a programme.
    pub run: PathBuf,
    /// Change of a key with which the programme was started. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunOnly {
    /// Directory of the run.
    pub run: PathBuf,
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
        assert_eq!(cli.train.options.set, ["a.b=c", "d=e"]);
        let cli = Cli::parse_from(["l", "ask", "run", "x.jpg", "what?", "--answers", "a,b c,d"]);
        assert!(matches!(cli.command, Some(Command::Ask(ask)) if ask.answers == ["a", "b c", "d"]));
        let cli = Cli::parse_from(["l", "a.yaml", "--drill", "nan:rank=0,step=1"]);
        assert_eq!(cli.train.drill.len(), 1);
        let typo = Cli::try_parse_from(["l", "a.yaml", "--drill", "nam:rank=0,step=1"]);
        assert!(typo.unwrap_err().to_string().contains("did you mean `nan`?"));
        let cli = Cli::parse_from(["l", "export", "run", "out", "--step", "500"]);
        assert!(matches!(cli.command, Some(Command::Export(e)) if e.checkpoint.step == Some(500)));
        let no_step = vec!["l", "evaluate", "run", "--step", "newest"];
        for wrong in
            [vec!["l"], vec!["l", "ask", "run"], vec!["l", "a.yaml", "--sett", "x"], no_step]
        {
            assert!(Cli::try_parse_from(wrong).is_err());
        }
    }
}
