//! Health checks of nodes before workers start: the check job that every node runs.

use std::time::Duration;

use vljepa_recipes::clock;
use vljepa_recipes::cost::parameters;
use vljepa_recipes::protocol::{Check, CheckName, Job};
use vljepa_recipes::run_directory::atomic_write;

use super::Run;
use crate::error::{FileProblem, LaunchError};
use crate::platform::health::{NodeHealth, Reason, judge, line, parse};
use crate::process::ask_with_token;
use crate::programs::WorkerArguments;

/// How long this machine's checks may take before it counts as failed; normally they take a second
/// or two.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

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
        time_s: clock::now().as_second(),
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
/// first attempt, failed checks only.
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
    write_job(run, run.recipe.cluster.ranks_per_node, control)?;
    let asked = command(run);
    let answer =
        ask_with_token(&asked, token, CHECK_TIMEOUT).await.and_then(|answer| parse(&answer));
    let node = NodeHealth { node: run.record.host.name.clone(), answer };
    for checked in node.answer.iter().flatten().filter(|checked| first || !checked.passed) {
        show(&line(checked));
    }
    let Some((host, reasons)) = judge(&[node]).failed.pop() else { return Ok(()) };
    let problem = |reason: &Reason| FileProblem {
        key: reason.check.map_or("check", CheckName::name).to_owned(),
        what: reason.detail.clone(),
        help: reason.help().to_owned(),
    };
    Err(LaunchError::Unhealthy { host, problems: reasons.iter().map(problem).collect() })
}
