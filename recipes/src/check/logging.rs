//! Rules for the keys under `logging`.

use std::net::SocketAddr;

use super::Problems;
use crate::schema::Recipe;

/// Largest number of traced steps. A step of the paper's model records some thousands of kernels.
const MAX_TRACED_STEPS: u64 = 100;

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    let logging = &recipe.logging;
    if logging.every_steps == 0 {
        found.add("logging.every_steps", "is 0", "give it at least 1; the default is 10");
    }
    let address = &logging.prometheus;
    if !address.is_empty() && address.parse::<SocketAddr>().is_err() {
        let what = format!("`{address}` is not an address and a port");
        let help = "write `0.0.0.0:9401` for every network of the machine, `127.0.0.1:9401` for this machine only, or leave it empty";
        found.add("logging.prometheus", what, help);
    }
    let limit = logging.collapse.effective_rank_below;
    if !(limit.is_finite() && limit >= 0.0) {
        let what = format!("{limit} is no effective rank");
        let help = "an effective rank is at least 1; 0 switches the rule off; the default is 1.2";
        found.add("logging.collapse.effective_rank_below", what, help);
    }
    if logging.collapse.lines == 0 {
        found.add("logging.collapse.lines", "is 0", "give it at least 1; the default is 10");
    }
    let Some(trace) = &logging.trace else { return };
    if trace.steps == 0 || trace.steps > MAX_TRACED_STEPS {
        let what = format!("is {}", trace.steps);
        found.add("logging.trace.steps", what, format!("use 1 to {MAX_TRACED_STEPS}"));
    }
    let total = recipe.total_steps();
    if trace.first_step >= total && total > 0 {
        let what = format!("{} is after the run's last step, {}", trace.first_step, total - 1);
        found.add("logging.trace.first_step", what, "name an earlier step, or remove `trace`");
    }
    if trace.ranks.is_empty() {
        found.add("logging.trace.ranks", "is empty", "name at least one rank, such as `[0]`");
    }
    let world_size = recipe.cluster.world_size();
    for (index, rank) in trace.ranks.iter().enumerate().filter(|(_, rank)| **rank >= world_size) {
        let what =
            format!("there is no rank {rank}: the run has {world_size} ranks, counted from 0");
        found.add(format!("logging.trace.ranks.{index}"), what, "name another rank");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::load;

    fn refusal(set: &str) -> String {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
        match load(&recipe, &[set.to_owned()]) {
            Ok(_) => String::new(),
            Err(error) => format!("{:?}", miette::Report::new(error)),
        }
    }

    #[test]
    fn addresses_and_traces_that_cannot_be_are_refused_with_their_key() {
        for (set, text) in [
            ("logging.prometheus=:9401", "is not an address and a port"),
            ("logging.prometheus=localhost", "is not an address and a port"),
            ("logging.collapse={effective_rank_below: -1}", "is no effective rank"),
            ("logging.collapse={lines: 0}", "at least 1"),
            ("logging.collapse={action: ignore}", "action"),
            ("logging.trace={first_step: 0, steps: 0}", "use 1 to 100"),
            ("logging.trace={first_step: 99999999}", "after the run's last step"),
            ("logging.trace={first_step: 0, ranks: []}", "is empty"),
            ("logging.trace={first_step: 0, ranks: [0, 2]}", "there is no rank 2"),
            ("logging.trace={steps: 3}", "first_step"),
        ] {
            let refused = refusal(set);
            assert!(refused.contains(text), "{set}: {refused}");
        }
        for fine in [
            "logging.prometheus=0.0.0.0:9401",
            "logging.prometheus='[::1]:9401'",
            "logging.collapse={effective_rank_below: 2, lines: 3, action: stop}",
            "logging.trace={first_step: 3, steps: 2, ranks: [0, 1]}",
        ] {
            assert_eq!(refusal(fine), "", "{fine}");
        }
    }
}
