//! Calls of Slurm's commands `squeue`, `sinfo`, `scontrol` and `scancel`. A missing or failing
//! command is a normal result, not an error.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::Duration;

use super::host_list;
use crate::process;
use crate::terminal;

/// How long [`end_steps`] waits for steps to end.
const END_STEPS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long [`cancel_waiting`] waits for jobs to leave the queue.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two queries of the running steps or of cancelled jobs.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Name of the step that guards the supervisor; the batch script starts it.
const GUARD: &str = "vljepa-guard";

/// State of a job in `squeue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobState {
    /// The job waits in the queue, for Slurm's reason.
    Pending(String),
    /// The job has its nodes.
    Running,
    /// The job is leaving its nodes.
    Ending(String),
    /// The job is not in the queue.
    Gone,
}

/// State of a job, or `None` if `squeue` fails.
pub(crate) async fn job_state(job: &str) -> Option<JobState> {
    let arguments = ["--noheader", "--jobs", job, "--format=%T %r"];
    match process::ask("squeue", &arguments).await {
        Ok(text) => Some(parse_state(&text)),
        // Slurm forgets a job some minutes after its end.
        Err(error) if error.contains("Invalid job id") => Some(JobState::Gone),
        Err(_) => None,
    }
}

/// States of jobs by their ids, asked for at once, or `None` if `squeue` fails. A job that is not
/// in the queue is [`JobState::Gone`].
pub(crate) async fn job_states(jobs: &[String]) -> Option<BTreeMap<String, JobState>> {
    if let [job] = jobs {
        return Some(BTreeMap::from([(job.clone(), job_state(job).await?)]));
    }
    let mut states: BTreeMap<_, _> = jobs.iter().map(|job| (job.clone(), JobState::Gone)).collect();
    if jobs.is_empty() {
        return Some(states);
    }
    // Unlike the question about one job, this one does not fail for jobs that Slurm has forgotten.
    let arguments = ["--noheader", "--jobs", &jobs.join(","), "--format=%i %T %r"];
    let text = process::ask("squeue", &arguments).await.ok()?;
    for (job, state) in text.lines().filter_map(|line| line.trim().split_once(' ')) {
        if let Some(known) = states.get_mut(job) {
            *known = parse_state(state);
        }
    }
    Some(states)
}

fn parse_state(text: &str) -> JobState {
    let line = text.trim();
    let (state, reason) = line.split_once(' ').unwrap_or((line, ""));
    match state {
        "" => JobState::Gone,
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "SPECIAL_EXIT" | "REQUEUE_FED" => {
            JobState::Pending(reason.to_owned())
        }
        "RUNNING" | "CONFIGURING" | "SUSPENDED" | "SIGNALING" | "STAGE_OUT" | "RESIZING" => {
            JobState::Running
        }
        "COMPLETING" => JobState::Ending(state.to_owned()),
        _ => JobState::Gone,
    }
}

/// Cancels jobs that wait in the queue, and waits until none of them does. Jobs that have started
/// before go on.
///
/// # Errors
/// If a job still waits after [`CANCEL_TIMEOUT`], or `squeue` fails.
pub(crate) async fn cancel_waiting(jobs: &[String]) -> Result<(), String> {
    let mut arguments = vec!["--state=PENDING"];
    arguments.extend(jobs.iter().map(String::as_str));
    // `scancel` also fails for a job that has just left the queue; the states decide.
    let answer = process::ask("scancel", &arguments).await;
    let deadline = tokio::time::Instant::now() + CANCEL_TIMEOUT;
    loop {
        let states = job_states(jobs).await.ok_or("squeue does not answer")?;
        let waits = |state: &JobState| matches!(state, JobState::Pending(_));
        let Some((job, _)) = states.iter().find(|(_, state)| waits(state)) else { return Ok(()) };
        if tokio::time::Instant::now() >= deadline {
            let why = answer.err().unwrap_or_else(|| "it was not cancelled".to_owned());
            return Err(format!("job {job} still waits in the queue: {why}"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// States of those of the job's `nodes` on which Slurm starts nothing for it, by their names.
/// Empty, with a warning in the log, if `sinfo` and `squeue` fail.
pub(crate) async fn down_nodes(job: &str, nodes: &[String]) -> BTreeMap<String, String> {
    static WARNED: Once = Once::new();
    let list = format!("--nodes={}", nodes.join(","));
    let states = ["--noheader", "--Node", "--all", &list, "--format=%N %T"];
    let of_job = ["--noheader", "--jobs", job, "--format=%N"];
    let (states, of_job) =
        tokio::join!(process::ask("sinfo", &states), process::ask("squeue", &of_job));
    let failed = [("sinfo", states.as_ref().err()), ("squeue", of_job.as_ref().err())];
    for (program, why) in failed {
        let Some(why) = why else { continue };
        WARNED.call_once(|| {
            terminal::note(&format!(
                "warning: {program}: {why}; the run waits for nodes that are down as for busy ones"
            ));
        });
    }
    let mut down = of_job.map(|text| parse_lost(&text, nodes)).unwrap_or_default();
    down.extend(states.map(|text| parse_down(&text)).unwrap_or_default());
    down
}

/// Those of `nodes` that are not in the job's list of nodes `text`. With `--no-kill` a job goes on
/// without a node that was down, and does not get it back.
fn parse_lost(text: &str, nodes: &[String]) -> BTreeMap<String, String> {
    // A job of several components has a line for each, and one without nodes has none.
    let lists: Vec<&str> = text.lines().map(str::trim).filter(|list| !list.is_empty()).collect();
    let left = host_list::expand(&lists.join(",")).unwrap_or_default();
    let lost = nodes.iter().filter(|node| !left.is_empty() && !left.contains(node));
    lost.map(|node| (node.clone(), "no longer part of the job".to_owned())).collect()
}

fn parse_down(text: &str) -> BTreeMap<String, String> {
    let is_down = |line: &str| {
        let (node, state) = line.trim().split_once(' ')?;
        // A state may end with a mark, such as `down*` of a node that does not respond.
        let state = state.trim().trim_end_matches(|mark: char| !mark.is_ascii_alphanumeric());
        let states = ["down", "drained", "fail", "powered_down", "powering_down"];
        states.contains(&state).then(|| (node.to_owned(), state.to_owned()))
    };
    text.lines().filter_map(is_down).collect()
}

/// Lets a requeued job start at once. Otherwise Slurm holds it back for two minutes.
pub(crate) async fn release(job: &str) {
    let id = format!("JobId={job}");
    // If Slurm refuses, the job just starts later.
    drop(process::ask("scontrol", &["update", &id, "StartTime=now"]).await);
}

/// End of the job's time limit according to `squeue`, or `None` without a limit.
pub(crate) async fn end_time(job: &str) -> Option<jiff::Timestamp> {
    let text = process::ask("squeue", &["--noheader", "--jobs", job, "--format=%e"]).await.ok()?;
    let local: jiff::civil::DateTime = text.trim().parse().ok()?;
    local.to_zoned(jiff::tz::TimeZone::system()).ok().map(|zoned| zoned.timestamp())
}

/// Ends the job's steps with the given name, or all steps except the batch script and the guard,
/// and waits up to [`END_STEPS_TIMEOUT`] until they are gone. Returns whether none is left. A step
/// on a lost node remains until Slurm notices the loss.
pub(crate) async fn end_steps(job: &str, name: Option<&str>) -> bool {
    tokio::time::timeout(END_STEPS_TIMEOUT, end_all_steps(job, name)).await.unwrap_or(false)
}

async fn end_all_steps(job: &str, name: Option<&str>) -> bool {
    loop {
        let arguments = ["--steps", "--noheader", "--jobs", job, "--format=%i %j"];
        let Ok(text) = process::ask("squeue", &arguments).await else { return false };
        let steps = steps(&text, name);
        if steps.is_empty() {
            return true;
        }
        // `--ctld` goes through the controller, which does not wait for the daemons of lost nodes.
        // For a step that has just ended `scancel` fails; the next query no longer lists it.
        let mut arguments = vec!["--ctld", "--signal=KILL"];
        arguments.extend(steps.iter().map(String::as_str));
        drop(process::ask("scancel", &arguments).await);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Ids of the steps to end, from `squeue`'s lines of id and name.
fn steps(text: &str, name: Option<&str>) -> Vec<String> {
    let pairs = text.lines().filter_map(|line| line.trim().split_once(' '));
    let wanted = pairs.filter(|(id, step)| {
        let own = id.split_once('.').is_some_and(|(_, number)| number.parse::<u32>().is_ok());
        own && step.trim() != GUARD && name.is_none_or(|name| name == step.trim())
    });
    wanted.map(|(id, _)| id.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::{JobState, parse_down, parse_lost, parse_state, steps};

    #[test]
    fn states_are_read_as_squeue_writes_them() {
        let pending = |reason: &str| JobState::Pending(reason.to_owned());
        for (text, state) in [
            ("PENDING Resources\n", pending("Resources")),
            ("PENDING BeginTime\n", pending("BeginTime")),
            ("RUNNING None\n", JobState::Running),
            ("COMPLETING None\n", JobState::Ending("COMPLETING".to_owned())),
            ("CANCELLED None\n", JobState::Gone),
            ("", JobState::Gone),
        ] {
            assert_eq!(parse_state(text), state, "{text}");
        }
    }

    #[test]
    fn nodes_on_which_slurm_runs_nothing_are_known_by_their_state() {
        let text = "n0 allocated\nn1 down*\nn2 mixed*\nn3 draining\nn4 drained\nn1 down*\nn5\n";
        let down: Vec<_> = parse_down(text).into_iter().collect();
        let expected = [("n1", "down"), ("n4", "drained")];
        assert_eq!(down, expected.map(|(node, state)| (node.to_owned(), state.to_owned())));
        assert!(parse_down("").is_empty());
    }

    #[test]
    fn a_node_that_the_job_no_longer_has_is_known_although_it_is_idle() {
        let nodes = ["n0", "n1", "n2"].map(str::to_owned);
        let lost = |text| parse_lost(text, &nodes).into_keys().collect::<Vec<_>>();
        assert_eq!(lost("n[0,2]\n"), ["n1"]);
        assert_eq!(lost("n0\nn1\n"), ["n2"]);
        assert!(lost("n[0-2]\n").is_empty());
        for unknown in ["", "\n", "n[0"] {
            assert!(lost(unknown).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn numbered_steps_but_the_guard_are_ended() {
        let text = "3.0 vljepa-1\n3.1 other\n3.2 vljepa-guard\n3.batch batch\n3.extern extern\n";
        assert_eq!(steps(text, None), ["3.0", "3.1"]);
        assert_eq!(steps(text, Some("vljepa-1")), ["3.0"]);
        assert!(steps("", None).is_empty());
    }
}
