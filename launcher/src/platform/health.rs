//! The health of nodes: what their checks reported, and which of them can take part in an attempt.

use std::fmt;

use vljepa_recipes::clock;
use vljepa_recipes::protocol::{CLOCK_LIMIT_S, CheckName, Checked};

/// Results of one node's health checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeHealth {
    /// Host name.
    pub node: String,
    /// Results that the worker printed, or why there are none.
    pub answer: Result<Vec<Checked>, NoAnswer>,
}

impl NodeHealth {
    /// This result, or the one `before` if that names failed checks and this one is no answer: the
    /// failed checks are the reason that helps the user.
    pub(crate) fn or_reasons(self, before: Self) -> Self {
        match (&self.answer, &before.answer) {
            (Err(NoAnswer::Silent(_)), Ok(_)) => before,
            _ => self,
        }
    }
}

/// Why there are no results of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Slurm runs nothing on the node, which is in the given state.
    Down(String),
    /// The checks did not end in time, could not be started or printed nonsense.
    Silent(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(state) => write!(f, "Slurm says that it is {state}"),
            Self::Silent(why) => f.write_str(why),
        }
    }
}

/// Nodes that can take part in an attempt, and nodes that cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Nodes that passed every check.
    pub healthy: Vec<String>,
    /// All other nodes, each with its reasons.
    pub failed: Vec<(String, Vec<Reason>)>,
}

/// Why a node cannot take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// The failed check, or `None` if the node did not answer.
    pub check: Option<CheckName>,
    /// Description of the failure.
    pub detail: String,
    /// Whether the node may pass a minute later, although nobody repairs it.
    pub may_pass: bool,
}

impl Reason {
    /// Advice for the user.
    pub(crate) fn help(&self) -> &'static str {
        match self.check {
            None => "run the checks by hand: vljepa-worker run --run RUN --job RUN/check.json",
            Some(check) => advice(check),
        }
    }
}

/// Whether a failed check may pass a minute later. Processes that were killed hold their GPUs and
/// their shared memory for some seconds, and file systems and networks have pauses.
fn may_pass(check: CheckName) -> bool {
    match check {
        CheckName::Device
        | CheckName::RunDirectory
        | CheckName::SharedMemory
        | CheckName::Shards
        | CheckName::Control => true,
        CheckName::Binary
        | CheckName::Recipe
        | CheckName::Clock
        | CheckName::Cpus
        | CheckName::Room => false,
    }
}

/// Whether a node with these reasons may take part a minute later.
pub(crate) fn may_recover(reasons: &[Reason]) -> bool {
    reasons.iter().all(|reason| reason.may_pass)
}

/// What to do about a failed check.
pub(crate) fn advice(check: CheckName) -> &'static str {
    match check {
        CheckName::Binary => {
            "install the same build on every node, or on a file system that all nodes share"
        }
        CheckName::Recipe => "the run directory must be on a file system that all nodes share",
        CheckName::Clock => "synchronise the clock: timedatectl set-ntp true",
        CheckName::Device => {
            "run nvidia-smi on the node; end the process that uses the GPU, or leave the node out"
        }
        CheckName::Cpus => {
            "lower cluster.slurm.cpus_per_rank, or let Slurm bind tasks to the CPUs that they ask for"
        }
        CheckName::RunDirectory => {
            "choose a folder that every node can write to: --set runs=FOLDER"
        }
        CheckName::Room => {
            "free space, choose another disk (--set runs=FOLDER), or keep fewer checkpoints (checkpoints.keep, keep_best, keep_at)"
        }
        CheckName::SharedMemory => {
            "make /dev/shm larger: mount -o remount,size=1G /dev/shm (docker: --shm-size=1g)"
        }
        CheckName::Shards => "mount the data on every node, or correct data.sources",
        CheckName::Control => {
            "open the port between the nodes, or set cluster.control.host and cluster.control.port"
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.check {
            Some(check) => write!(f, "{}: {}", check.name(), self.detail),
            None => write!(f, "{}", self.detail),
        }
    }
}

/// Sorts nodes into healthy and failed ones. A check without a result counts as failed.
pub(crate) fn judge(nodes: &[NodeHealth]) -> Verdict {
    let mut verdict = Verdict::default();
    for NodeHealth { node, answer } in nodes {
        let reasons = match answer {
            Ok(lines) => {
                CheckName::ALL.into_iter().filter_map(|check| reason(check, lines)).collect()
            }
            Err(why) => {
                let may_pass = matches!(why, NoAnswer::Silent(_));
                vec![Reason { check: None, detail: why.to_string(), may_pass }]
            }
        };
        if reasons.is_empty() {
            verdict.healthy.push(node.clone());
        } else {
            verdict.failed.push((node.clone(), reasons));
        }
    }
    verdict
}

fn reason(check: CheckName, lines: &[Checked]) -> Option<Reason> {
    let of_check = || lines.iter().filter(|line| line.check == check);
    let detail = match of_check().find(|line| !line.passed) {
        Some(line) => line.detail.clone(),
        None if of_check().next().is_none() => "no result was reported".to_owned(),
        None => return None,
    };
    Some(Reason { check: Some(check), detail, may_pass: may_pass(check) })
}

/// Reads the output of a worker that was asked at `asked_s`, by this machine's clock, and has just
/// answered. Compares its clock with this one.
pub(crate) fn read(output: &[u8], asked_s: i64) -> Result<Vec<Checked>, String> {
    let lines = parse(output)?;
    Ok(compare_clocks(lines, asked_s, clock::now().as_second()))
}

/// Fails the check of the clock if the node's is certainly wrong: outside of the time between
/// question and answer by more than [`CLOCK_LIMIT_S`].
fn compare_clocks(mut lines: Vec<Checked>, asked_s: i64, answered_s: i64) -> Vec<Checked> {
    for line in lines.iter_mut().filter(|line| line.check == CheckName::Clock) {
        let behind_s = asked_s.saturating_sub(line.time_s);
        let ahead_s = line.time_s.saturating_sub(answered_s);
        let wrong = [(behind_s, "behind"), (ahead_s, "ahead of")];
        let wrong = wrong.into_iter().find(|(seconds, _)| *seconds > CLOCK_LIMIT_S);
        line.detail = match wrong {
            Some((seconds, how)) => format!("at least {seconds} s {how} the supervisor's"),
            None => {
                let seconds = line.time_s.abs_diff(asked_s).max(line.time_s.abs_diff(answered_s));
                format!("at most {seconds} s from the supervisor's")
            }
        };
        line.passed &= wrong.is_none();
    }
    lines
}

/// Parses the output of a worker that ran the job `check`: one JSON object per line.
fn parse(output: &[u8]) -> Result<Vec<Checked>, String> {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            serde_json::from_str(line).map_err(|error| format!("it printed `{line}`: {error}"))
        })
        .collect()
}

/// One line for the user: `pass` or `fail`, the name of the check and its detail.
pub(crate) fn line(checked: &Checked) -> String {
    let Checked { check, passed, detail, .. } = checked;
    format!("{} {:<14} {detail}", if *passed { "pass" } else { "fail" }, check.name())
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{CheckName, Checked};

    use super::{
        NoAnswer, NodeHealth, Verdict, compare_clocks, judge, line, may_recover, parse, read,
    };

    fn checked(check: CheckName, passed: bool) -> Checked {
        let detail = if passed { "fine" } else { "12 MiB free" };
        Checked { host: "n".to_owned(), check, passed, detail: detail.to_owned(), time_s: 0 }
    }

    fn node(name: &str, answer: Result<Vec<Checked>, NoAnswer>) -> NodeHealth {
        NodeHealth { node: name.to_owned(), answer }
    }

    #[test]
    fn a_node_takes_part_when_every_check_passed() {
        let all = || CheckName::ALL.map(|check| checked(check, true)).to_vec();
        let mut full = all();
        full[6] = checked(CheckName::Room, false);
        let mut short = all();
        short.pop();
        let nodes = [
            node("n0", Ok(all())),
            node("n1", Ok(full)),
            node("n2", Err(NoAnswer::Silent("it did not answer within 60 s".to_owned()))),
            node("n3", Ok(short)),
            node("n4", Ok(all())),
        ];
        let Verdict { healthy, failed } = judge(&nodes);
        assert_eq!(healthy, ["n0", "n4"]);
        let failed: Vec<(String, Vec<String>)> = failed
            .into_iter()
            .map(|(node, reasons)| (node, reasons.iter().map(ToString::to_string).collect()))
            .collect();
        let expected = [
            ("n1", "room: 12 MiB free"),
            ("n2", "it did not answer within 60 s"),
            ("n3", "control: no result was reported"),
        ];
        let expected = expected.map(|(node, why)| (node.to_owned(), vec![why.to_owned()]));
        assert_eq!(failed, expected);
    }

    #[test]
    fn a_node_may_recover_unless_it_is_down_or_lacks_what_nobody_gives_it() {
        let fails = |failed: &[CheckName]| {
            Ok(CheckName::ALL.map(|check| checked(check, !failed.contains(&check))).to_vec())
        };
        for (answer, expected) in [
            (fails(&[CheckName::Device]), true),
            (fails(&[CheckName::Device, CheckName::Control]), true),
            (fails(&[CheckName::Device, CheckName::Binary]), false),
            (fails(&[CheckName::Room]), false),
            (Err(NoAnswer::Silent("connection refused".to_owned())), true),
            (Err(NoAnswer::Down("down".to_owned())), false),
        ] {
            let (_, reasons) = judge(&[node("n", answer)]).failed.pop().unwrap();
            assert_eq!(may_recover(&reasons), expected, "{reasons:?}");
        }
    }

    #[test]
    fn a_clock_is_wrong_if_it_is_a_minute_outside_of_the_time_between_question_and_answer() {
        // The question was sent at 1000, and the answer came at 1080.
        for (time_s, expected) in [
            (939, "fail clock          at least 61 s behind the supervisor's"),
            (940, "pass clock          at most 140 s from the supervisor's"),
            (1030, "pass clock          at most 50 s from the supervisor's"),
            (1140, "pass clock          at most 140 s from the supervisor's"),
            (1141, "fail clock          at least 61 s ahead of the supervisor's"),
        ] {
            let asked = vec![Checked { time_s, ..checked(CheckName::Clock, true) }];
            assert_eq!(line(&compare_clocks(asked, 1000, 1080)[0]), expected, "{time_s}");
        }
        let other = vec![checked(CheckName::Device, true)];
        assert!(compare_clocks(other, 1000, 1080)[0].passed, "it has no clock to compare");
        let now = vljepa_recipes::clock::now().as_second();
        let answer = Checked { time_s: now, ..checked(CheckName::Clock, true) };
        let answer = serde_json::to_string(&answer).unwrap();
        assert!(read(answer.as_bytes(), now).unwrap()[0].passed);
        assert!(!read(answer.as_bytes(), now + 3600).unwrap()[0].passed);
    }

    #[test]
    fn failed_checks_are_not_replaced_by_a_silent_repetition() {
        let silent = || node("n", Err(NoAnswer::Silent("no answer".to_owned())));
        let down = || node("n", Err(NoAnswer::Down("down".to_owned())));
        let failed = || node("n", Ok(vec![checked(CheckName::Device, false)]));
        let passed = || node("n", Ok(vec![checked(CheckName::Device, true)]));
        assert_eq!(silent().or_reasons(failed()), failed());
        assert_eq!(silent().or_reasons(down()), silent());
        assert_eq!(down().or_reasons(failed()), down());
        assert_eq!(passed().or_reasons(failed()), passed());
    }

    #[test]
    fn lines_of_a_worker_are_read_and_shown() {
        let text = [true, false].map(|passed| {
            serde_json::to_string(&checked(CheckName::SharedMemory, passed)).unwrap()
        });
        let read = parse(text.join("\n").as_bytes()).unwrap();
        assert_eq!(line(&read[0]), "pass shared memory  fine");
        assert_eq!(line(&read[1]), "fail shared memory  12 MiB free");
        assert!(parse(b"Segmentation fault").unwrap_err().contains("Segmentation fault"));
    }
}
