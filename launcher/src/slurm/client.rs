//! Slurm's own commands: what is asked of them and what they answer. A command that is missing or fails is an answer too.

use std::time::Duration;

use crate::local;

/// How long steps may take to end.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between looks at them.
const LOOK: Duration = Duration::from_millis(200);
/// Name of the step that watches over the supervisor.
const GUARD: &str = "vljepa-guard";

/// A job as `squeue` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobState {
    /// In the queue, with Slurm's reason.
    Pending(String),
    /// Has its nodes.
    Running,
    /// On its way out of the nodes.
    Ending(String),
    /// Not in the queue any more.
    Gone,
}

/// Where a job stands; none when `squeue` cannot be asked.
pub(crate) async fn job_state(job: &str) -> Option<JobState> {
    let arguments = ["--noheader", "--jobs", job, "--format=%T %r"];
    match local::ask("squeue", &arguments).await {
        Ok(text) => Some(parse_state(&text)),
        // What ended some minutes ago is forgotten.
        Err(error) if error.contains("Invalid job id") => Some(JobState::Gone),
        Err(_) => None,
    }
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

/// Lets a requeued job start at once: Slurm holds it back for two minutes.
pub(crate) async fn release(job: &str) {
    let id = format!("JobId={job}");
    // Where it is refused the job starts later.
    drop(local::ask("scontrol", &["update", &id, "StartTime=now"]).await);
}

/// When the job's time is over, by `squeue`; none where there is no limit.
pub(crate) async fn end_time(job: &str) -> Option<jiff::Timestamp> {
    let text = local::ask("squeue", &["--noheader", "--jobs", job, "--format=%e"]).await.ok()?;
    let local: jiff::civil::DateTime = text.trim().parse().ok()?;
    local.to_zoned(jiff::tz::TimeZone::system()).ok().map(|zoned| zoned.timestamp())
}

/// Ends the job's steps of that name, or all of its steps but the batch script and its guard, and waits until they are gone. Those on a lost
/// node are not before Slurm has noticed the loss, and `scancel` waits for its daemon: they are not waited for. True when none is left.
pub(crate) async fn end_steps(job: &str, name: Option<&str>) -> bool {
    tokio::time::timeout(PATIENCE, end_all_steps(job, name)).await.unwrap_or(false)
}

async fn end_all_steps(job: &str, name: Option<&str>) -> bool {
    loop {
        let arguments = ["--steps", "--noheader", "--jobs", job, "--format=%i %j"];
        let Ok(text) = local::ask("squeue", &arguments).await else { return false };
        let steps = steps(&text, name);
        if steps.is_empty() {
            return true;
        }
        // By way of the controller, which does not wait for the daemons of lost nodes. A step that has just ended is refused; the next look
        // does not find it.
        let mut arguments = vec!["--ctld", "--signal=KILL"];
        arguments.extend(steps.iter().map(String::as_str));
        drop(local::ask("scancel", &arguments).await);
        tokio::time::sleep(LOOK).await;
    }
}

/// Steps in `squeue`'s lines of id and name.
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
    use super::{JobState, parse_state, steps};

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
    fn numbered_steps_but_the_guard_are_ended() {
        let text = "3.0 vljepa-1\n3.1 other\n3.2 vljepa-guard\n3.batch batch\n3.extern extern\n";
        assert_eq!(steps(text, None), ["3.0", "3.1"]);
        assert_eq!(steps(text, Some("vljepa-1")), ["3.0"]);
        assert!(steps("", None).is_empty());
    }
}
