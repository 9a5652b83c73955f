//! Rules for the keys under `cluster`.

use super::Problems;
use crate::schema::{ControlPlane, Recipe, Scheduler, Slurm};

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    let cluster = &recipe.cluster;
    let counts = [("nodes", cluster.nodes), ("ranks_per_node", cluster.ranks_per_node)];
    found.positive("cluster", &counts);
    if cluster.nodes.checked_mul(cluster.ranks_per_node).is_none_or(|ranks| ranks > 1 << 20) {
        let what = format!("{} nodes × {} ranks", cluster.nodes, cluster.ranks_per_node);
        found.add("cluster.nodes", what, "use at most 1,048,576 ranks in total");
    }
    if cluster.start_timeout_s == 0 {
        found.add("cluster.start_timeout_s", "is 0", "give it at least 1; the default is 600");
    }
    check_control(&cluster.control, found);
    if !(5..=3600).contains(&cluster.restart.hang_floor_s) {
        let what = format!("is {}", cluster.restart.hang_floor_s);
        let help =
            "use 5 to 3600, since a machine under load pauses for seconds; the default is 20";
        found.add("cluster.restart.hang_floor_s", what, help);
    }
    if cluster.collective_timeout_s == 0 {
        found.add("cluster.collective_timeout_s", "is 0", "give it at least 1; the default is 600");
    }
    if cluster.bucket_mib == 0 || cluster.bucket_mib > 1 << 20 {
        let what = format!("is {} MiB", cluster.bucket_mib);
        found.add("cluster.bucket_mib", what, "give it at least 1; the default is 64");
    }
    match cluster.scheduler {
        Scheduler::Local => {
            if cluster.nodes > 1 {
                let what = format!("this machine is one node, not {}", cluster.nodes);
                let help = "write `scheduler: slurm`, or `nodes: 1` with more `ranks_per_node`";
                found.add("cluster.nodes", what, help);
            }
            if cluster.restart.spare_nodes > 0 {
                let help = "write `scheduler: slurm`, or remove this key";
                found.add("cluster.restart.spare_nodes", "this machine has no other nodes", help);
            }
        }
        Scheduler::Slurm => check_slurm(&cluster.slurm, found),
    }
}

fn check_control(control: &ControlPlane, found: &mut Problems) {
    let host = &control.host;
    let forbidden = |c: char| c.is_whitespace() || "/[]@".contains(c);
    let with_port = host.rsplit_once(':').is_some_and(|(name, _)| !name.contains(':'));
    if host.contains(forbidden) || with_port {
        let what = format!("`{host}` is not a host name or IP address");
        let help = "write the host alone; the port is a key of its own, cluster.control.port";
        found.add("cluster.control.host", what, help);
    }
    if !(30..=3600).contains(&control.silence_s) {
        let what = format!("is {}", control.silence_s);
        let help = "use 30 to 3600, since the supervisor sends a sign of life every 15 s; the default is 120";
        found.add("cluster.control.silence_s", what, help);
    }
}

fn check_slurm(slurm: &Slurm, found: &mut Problems) {
    for (key, value) in
        [("partition", &slurm.partition), ("account", &slurm.account), ("qos", &slurm.qos)]
    {
        if value.contains(char::is_whitespace) {
            found.add(
                format!("cluster.slurm.{key}"),
                format!("`{value}` has spaces"),
                "remove them",
            );
        }
    }
    match time_limit_s(&slurm.time_limit) {
        None if slurm.time_limit.is_empty() => {}
        None => {
            let what = format!("`{}` is not a Slurm time limit", slurm.time_limit);
            let help = "write days-hours:minutes:seconds (`2-00:00:00`) or hours:minutes:seconds (`48:00:00`)";
            found.add("cluster.slurm.time_limit", what, help);
        }
        Some(limit_s) if limit_s <= slurm.signal_ahead_s => {
            let what = format!("is {} s, but the time limit is {limit_s} s", slurm.signal_ahead_s);
            let help = "the run would save and stop at once: increase time_limit or decrease signal_ahead_s";
            found.add("cluster.slurm.signal_ahead_s", what, help);
        }
        Some(_) => {}
    }
    for (index, line) in slurm.extra.iter().enumerate() {
        if !line.starts_with('-') || line.contains('\n') {
            let what = format!("`{line}` is not an sbatch option");
            found.add(format!("cluster.slurm.extra.{index}"), what, "write `--option=value`");
        }
    }
}

/// Parses the argument of sbatch's `--time` to seconds: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or
/// `D-H:M:S`. Returns `None` for any other text.
fn time_limit_s(text: &str) -> Option<u64> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse::<u64>().ok() } else { None }
    };
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts = rest.split(':').map(number).collect::<Option<Vec<u64>>>()?;
    let (h, m, s) = match (days, parts.as_slice()) {
        (None, [m]) => (0, *m, 0),
        (None, [m, s]) => (0, *m, *s),
        (_, [h, m, s]) => (*h, *m, *s),
        (Some(_), [h]) => (*h, 0, 0),
        (Some(_), [h, m]) => (*h, *m, 0),
        _ => return None,
    };
    let day_s = days.unwrap_or(0).checked_mul(86_400)?;
    let rest_s = h.checked_mul(3600)?.checked_add(m.checked_mul(60)?)?.checked_add(s)?;
    day_s.checked_add(rest_s)
}

#[cfg(test)]
mod tests {
    use super::time_limit_s;

    #[test]
    fn slurm_times_are_read_as_sbatch_reads_them() {
        for (text, seconds) in [
            ("90", Some(5400)),
            ("90:30", Some(5430)),
            ("48:00:00", Some(172_800)),
            ("2-00", Some(172_800)),
            ("2-00:30", Some(174_600)),
            ("2-00:00:01", Some(172_801)),
            ("2d", None),
            ("2 days", None),
            ("1:2:3:4", None),
            ("-1", None),
            ("", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time_limit_s(text), seconds, "{text}");
        }
    }
}
