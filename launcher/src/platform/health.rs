//! The health of nodes: what their checks reported, and which of them can take part in an attempt.

use vljepa_recipes::protocol::{CheckName, Checked};

/// Results of one node's health checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeHealth {
    /// Host name.
    pub node: String,
    /// Results that the worker printed, or why there are none.
    pub answer: Result<Vec<Checked>, String>,
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
            Err(why) => vec![Reason { check: None, detail: why.clone() }],
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
    Some(Reason { check: Some(check), detail })
}

/// Parses the output of a worker that ran the job `check`: one JSON object per line.
pub(crate) fn parse(output: &[u8]) -> Result<Vec<Checked>, String> {
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

    use super::{NodeHealth, Verdict, judge, line, parse};

    fn checked(check: CheckName, passed: bool) -> Checked {
        let detail = if passed { "fine" } else { "12 MiB free" };
        Checked { host: "n".to_owned(), check, passed, detail: detail.to_owned() }
    }

    fn node(name: &str, answer: Result<Vec<Checked>, String>) -> NodeHealth {
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
            node("n2", Err("it did not answer within 60 s".to_owned())),
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
