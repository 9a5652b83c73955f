//! `reproduction.json`: the losses of a run beside those of the run that it reproduces.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::Metrics;
use vljepa_recipes::schema::{Device, Recipe};

use super::provenance::RunRecord;
use crate::terminal;

/// Comparison of a run with the run that it reproduces; content of `reproduction.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// Directory of the original run.
    pub of: PathBuf,
    /// Number of steps present in both runs' metrics.
    pub steps: u64,
    /// Number of these steps whose loss and gradient norm are the same, bit for bit.
    pub equal: u64,
    /// The first of these steps that differs.
    pub first_difference: Option<Difference>,
    /// Reasons why equal bits cannot be expected; empty if they can.
    pub not_expected: Vec<String>,
}

/// A step that two runs computed differently.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub step: u64,
    /// Loss of the step in the original run, or `None` if it is not finite.
    pub recorded: Option<f64>,
    /// Loss of the step in the new run, or `None` if it is not finite.
    pub here: Option<f64>,
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (equal, steps) = (terminal::thousands(self.equal), terminal::thousands(self.steps));
        write!(
            f,
            "{equal} of {steps} logged steps have the same loss and gradient norm, bit for bit"
        )?;
        let value =
            |loss: Option<f64>| loss.map_or_else(|| "not finite".to_owned(), |l| l.to_string());
        if let Some(Difference { step, recorded, here }) = self.first_difference {
            let (recorded, here) = (value(recorded), value(here));
            write!(f, "; step {step} is the first that differs: ")?;
            write!(f, "loss {recorded} in the original, {here} here")?;
        }
        if !self.not_expected.is_empty() {
            write!(f, " (the same bits cannot be expected: {})", self.not_expected.join(", "))?;
        }
        Ok(())
    }
}

/// Compares the steps that both runs logged, one by one.
pub(crate) fn compare(then: &[Metrics], now: &[Metrics]) -> Comparison {
    let mut comparison = Comparison {
        of: PathBuf::new(),
        steps: 0,
        equal: 0,
        first_difference: None,
        not_expected: Vec::new(),
    };
    for here in now {
        let Ok(index) = then.binary_search_by_key(&here.step, |line| line.step) else { continue };
        let bits = |line: &Metrics| [line.loss.to_bits(), line.gradient_norm.to_bits()];
        comparison.steps += 1;
        if bits(&then[index]) == bits(here) {
            comparison.equal += 1;
        } else if comparison.first_difference.is_none() {
            let finite = |loss: f64| Some(loss).filter(|loss| loss.is_finite());
            comparison.first_difference = Some(Difference {
                step: here.step,
                recorded: finite(then[index].loss),
                here: finite(here.loss),
            });
        }
    }
    comparison
}

/// Reasons why two runs cannot be expected to compute the same bits.
pub(crate) fn not_expected(then: &RunRecord, now: &RunRecord, recipe: &Recipe) -> Vec<String> {
    let attempts = || then.attempts.iter().chain(&now.attempts);
    let mut reasons = Vec::new();
    let mut note = |differs: bool, reason: &str| reasons.extend(differs.then(|| reason.to_owned()));
    let first = attempts().next();
    note(
        attempts().any(|a| first.is_some_and(|f| f.world_size != a.world_size)),
        "another number of ranks",
    );
    note(attempts().any(|a| first.is_some_and(|f| f.worker != a.worker)), "another worker program");
    note(then.recipe_hash != now.recipe_hash, "another recipe");
    let lists = |record: &RunRecord| record.shards.clone();
    let hashes = |record: &RunRecord| -> Vec<String> {
        record.files.values().map(|file| file.hash.clone()).collect()
    };
    note(lists(then) != lists(now) || hashes(then) != hashes(now), "other data or weights");
    note(then.host.cpu != now.host.cpu, "another processor");
    let gpu = recipe.device == Device::Cuda;
    note(gpu && !recipe.deterministic, "`deterministic` is off");
    let of = |name: &str| [then, now].map(|record| record.versions.get(name).cloned());
    let differ = |name: &str| of(name)[0] != of(name)[1];
    note(gpu && ["driver", "gpus", "nccl"].into_iter().any(differ), "another GPU, driver or NCCL");
    reasons
}

#[cfg(test)]
mod tests {
    use super::{Difference, compare};
    use crate::record::history::tests::line;

    #[test]
    fn losses_are_compared_bit_for_bit_on_the_steps_that_both_have() {
        let then = [line(10, 2.0), line(20, 1.0), line(30, 0.5)];
        let same = compare(&then, &then);
        assert_eq!((same.steps, same.equal, same.first_difference), (3, 3, None));
        let now = [line(20, 1.0), line(30, 0.5_f64.next_up()), line(40, 0.1)];
        let other = compare(&then, &now);
        assert_eq!((other.steps, other.equal), (2, 1));
        let difference =
            Difference { step: 30, recorded: Some(0.5), here: Some(0.5_f64.next_up()) };
        assert_eq!(other.first_difference, Some(difference));
        let named = "step 30 is the first that differs: loss 0.5 in the original";
        assert!(other.to_string().contains(named), "{other}");
        let broken = [line(10, f64::NAN)];
        assert_eq!(compare(&broken, &broken).equal, 1, "not finite twice is the same");
        assert_eq!(compare(&then, &[]).steps, 0);
    }
}
