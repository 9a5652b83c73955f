//! Renders the batch script of a run from a typed struct.

use std::fmt;
use std::path::{Path, PathBuf};

use vljepa_recipes::schema::{Device, Recipe};

/// Exit code of a supervisor whose run continues after this job was requeued.
pub(crate) const REQUEUE: u8 = 75;
/// Exit code of a supervisor that was asked to end by TERM, which Slurm sends before it preempts or
/// cancels a job.
pub(crate) const TERMINATED: u8 = 143;
/// Number of supervisors in a row that are killed within a minute of their start before the job
/// gives up.
const QUICK_DEATHS: u32 = 5;

/// Options and paths of a batch script. Fields that are named like an option of `sbatch` hold its
/// value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchScript {
    pub job_name: String,
    /// Value of `--nodes`: the nodes of the recipe and its spares.
    pub nodes: usize,
    /// Value of `--ntasks-per-node`: ranks per node.
    pub tasks_per_node: usize,
    /// Value of `--gpus-per-node`, or `None` for ranks on CPUs.
    pub gpus_per_node: Option<usize>,
    /// Value of `--cpus-per-task`, if the recipe sets `cluster.slurm.cpus_per_rank`.
    pub cpus_per_task: Option<usize>,
    pub time_limit: Option<String>,
    pub partition: Option<String>,
    pub account: Option<String>,
    pub qos: Option<String>,
    /// Seconds before the time limit at which Slurm sends USR1 (`--signal=B:USR1@…`).
    pub signal_ahead_s: u64,
    /// Further options from `cluster.slurm.extra`.
    pub extra: Vec<String>,
    /// Run directory, absolute.
    pub run: PathBuf,
    /// Folder to which relative paths in the recipe refer, absolute.
    pub folder: PathBuf,
    /// The run's own copy of `vljepa-launch`, absolute.
    pub launcher: PathBuf,
}

impl BatchScript {
    /// Batch script of a recipe. The paths `run`, `folder` and `launcher` are absolute.
    pub(crate) fn of(recipe: &Recipe, run: &Path, folder: &Path, launcher: &Path) -> Self {
        let (cluster, slurm) = (&recipe.cluster, &recipe.cluster.slurm);
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            job_name: format!("vljepa-{}", recipe.name),
            nodes: cluster.nodes + cluster.restart.spare_nodes,
            tasks_per_node: cluster.ranks_per_node,
            gpus_per_node: (recipe.device == Device::Cuda).then_some(cluster.ranks_per_node),
            cpus_per_task: (slurm.cpus_per_rank > 0).then_some(slurm.cpus_per_rank),
            time_limit: given(&slurm.time_limit),
            partition: given(&slurm.partition),
            account: given(&slurm.account),
            qos: given(&slurm.qos),
            signal_ahead_s: slurm.signal_ahead_s,
            extra: slurm.extra.clone(),
            run: run.to_owned(),
            folder: folder.to_owned(),
            launcher: launcher.to_owned(),
        }
    }

    fn options(&self) -> Vec<String> {
        let text = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("--{name}={value}"))
        };
        let number = |name: &str, value: Option<usize>| value.map(|n| format!("--{name}={n}"));
        let mut options = vec![
            format!("--job-name={}", self.job_name),
            format!("--nodes={}", self.nodes),
            format!("--ntasks-per-node={}", self.tasks_per_node),
        ];
        let given = [
            number("gpus-per-node", self.gpus_per_node),
            number("cpus-per-task", self.cpus_per_task),
            text("time", &self.time_limit),
            text("partition", &self.partition),
            text("account", &self.account),
            text("qos", &self.qos),
        ];
        options.extend(given.into_iter().flatten());
        options.extend([
            format!("--signal=B:USR1@{}", self.signal_ahead_s),
            "--requeue".to_owned(),
            "--no-kill".to_owned(),
            "--open-mode=append".to_owned(),
            format!("--output={}", word(&self.run.join("logs/slurm-%j.log"))),
            format!("--chdir={}", word(&self.folder)),
        ]);
        options.extend(self.extra.iter().cloned());
        options
    }
}

impl fmt::Display for BatchScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "#!/bin/bash")?;
        for option in self.options() {
            writeln!(f, "#SBATCH {option}")?;
        }
        let (run, launcher) = (word(&self.run), word(&self.launcher));
        write!(
            f,
            r#"
# Supervises one run on the nodes of this job. A lost node does not end the job (--no-kill): the
# supervisor restarts the workers on the other nodes. This script restarts a supervisor that is
# killed. A job that ends too early goes back into the queue (--requeue).
run={run}
launcher={launcher}

supervisor= last_signal=
for signal in INT TERM USR1 USR2; do
  trap 'last_signal='$signal'; [ -z "$supervisor" ] || kill -s '$signal' "$supervisor" 2>/dev/null' $signal
done

# Waits until Slurm kills this script. TERM does not end it.
hold() {{ while :; do sleep 60; done; }}

# With --no-kill Slurm does not requeue a job that loses the node of this script, so a guard on the
# last node does. If a guard ends, alone or with its node, the next one runs on the node before, and
# after the second node on the last one again.
guard() {{
  while [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; do
    for ((node = SLURM_JOB_NUM_NODES - 1; node > 0; node--)); do
      srun --job-name=vljepa-guard --nodes=1 --ntasks=1 --relative=$node --overlap --mpi=none --input=none "$launcher" guard "$run"
      echo "the guard on node $node of this job has ended" >&2
      sleep 10
    done
  done
}}
guard &
guard=$!

# If this script exits, the job is over. Slurm 24.05 and newer would requeue a job that was
# preempted before, even so.
finish() {{
  kill "$guard"
  scontrol update JobId="$SLURM_JOB_ID" Requeue=0
}}
trap 'finish 2>/dev/null' EXIT

quick_deaths=0
while :; do
  started=$SECONDS
  "$launcher" supervise "$run" &
  supervisor=$!
  # `wait` also returns after a signal.
  while wait "$supervisor"; code=$?; kill -0 "$supervisor" 2>/dev/null; do :; done
  wait "$supervisor" 2>/dev/null
  final=$?
  [ $final = 127 ] || code=$final
  case $code in
    0|130) exit 0 ;;
    # The supervisor has requeued the job.
    {REQUEUE}) hold ;;
    # Bash 5.2 loses the exit code of a process that exits just as a signal arrives. After TERM,
    # Slurm ends this script. After other signals the supervisor is restarted; it does nothing if
    # the run is complete.
    -1|255) [ "$last_signal" != TERM ] || hold ;;
    # Slurm requeues a preempted job and ends a cancelled one. If this script left first, that would
    # end the job.
    {TERMINATED}) hold ;;
  esac
  [ $code = -1 ] || [ $code -gt 128 ] || exit $code
  if [ $((SECONDS - started)) -lt 60 ]; then quick_deaths=$((quick_deaths + 1)); else quick_deaths=0; fi
  echo "the supervisor was killed (exit code $code) after $((SECONDS - started)) s" >&2
  [ $quick_deaths -lt {QUICK_DEATHS} ] || exit 1
done
"#
        )
    }
}

/// A path as one word of bash, in quotes if necessary.
fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%,:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vljepa_recipes::load;

    use super::{BatchScript, word};

    fn script(name: &str, set: &[&str]) -> String {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        let loaded = load(&recipes.join(name), &set).unwrap();
        let paths = ["/scratch/runs/x", "/home/me/vljepa", "/scratch/runs/x/bin/0/vljepa-launch"];
        let [run, folder, launcher] = paths.map(Path::new);
        BatchScript::of(&loaded.recipe, run, folder, launcher).to_string()
    }

    #[test]
    fn the_papers_pretraining_asks_for_its_nodes_and_a_spare() {
        let script = script("pretrain.yaml", &[]);
        let golden = include_str!("golden/pretrain.sbatch");
        assert!(script == golden, "{script}");
    }

    #[test]
    fn every_key_of_the_recipe_is_an_option() {
        let script = script(
            "quickstart.yaml",
            &[
                "cluster.scheduler=slurm",
                "cluster.nodes=2",
                "cluster.slurm.partition=low",
                "cluster.slurm.account=me",
                "cluster.slurm.qos=night",
                "cluster.slurm.cpus_per_rank=4",
                "cluster.slurm.signal_ahead_s=60",
                "cluster.slurm.time_limit=1:00:00",
            ],
        );
        for option in [
            "--nodes=2",
            "--ntasks-per-node=2",
            "--cpus-per-task=4",
            "--time=1:00:00",
            "--partition=low",
            "--account=me",
            "--qos=night",
            "--signal=B:USR1@60",
        ] {
            assert!(script.contains(&format!("#SBATCH {option}\n")), "{option}: {script}");
        }
        assert!(!script.contains("gpus"), "{script}");
    }

    #[test]
    fn paths_are_one_word_of_bash() {
        for (path, expected) in
            [("/a/b-1.2", "/a/b-1.2"), ("/a b", "'/a b'"), ("/it's", r"'/it'\''s'"), ("", "''")]
        {
            assert_eq!(word(Path::new(path)), expected);
        }
    }
}
