//! Where everything of a run lies. One place says so; nobody else joins names.

use std::path::{Path, PathBuf};

use super::RunDirectory;

impl RunDirectory {
    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved recipe.
    #[must_use]
    pub fn recipe(&self) -> PathBuf {
        self.root.join("recipe.yaml")
    }

    /// Versions, hashes, hosts and attempts.
    #[must_use]
    pub fn run_json(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// What happened, one JSON object per line.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// [`crate::protocol::Metrics`], one JSON object per line.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Metric to `{value, chance, baseline, n}`.
    #[must_use]
    pub fn scores(&self) -> PathBuf {
        self.root.join("scores.json")
    }

    /// The report, one self-contained file.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The completion record: its existence, and nothing else, says that the run is done.
    #[must_use]
    pub fn completed(&self) -> PathBuf {
        self.root.join("completed.json")
    }

    /// A file whose appearance asks the run to save itself and end.
    #[must_use]
    pub fn stop(&self) -> PathBuf {
        self.root.join("stop")
    }

    /// The algorithms of matrix products that the run's GPUs were found to be fastest with.
    #[must_use]
    pub fn algorithms(&self) -> PathBuf {
        self.root.join("algorithms")
    }

    /// A count by which the supervisor of a Slurm job shows that it is there.
    #[must_use]
    pub fn alive(&self) -> PathBuf {
        self.root.join("alive")
    }

    /// The batch script of a run on Slurm.
    #[must_use]
    pub fn batch_script(&self) -> PathBuf {
        self.root.join("job.sbatch")
    }

    /// The Slurm job that works on the run, as its submission left it.
    #[must_use]
    pub fn slurm_json(&self) -> PathBuf {
        self.root.join("slurm.json")
    }

    /// The run's own copies of the programs: an edit or a new build does not change a job that waits in a queue.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The job that workers are started for.
    #[must_use]
    pub fn job(&self) -> PathBuf {
        self.root.join("job.json")
    }

    /// The job that looks whether a node can take part.
    #[must_use]
    pub fn check_job(&self) -> PathBuf {
        self.root.join("check.json")
    }

    /// Logs of all ranks and attempts.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of one rank of one attempt.
    #[must_use]
    pub fn log(&self, rank: usize, attempt: u32) -> PathBuf {
        self.logs().join(format!("rank-{rank:04}-attempt-{attempt}.log"))
    }

    /// All checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint of a step; names sort as steps do.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:08}"))
    }

    /// What evaluations wrote.
    #[must_use]
    pub fn evaluations(&self) -> PathBuf {
        self.root.join("evaluations")
    }

    /// Scores measured at one step.
    #[must_use]
    pub fn evaluation(&self, step: u64) -> PathBuf {
        self.evaluations().join(format!("step-{step:08}.json"))
    }

    /// Samples with the model's answers, for the report.
    #[must_use]
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples.json")
    }

    /// TensorBoard event files.
    #[must_use]
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Chrome traces of chosen steps.
    #[must_use]
    pub fn traces(&self) -> PathBuf {
        self.root.join("traces")
    }

    /// The trace of one step of one rank.
    #[must_use]
    pub fn trace(&self, rank: usize, step: u64) -> PathBuf {
        self.traces().join(format!("rank-{rank:04}-step-{step}.json"))
    }

    /// The newest interval of the ranks: who is slow, by how much, in which phase.
    #[must_use]
    pub fn ranks(&self) -> PathBuf {
        self.root.join("ranks.json")
    }

    /// What the sources differed by from their commit.
    #[must_use]
    pub fn source_diff(&self) -> PathBuf {
        self.root.join("source.diff")
    }

    /// How this run compares with the one it reproduces.
    #[must_use]
    pub fn reproduction(&self) -> PathBuf {
        self.root.join("reproduction.json")
    }
}
