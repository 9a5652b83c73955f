//! Paths of all files in a run directory. Other code takes them from here and joins no names
//! itself.

use std::path::{Path, PathBuf};

use super::RunDirectory;

impl RunDirectory {
    /// Path of the run directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Resolved recipe with all defaults, in YAML.
    #[must_use]
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.yaml")
    }

    /// Record of the run: versions, hashes, hosts and attempts.
    #[must_use]
    pub fn run_json(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// Events of the run, such as starts, faults and warnings, one JSON object per line.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Metrics ([`crate::protocol::Metrics`]), one JSON object per line.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Newest scores: a map from each metric to `{value, interval, chance, baseline, n, unreadable,
    /// measured}`.
    #[must_use]
    pub fn scores(&self) -> PathBuf {
        self.path.join("scores.json")
    }

    /// Report of the run, one self-contained HTML file.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Completion record. The run is complete if and only if this file exists.
    #[must_use]
    pub fn completed(&self) -> PathBuf {
        self.path.join("completed.json")
    }

    /// File whose appearance asks the run to save a checkpoint and stop.
    #[must_use]
    pub fn stop(&self) -> PathBuf {
        self.path.join("stop")
    }

    /// Fastest algorithms of matrix products, as timed on the run's GPUs.
    #[must_use]
    pub fn algorithms(&self) -> PathBuf {
        self.path.join("algorithms")
    }

    /// Counter that the supervisor of a Slurm job keeps increasing to show that it is alive.
    #[must_use]
    pub fn alive(&self) -> PathBuf {
        self.path.join("alive")
    }

    /// Batch script of a run on Slurm.
    #[must_use]
    pub fn batch_script(&self) -> PathBuf {
        self.path.join("job.sbatch")
    }

    /// Record of the Slurm job that works on the run, written when the job was submitted.
    #[must_use]
    pub fn slurm_json(&self) -> PathBuf {
        self.path.join("slurm.json")
    }

    /// Folder with the run's copies of the programs, so that a new build does not change a job that
    /// waits in the queue.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.path.join("bin")
    }

    /// Job of the workers ([`crate::protocol::Job`]).
    #[must_use]
    pub fn job(&self) -> PathBuf {
        self.path.join("job.json")
    }

    /// Job of the workers that check the nodes ([`crate::protocol::Job::Check`]).
    #[must_use]
    pub fn check_job(&self) -> PathBuf {
        self.path.join("check.json")
    }

    /// Folder with the logs of all ranks and attempts.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Log of one rank in one attempt.
    #[must_use]
    pub fn log(&self, rank: usize, attempt: u32) -> PathBuf {
        self.logs().join(format!("rank-{rank:04}-attempt-{attempt}.log"))
    }

    /// Folder with all checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Folder of the checkpoint of a step. Sorted by name, these folders are in the order of their
    /// steps.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:08}"))
    }

    /// Description of the checkpoint in the folder `checkpoint`, with the hashes of its files.
    #[must_use]
    pub fn manifest(&self, checkpoint: &str) -> PathBuf {
        self.checkpoints().join(checkpoint).join("manifest.json")
    }

    /// Folder with the scores of all evaluations.
    #[must_use]
    pub fn evaluations(&self) -> PathBuf {
        self.path.join("evaluations")
    }

    /// Scores of the model after `step` steps, in the form of [`Self::scores`].
    #[must_use]
    pub fn evaluation(&self, step: u64) -> PathBuf {
        self.evaluations().join(format!("step-{step:08}.json"))
    }

    /// Samples that the evaluation after `step` steps could not read, if there are any.
    #[must_use]
    pub fn unreadable(&self, step: u64) -> PathBuf {
        self.evaluations().join(format!("step-{step:08}-unreadable.json"))
    }

    /// Right answers by label of the evaluation after `step` steps, if a task has labels
    /// ([`crate::protocol::LabelCounts`]).
    #[must_use]
    pub fn labels(&self, step: u64) -> PathBuf {
        self.evaluations().join(format!("step-{step:08}-labels.json"))
    }

    /// Curves of the tasks of the evaluation after `step` steps that decode long videos, if there
    /// are any ([`crate::protocol::SelectiveCurves`]).
    #[must_use]
    pub fn selective(&self, step: u64) -> PathBuf {
        self.evaluations().join(format!("step-{step:08}-selective.json"))
    }

    /// Folder with the embeddings of the last evaluation, from which an interrupted one goes on.
    #[must_use]
    pub fn kept_embeddings(&self) -> PathBuf {
        self.evaluations().join("kept")
    }

    /// Directory of a row of a table. It holds the row's recipe and the files of its evaluation.
    #[must_use]
    pub fn row(&self, name: &str) -> Self {
        Self { path: self.path.join("rows").join(name) }
    }

    /// Record of a row in the directory of the row ([`crate::protocol::RowRecord`]).
    #[must_use]
    pub fn row_json(&self) -> PathBuf {
        self.path.join("row.json")
    }

    /// Rows of a table beside those of the paper, as JSON.
    #[must_use]
    pub fn table_json(&self) -> PathBuf {
        self.path.join("table.json")
    }

    /// Rows of a table beside those of the paper, as Markdown.
    #[must_use]
    pub fn table_markdown(&self) -> PathBuf {
        self.path.join("table.md")
    }

    /// Samples with the model's answers, which the report shows.
    #[must_use]
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.json")
    }

    /// Folder with the TensorBoard event files.
    #[must_use]
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Folder with the Chrome traces of the steps that `logging.trace` names.
    #[must_use]
    pub fn traces(&self) -> PathBuf {
        self.path.join("traces")
    }

    /// Chrome trace of one step of one rank.
    #[must_use]
    pub fn trace(&self, rank: usize, step: u64) -> PathBuf {
        self.traces().join(format!("rank-{rank:04}-step-{step}.json"))
    }

    /// Times of the ranks in the newest logging interval: the slowest ranks and their phases.
    #[must_use]
    pub fn ranks(&self) -> PathBuf {
        self.path.join("ranks.json")
    }

    /// Uncommitted changes of the source code with which the run was started, as a diff.
    #[must_use]
    pub fn source_diff(&self) -> PathBuf {
        self.path.join("source.diff")
    }

    /// Comparison of this run with the run that it reproduces.
    #[must_use]
    pub fn reproduction(&self) -> PathBuf {
        self.path.join("reproduction.json")
    }
}
