//! Arguments of `vljepa-launch plan`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

/// Largest number of GPUs that is planned.
const MOST: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Recipe or programme to plan, a YAML file.
    pub recipe: PathBuf,
    /// Change a key of the recipe, for example `--set stages.0.steps=100`. Can be given several
    /// times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Plan for another number of GPUs, in whole nodes; or for several, `FIRST..LAST`: the numbers
    /// from FIRST to LAST that double, and the recipe's own.
    #[arg(long, value_name = "N|FIRST..LAST")]
    pub gpus: Option<Devices>,
    /// Rates of another cluster, a YAML file like recipes/rates/h200.yaml. Default: those of H200.
    /// A recipe with `device: host` has no default, and its plan then has no times.
    #[arg(long, value_name = "FILE")]
    pub rates: Option<PathBuf>,
    /// Write a page with the plan.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Numbers of GPUs: one, or a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Devices {
    pub first: usize,
    pub last: usize,
}

impl Devices {
    /// The numbers of a range: from `first`, doubled up to `last`, with `own` if it is between
    /// them.
    pub(crate) fn counts(self, own: usize) -> Vec<usize> {
        let doubled = std::iter::successors(Some(self.first), |count| count.checked_mul(2));
        let mut counts: Vec<usize> = doubled.take_while(|count| *count <= self.last).collect();
        counts.push(self.last);
        counts.extend((self.first..=self.last).contains(&own).then_some(own));
        counts.sort_unstable();
        counts.dedup();
        counts
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let count = |text: &str| text.parse().ok().filter(|count| (1..=MOST).contains(count));
        match (count(first), count(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("not a number of GPUs from 1 to {MOST}, or two of them: 8..4096")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Devices;

    #[test]
    fn gpus_are_one_number_or_a_range_that_doubles() {
        let one: Devices = "64".parse().unwrap();
        assert_eq!((one.first, one.last), (64, 64));
        let range: Devices = "8..512".parse().unwrap();
        assert_eq!(range.counts(192), [8, 16, 32, 64, 128, 192, 256, 512]);
        let odd: Devices = "8..24".parse().unwrap();
        assert_eq!(odd.counts(192), [8, 16, 24]);
        for wrong in ["", "0", "8..", "..8", "64..8", "1e3", "-1", "8...64", "2000000"] {
            assert!(wrong.parse::<Devices>().is_err(), "{wrong}");
        }
    }
}
