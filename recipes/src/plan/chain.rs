//! Hours of a programme: of all runs one after another, and of the longest chain of runs that need
//! each other.

use serde::Serialize;

use super::Estimate;

/// The chain of runs that takes most time: each needs the one before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Chain {
    /// Indices of its runs, from the first to the last.
    pub runs: Vec<usize>,
    /// Hours of its runs.
    pub hours: Estimate,
}

/// Sum of the hours of all runs. The same rates are wrong for all runs alike.
#[must_use]
pub fn one_after_another(hours: &[Estimate]) -> Estimate {
    hours.iter().fold(Estimate::default(), |sum, hours| sum.plus_alike(*hours))
}

/// Chain of runs that takes most time, if every run starts as soon as those that it needs have
/// ended. `needs[i]` lists what the run `i` needs, all of it before `i`.
#[must_use]
pub fn longest_chain(hours: &[Estimate], needs: &[Vec<usize>]) -> Chain {
    let mut chains: Vec<Chain> = Vec::with_capacity(hours.len());
    // Of chains that are equally long, the first counts.
    let longest =
        |chains: &[Chain], of: &mut dyn Iterator<Item = usize>| -> Chain {
            let chains = of.filter_map(|index| chains.get(index));
            let longest = chains.reduce(|longest, chain| {
                if chain.hours.value > longest.hours.value { chain } else { longest }
            });
            longest.cloned().unwrap_or_default()
        };
    for (index, (hours, needs)) in hours.iter().zip(needs).enumerate() {
        let mut chain = longest(&chains, &mut needs.iter().copied());
        chain.runs.push(index);
        chain.hours = chain.hours.plus_alike(*hours);
        chains.push(chain);
    }
    longest(&chains, &mut (0..chains.len()))
}

#[cfg(test)]
mod tests {
    use super::{Estimate, longest_chain, one_after_another};

    fn hours(values: &[f64]) -> Vec<Estimate> {
        values.iter().map(|value| Estimate::new(*value, value / 10.0)).collect()
    }

    #[test]
    fn the_longest_chain_is_that_of_most_hours_and_not_of_most_runs() {
        // 1 and 2 need 0, 3 needs 1, and 4 needs 2 and 3: 0-1-3-4 has 3 + 1 + 1 + 2 = 7 hours,
        // 0-2-4 has 3 + 5 + 2 = 10.
        let needs = [vec![], vec![0], vec![0], vec![1], vec![2, 3]];
        let found = longest_chain(&hours(&[3.0, 1.0, 5.0, 1.0, 2.0]), &needs);
        assert_eq!(found.runs, [0, 2, 4]);
        assert!((found.hours.value - 10.0).abs() < 1e-12, "{found:?}");
        assert!((found.hours.deviation - 1.0).abs() < 1e-12, "{found:?}");
        // With 1 h for the run 2, the other way is longer.
        let found = longest_chain(&hours(&[3.0, 1.0, 1.0, 1.0, 2.0]), &needs);
        assert_eq!(found.runs, [0, 1, 3, 4]);
    }

    #[test]
    fn runs_that_need_nothing_are_chains_of_their_own() {
        let found = longest_chain(&hours(&[3.0, 4.0, 2.0]), &[vec![], vec![], vec![]]);
        assert_eq!(found.runs, [1]);
        assert!(longest_chain(&[], &[]).runs.is_empty());
        // A run that takes no time is part of the chain.
        assert_eq!(longest_chain(&hours(&[0.0, 4.0]), &[vec![], vec![0]]).runs, [0, 1]);
        let all = one_after_another(&hours(&[3.0, 4.0, 2.0]));
        assert!((all.value - 9.0).abs() < 1e-12 && (all.deviation - 0.9).abs() < 1e-12);
    }
}
