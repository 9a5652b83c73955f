//! Submission from a login node: copies of the programs, the batch script and the job; and
//! `--follow`, which shows the progress of a submitted run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vljepa_recipes::clock;
use vljepa_recipes::protocol::Drill;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::Recipe;

use super::client::{self, JobState};
use super::render::BatchScript;
use crate::environment;
use crate::error::LaunchError;
use crate::process;
use crate::programs::Programs;
use crate::record::completion;
use crate::record::events::{Event, EventLog};
use crate::record::live::LiveRun;
use crate::record::provenance::RunRecord;
use crate::record::rates::{Activity, LoggedInterval, Summary};
use crate::terminal;

/// Time between two looks at a followed run.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a requeued job is held back at least. Slurm revokes the credential of the job that was
/// ended, with all that were made up to the same second: a job that starts in this second is ended
/// for good ("Job credential revoked").
const RELEASE_DELAY: Duration = Duration::from_secs(2);
/// How long a job may be missing from the queue before it counts as ended: `squeue` does not list a
/// job while it is being requeued.
pub(crate) const GONE_TIMEOUT: Duration = Duration::from_secs(15);

/// Content of `slurm.json`: the job that works on a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Submission {
    /// Id of the job.
    pub job: String,
    /// Time of the submission, RFC 3339.
    pub submitted: String,
    /// Batch script of the job.
    pub script: PathBuf,
    /// Faults to inject.
    #[serde(default)]
    pub drills: Vec<Drill>,
    /// Directories of the runs that must be complete before this one starts, as absolute paths.
    #[serde(default)]
    pub after: Vec<PathBuf>,
    /// Ids of the jobs for whose success the job waits.
    #[serde(default)]
    pub after_jobs: Vec<String>,
    /// Command line that submitted the job.
    #[serde(default)]
    pub command: Vec<String>,
}

/// What a job waits for.
#[derive(Debug, Clone, Default)]
pub(crate) struct After {
    /// Jobs that must end with success before the job starts.
    pub jobs: Vec<String>,
    /// Directories of the runs that must then be complete.
    pub runs: Vec<PathBuf>,
}

impl After {
    /// Options of `sbatch`. Slurm removes the job from the queue if a job that it waits for fails.
    fn options(&self) -> Vec<String> {
        if self.jobs.is_empty() {
            return Vec::new();
        }
        let after = format!("--dependency=afterok:{}", self.jobs.join(":"));
        vec![after, "--kill-on-invalid-dep=yes".to_owned()]
    }
}

impl Submission {
    /// Reads `slurm.json`, or returns `None` if the run was never submitted or the file is damaged.
    pub(crate) fn read(directory: &RunDirectory) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(directory.slurm_json()).ok()?).ok()
    }

    /// Replaces `slurm.json`.
    pub(crate) fn write(&self, directory: &RunDirectory) -> Result<(), LaunchError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| LaunchError::Start {
            what: "writing slurm.json".to_owned(),
            why: error.to_string(),
        })?;
        Ok(atomic_write(&directory.slurm_json(), &text)?)
    }
}

/// Checks before a submission that this machine can submit and that no job of the run is waiting,
/// running or ending.
pub(crate) async fn check(directory: Option<&RunDirectory>) -> Result<(), LaunchError> {
    let Some(submission) = directory.and_then(Submission::read) else {
        return process::ask("sbatch", &["--version"])
            .await
            .map(drop)
            .map_err(|why| LaunchError::NoSlurm { why });
    };
    let job = submission.job;
    let state = match client::job_state(&job).await {
        None => {
            return Err(LaunchError::NoSlurm {
                why: format!("squeue does not answer for job {job}"),
            });
        }
        Some(JobState::Gone) => return Ok(()),
        Some(JobState::Running) => "running".to_owned(),
        Some(JobState::Ending(_)) => "ending".to_owned(),
        Some(JobState::Pending(reason)) => format!("waiting in the queue ({reason})"),
    };
    Err(LaunchError::Submitted { job, state })
}

/// Submits the run.
pub(crate) async fn submit(
    directory: &RunDirectory,
    recipe: &Recipe,
    programs: &Programs,
    drills: &[Drill],
    after: &After,
) -> Result<Submission, LaunchError> {
    let failed = |what: &str, why: &dyn std::fmt::Display| LaunchError::Start {
        what: what.to_owned(),
        why: why.to_string(),
    };
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| failed("resolving a path", &error));
    let root = absolute(directory.path())?;
    let folder =
        std::env::current_dir().map_err(|error| failed("finding the current folder", &error))?;
    let launcher = copy_programs(directory, programs)
        .map_err(|error| failed("copying the programs into the run directory", &error))?;
    let script = BatchScript::of(recipe, &root, &folder, &absolute(&launcher)?);
    let path = absolute(&directory.batch_script())?;
    atomic_write(&path, script.to_string().as_bytes())?;
    // A stop file of an earlier job must not stop this one.
    drop(std::fs::remove_file(directory.stop()));
    let (options, file) = (after.options(), path.display().to_string());
    let mut arguments = vec!["--parsable"];
    arguments.extend(options.iter().map(String::as_str).chain([&*file]));
    let answer = process::ask("sbatch", &arguments)
        .await
        .map_err(|why| LaunchError::Sbatch { why, script: path.clone() })?;
    let needed = after.runs.iter().map(|run| absolute(run)).collect::<Result<_, _>>()?;
    let submission = Submission {
        job: job_of(&answer),
        submitted: clock::now_text(),
        script: path,
        drills: drills.to_vec(),
        after: needed,
        after_jobs: after.jobs.clone(),
        command: std::env::args().collect(),
    };
    submission.write(directory)?;
    let attempt = RunRecord::read(directory).map_or(1, |record| record.next_attempt());
    let job = submission.job.clone();
    EventLog::new(directory, attempt).write(Event::Submitted { job });
    Ok(submission)
}

/// Prints the job of a submitted run, and where to find its script, logs and state.
pub(crate) fn show(directory: &RunDirectory, submission: &Submission) {
    let Submission { job, script, .. } = submission;
    terminal::result(&format!("submitted job {job}"));
    terminal::note(&format!(
        "script   {}\nlogs     {} (supervisor), rank-RRRR-attempt-A.log beside it\nstatus   vljepa-launch status {run}\nstop     vljepa-launch stop {run}",
        script.display(),
        log(directory, job).display(),
        run = directory.path().display(),
    ));
}

/// Output of a job: the messages of its supervisor.
pub(crate) fn log(directory: &RunDirectory, job: &str) -> PathBuf {
    directory.logs().join(format!("slurm-{job}.log"))
}

/// Id of the job in the output of `sbatch --parsable`, which is `id` or `id;cluster`.
pub(crate) fn job_of(answer: &str) -> String {
    answer.trim().split(';').next().unwrap_or_default().to_owned()
}

/// Copies both programs into a folder named after the hash of their content, removes the copies of
/// earlier submissions, and returns the path of the copied launcher.
fn copy_programs(directory: &RunDirectory, programs: &Programs) -> std::io::Result<PathBuf> {
    let launcher = std::env::current_exe()?;
    let sources = [("vljepa-launch", &launcher), ("vljepa-worker", &programs.worker)];
    let mut hasher = blake3::Hasher::new();
    for (_, source) in sources {
        std::io::copy(&mut std::fs::File::open(source)?, &mut hasher)?;
    }
    let bin = directory.programs();
    let folder = bin.join(&hasher.finalize().to_hex()[..16]);
    if launcher.parent() == Some(folder.as_path()) {
        return Ok(launcher);
    }
    if !folder.join("vljepa-worker").exists() {
        if bin.exists() {
            std::fs::remove_dir_all(&bin)?;
        }
        std::fs::create_dir_all(&folder)?;
        for (name, source) in sources {
            // The worker is copied last: if it exists, the folder is complete.
            let temporary = folder.join(format!(".{name}"));
            std::fs::copy(source, &temporary)?;
            std::fs::File::open(&temporary)?.sync_all()?;
            std::fs::rename(&temporary, folder.join(name))?;
        }
    }
    Ok(folder.join("vljepa-launch"))
}

/// Shows the progress of a submitted run until it is complete or its job is gone, and lets a
/// requeued job start at once. Returns whether the run is complete.
pub(crate) async fn follow(directory: &RunDirectory, recipe: &Recipe) -> Result<bool, LaunchError> {
    let (mut shown_step, mut shown_state) = (0, String::new());
    let (mut gone_since, mut held_since) = (None, None);
    let mut live = LiveRun::new(directory, recipe);
    loop {
        // A file that cannot be read now may be readable at the next look.
        live.update().ok();
        if let Some(newest) = live.newest().filter(|newest| newest.step > shown_step) {
            shown_step = newest.step;
            terminal::note(&line(newest, &live.summary(Activity::Job), recipe.total_steps()));
        }
        if completion::check(directory, recipe).is_ok() {
            return Ok(true);
        }
        let Some(Submission { job, .. }) = Submission::read(directory) else { return Ok(false) };
        let state = client::job_state(&job).await;
        let text = match &state {
            Some(JobState::Pending(reason)) => format!("job {job} waits: {reason}"),
            Some(JobState::Running) => format!("job {job} runs"),
            Some(JobState::Ending(_)) => format!("job {job} is leaving its nodes"),
            Some(JobState::Gone) => format!("job {job} is no longer in the queue"),
            None => format!("the state of job {job} is unknown: squeue does not answer"),
        };
        if text != shown_state {
            terminal::note(&text);
            shown_state = text;
        }
        let is_held = matches!(&state, Some(JobState::Pending(reason)) if reason == "BeginTime");
        if lasts(is_held, &mut held_since, RELEASE_DELAY) {
            client::release(&job).await;
        }
        if lasts(state == Some(JobState::Gone), &mut gone_since, GONE_TIMEOUT) {
            return Ok(false);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether `holds` has been true since `since` for at least `time`.
fn lasts(holds: bool, since: &mut Option<tokio::time::Instant>, time: Duration) -> bool {
    if !holds {
        *since = None;
        return false;
    }
    since.get_or_insert_with(tokio::time::Instant::now).elapsed() >= time
}

fn line(newest: &LoggedInterval, rates: &Summary, total_steps: u64) -> String {
    let LoggedInterval { stage, step, loss, .. } = newest;
    let (loss, rate) = (loss.unwrap_or(f64::NAN), rates.recent_samples_per_s.unwrap_or_default());
    format!("{stage} {step}/{total_steps}  loss {loss:.4}  {rate:.1} samples/s")
}

/// Records in `slurm.json` that `job` works on the run. The drills, the needed runs and jobs
/// and the command line stay as they are.
pub(crate) fn take_over(directory: &RunDirectory, job: &str) -> Result<(), LaunchError> {
    let known = Submission::read(directory);
    if known.as_ref().is_some_and(|known| known.job == job) {
        return Ok(());
    }
    let (job, submitted) = (job.to_owned(), clock::now_text());
    let submission = match known {
        Some(known) => Submission { job, submitted, ..known },
        None => {
            Submission { job, submitted, script: directory.batch_script(), ..Default::default() }
        }
    };
    submission.write(directory)
}

/// Variables of the Slurm job that this process belongs to, or `None` outside a job. Inside a job,
/// runs are supervised and not submitted.
pub(crate) fn current_job() -> Option<environment::SlurmVariables> {
    environment::SlurmVariables::read()
}
