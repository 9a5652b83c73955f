//! Health checks of nodes before workers start: the check job that every node runs.

use std::time::{Duration, Instant};

use vljepa_recipes::clock;
use vljepa_recipes::cost::parameters;
use vljepa_recipes::protocol::{CHECK_LIMIT_S, Check, CheckName, Job, REPEATED_CHECK_LIMIT_S};
use vljepa_recipes::run_directory::atomic_write;

use super::Run;
use crate::error::{FileProblem, LaunchError};
use crate::platform::health::{
    NoAnswer, NodeHealth, Reason, Verdict, judge, line, may_recover, read,
};
use crate::process::ask_with_token;
use crate::programs::WorkerArguments;

/// How long the checks of a node may take before it counts as lost.
pub(super) const CHECK_LIMIT: Duration = Duration::from_secs(CHECK_LIMIT_S as u64);

/// How failed checks are repeated that may pass later. All checks before an attempt take
/// [`CHECK_LIMIT`], `window` and `limit` at most, and on Slurm two times the seconds in which
/// `srun` ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Time after the first failure in which repetitions begin.
    pub window: Duration,
    /// Pause before each repetition.
    pub delay: Duration,
    /// How long a repetition may take before the node counts as lost.
    pub limit: Duration,
}

impl Default for Patience {
    /// A minute: killed processes leave their GPUs within 30 s, and storage fails over within tens
    /// of seconds.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let limit = seconds(u64::from(REPEATED_CHECK_LIMIT_S));
        Self { window: seconds(60), delay: seconds(5), limit }
    }
}

/// The time in which the checks before one attempt are repeated.
#[derive(Debug)]
pub(super) struct Recovery {
    patience: Patience,
    since: Option<Instant>,
}

impl Recovery {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, since: None }
    }

    /// Checks have failed at `now`. Returns how long their repetition may take, which begins after
    /// the pause, or `None` if the time is over.
    pub(super) fn next(&mut self, now: Instant) -> Option<Duration> {
        let Patience { window, delay, limit } = self.patience;
        let passed = now.saturating_duration_since(*self.since.get_or_insert(now));
        (passed + delay <= window).then_some(limit)
    }

    /// How long all repetitions take at most, in seconds.
    pub(super) fn most_s(&self) -> u64 {
        (self.patience.window + self.patience.limit).as_secs()
    }
}

/// Writes `check.json`, the job with the checks of a node that is to run `ranks` ranks. `control`
/// is the address of the control plane.
pub(crate) fn write_job(run: &Run, ranks: usize, control: &str) -> Result<(), LaunchError> {
    let binary = run.record.binaries.get("vljepa-worker").cloned().unwrap_or_default();
    // A run that trains nothing writes no checkpoint.
    let trains = !run.recipe.stages.is_empty();
    let checkpoint_bytes =
        if trains { parameters(&run.recipe.model).checkpoint_bytes() } else { 0 };
    let check = Check {
        binary,
        recipe_hash: run.recipe_hash.clone(),
        ranks,
        checkpoint_bytes,
        control: control.to_owned(),
    };
    let text = serde_json::to_vec_pretty(&Job::Check(check)).map_err(|error| {
        LaunchError::Start { what: "writing check.json".to_owned(), why: error.to_string() }
    })?;
    Ok(atomic_write(&run.directory.check_job(), &text)?)
}

/// Command line of the worker that runs `check.json`.
pub(crate) fn command(run: &Run) -> Vec<String> {
    let (root, job) = (run.directory.path().to_owned(), run.directory.check_job());
    let arguments = WorkerArguments { run: root, job, control: None };
    let mut line = vec![run.programs.worker.display().to_string()];
    line.extend(arguments.list());
    line
}

/// Checks this machine before an attempt of a local run. `show` gets one line per check; after the
/// first attempt, failed checks only. Then checks that may pass later are repeated for a while: the
/// processes of the attempt before were killed a moment ago.
///
/// # Errors
/// If a check fails, with advice for each failed check.
pub(crate) async fn check_here(
    run: &Run,
    token: &str,
    control: &str,
    first: bool,
    show: impl Fn(&str),
) -> Result<(), LaunchError> {
    let asked = command(run);
    let mut recovery = Recovery::new(run.patience);
    let (mut limit, mut is_shown, mut before) = (CHECK_LIMIT, false, None);
    write_job(run, run.recipe.cluster.ranks_per_node, control)?;
    loop {
        let asked_s = clock::now().as_second();
        let answer = ask_with_token(&asked, token, limit).await;
        let answer = answer.and_then(|answer| read(&answer, asked_s)).map_err(NoAnswer::Silent);
        let node = NodeHealth { node: run.record.host.name.clone(), answer };
        let node = match before.take() {
            Some(before) => node.or_reasons(before),
            None => node,
        };
        let shown = node.answer.iter().flatten().filter(|checked| first || !checked.passed);
        shown.filter(|_| !is_shown).for_each(|checked| show(&line(checked)));
        let Verdict { mut failed, .. } = judge(std::slice::from_ref(&node));
        before = Some(node);
        let Some((host, reasons)) = failed.pop() else { return Ok(()) };
        let repeats = !first && may_recover(&reasons);
        let Some(left) = recovery.next(Instant::now()).filter(|_| repeats) else {
            let problems = reasons.iter().map(problem).collect();
            return Err(LaunchError::Unhealthy { host, problems });
        };
        if !is_shown {
            show(&format!("checking again for up to {} s", recovery.most_s()));
            is_shown = true;
        }
        limit = left;
        tokio::time::sleep(run.patience.delay).await;
    }
}

fn problem(reason: &Reason) -> FileProblem {
    FileProblem {
        key: reason.check.map_or("check", CheckName::name).to_owned(),
        what: reason.detail.clone(),
        help: reason.help().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use vljepa_recipes::protocol::RELEASE_LIMIT_S;

    use super::{Patience, Recovery};

    #[test]
    fn repetitions_begin_within_a_minute_of_the_first_failure_and_have_time_for_a_gpu() {
        let (seconds, begin) = (Duration::from_secs, Instant::now());
        let mut recovery = Recovery::new(Patience::default());
        for (after_s, limit_s) in [(90, Some(40)), (95, Some(40)), (145, Some(40)), (146, None)] {
            let limit = recovery.next(begin + seconds(after_s));
            assert_eq!(limit, limit_s.map(seconds), "{after_s}");
        }
        assert!(Patience::default().limit >= seconds(u64::from(RELEASE_LIMIT_S) + 10));
    }
}
