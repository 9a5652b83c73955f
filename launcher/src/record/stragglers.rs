//! Finds slow ranks: which rank, by how much, and in which phase. Pure.
//!
//! Ranks that wait for each other take equally long for a step. A rank is therefore judged by its
//! own work, which is everything except the time in collectives. Ranks are compared once all have
//! reported the same interval; this is called a round.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::{Interval, Phase};

use crate::statistics::median;

/// Phases that count as a rank's own work.
const OWN_PHASES: [Phase; 5] =
    [Phase::Data, Phase::Forward, Phase::Backward, Phase::Optimizer, Phase::Checkpoint];
/// Excess over the median work below which the slowest rank is not called slow in `status`, as a
/// fraction of the median.
const NOTEWORTHY_EXCESS: f64 = 0.05;
/// A rank is slow in a round if its work is more than this many times the median.
const SLOW_RATIO: f64 = 1.2;
/// Number of slow rounds in a row after which a rank is reported.
const SLOW_ROUNDS: u32 = 3;
/// Largest number of ranks in the table; of a larger world only the slowest are listed.
const MAX_ROWS: usize = 16;

/// The newest interval of every rank.
#[derive(Debug, Default)]
pub(crate) struct Stragglers {
    ranks: Vec<Known>,
    /// Step at which the newest round ends.
    round: u64,
    /// Number of ranks that have reported the newest round.
    reported: usize,
}

#[derive(Debug, Clone, Default)]
struct Known {
    host: String,
    interval: Option<Interval>,
    slow_in_a_row: u32,
}

impl Known {
    /// Seconds per step in a phase.
    fn of(&self, phase: Phase) -> f64 {
        let Some(interval) = &self.interval else { return 0.0 };
        let seconds = interval.phase_s.get(&phase).copied().unwrap_or_default();
        seconds / real(interval.steps.max(1))
    }

    /// Own work, seconds per step.
    fn work(&self) -> f64 {
        OWN_PHASES.into_iter().map(|phase| self.of(phase)).sum()
    }
}

/// A rank that was slow in several rounds in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Straggler {
    pub rank: usize,
    pub host: String,
    /// Step at the end of the last slow round.
    pub step: u64,
    /// Phase in which the rank loses most time.
    pub phase: Phase,
    /// Excess of the rank's work over the median, as a fraction of the median.
    pub over: f64,
    /// Number of other ranks that became stragglers in the same round and are less slow.
    pub others: usize,
}

impl std::fmt::Display for Straggler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rank, host, step, phase, over, others } = self;
        let percent = 100.0 * over;
        write!(f, "rank {rank} on {host} is slow: {percent:.0}% over the median rank")?;
        write!(
            f,
            " in {SLOW_ROUNDS} intervals in a row up to step {step}, most of it in phase {}",
            phase.name()
        )?;
        if *others > 0 {
            write!(f, "; so are {others} others")?;
        }
        Ok(())
    }
}

/// Content of `ranks.json`: the ranks at one moment, at most a few kilobytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RankTable {
    /// Time of the table, RFC 3339.
    pub time: String,
    pub attempt: u32,
    /// Step at which the newest interval ends.
    pub step: u64,
    /// Number of ranks of the attempt.
    pub world_size: usize,
    /// Number of ranks that have reported at least one interval.
    pub reported: usize,
    /// Own work of the median rank, seconds per step.
    pub median_work_s: f64,
    /// Seconds per step in each phase.
    pub phases: BTreeMap<Phase, Spread>,
    /// Largest memory values over all ranks.
    pub highest: Highest,
    /// The [`MAX_ROWS`] slowest ranks, the slowest first.
    pub slowest: Vec<RankRow>,
}

impl RankTable {
    /// A sentence about the slowest rank, or `None` for a run of one rank.
    pub(crate) fn slowest_text(&self) -> Option<String> {
        let slowest = self.slowest.first().filter(|_| self.world_size > 1)?;
        let RankRow { rank, host, over, phase, .. } = slowest;
        let percent = 100.0 * over;
        if *over < NOTEWORTHY_EXCESS {
            return Some(format!(
                "no rank is notably slow: the slowest, rank {rank} on {host}, is {percent:.0}% over the median"
            ));
        }
        let phase = phase.name();
        Some(format!(
            "slowest: rank {rank} on {host}, {percent:.0}% over the median, most of it in phase {phase}"
        ))
    }
}

/// Seconds per step that ranks spend in a phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Value of the median rank.
    pub median_s: f64,
    /// Value of the slowest rank.
    pub max_s: f64,
    /// The rank with this value.
    pub max_rank: usize,
}

/// Largest values over the ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Highest {
    /// Memory of a process, MiB.
    pub memory_mib: u64,
    /// Memory in use on a GPU, MiB.
    pub device_memory_mib: Option<u64>,
}

/// One rank in the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RankRow {
    pub rank: usize,
    pub host: String,
    /// Own work, seconds per step.
    pub work_s: f64,
    /// Excess of the rank's work over the median, as a fraction of the median; negative for a
    /// faster rank.
    pub over: f64,
    /// Phase in which the rank exceeds the median most.
    pub phase: Phase,
    /// Time waiting for data, seconds per step.
    pub data_s: f64,
    /// Time in collectives, seconds per step.
    pub collective_s: f64,
    /// Model operations per second, 10¹².
    pub tflops: f64,
    /// Memory of the process, MiB.
    pub memory_mib: u64,
    /// Memory in use on the rank's GPU, MiB.
    pub device_memory_mib: Option<u64>,
    /// Number of slow rounds in a row.
    pub slow_in_a_row: u32,
}

impl Stragglers {
    /// Forgets all ranks and starts with `world_size` new ones, for a new attempt.
    pub(crate) fn restart(&mut self, world_size: usize) {
        *self = Self { ranks: vec![Known::default(); world_size], round: 0, reported: 0 };
    }

    /// Records the host of a rank.
    pub(crate) fn joined(&mut self, rank: usize, host: &str) {
        if let Some(known) = self.ranks.get_mut(rank) {
            host.clone_into(&mut known.host);
        }
    }

    /// Hosts of the ranks, without duplicates.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let known = self.ranks.iter().map(|known| &known.host).filter(|host| !host.is_empty());
        known.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// Records a rank's newest interval. If it completes a round in which ranks have become
    /// stragglers, returns the slowest of them.
    pub(crate) fn add(&mut self, rank: usize, interval: &Interval) -> Option<Straggler> {
        let known = self.ranks.get_mut(rank)?;
        let again = known.interval.as_ref().is_some_and(|before| before.step == interval.step);
        known.interval = Some(interval.clone());
        if interval.step > self.round {
            (self.round, self.reported) = (interval.step, 0);
        }
        if interval.step < self.round || again {
            return None;
        }
        self.reported += 1;
        (self.reported == self.ranks.len()).then(|| self.judge())?
    }

    /// Whether all ranks have reported the newest interval.
    pub(crate) fn is_round_complete(&self) -> bool {
        self.reported == self.ranks.len()
    }

    fn judge(&mut self) -> Option<Straggler> {
        let typical = median(self.ranks.iter().map(Known::work)).unwrap_or_default();
        let (mut slowest, mut found) = (None, 0_usize);
        for (rank, known) in self.ranks.iter_mut().enumerate() {
            let work = known.work();
            let slow = typical > 0.0 && work > SLOW_RATIO * typical;
            known.slow_in_a_row = if slow { known.slow_in_a_row + 1 } else { 0 };
            if known.slow_in_a_row == SLOW_ROUNDS {
                found += 1;
                slowest = slowest.filter(|&(_, most)| most >= work).or(Some((rank, work)));
            }
        }
        let (rank, work) = slowest?;
        let medians = self.medians();
        let known = &self.ranks[rank];
        Some(Straggler {
            rank,
            host: known.host.clone(),
            step: self.round,
            phase: worst_phase(known, &medians),
            over: work / typical - 1.0,
            others: found - 1,
        })
    }

    /// Median seconds per step in each phase of a rank's own work.
    fn medians(&self) -> BTreeMap<Phase, f64> {
        OWN_PHASES
            .into_iter()
            .map(|phase| {
                (
                    phase,
                    median(self.reported().map(|(_, known)| known.of(phase))).unwrap_or_default(),
                )
            })
            .collect()
    }

    fn reported(&self) -> impl Iterator<Item = (usize, &Known)> {
        self.ranks.iter().enumerate().filter(|(_, known)| known.interval.is_some())
    }

    /// Table of the ranks at this moment, or `None` before the first interval.
    pub(crate) fn table(&self, attempt: u32, time: String) -> Option<RankTable> {
        let reported = self.reported().count();
        if reported == 0 {
            return None;
        }
        let typical = median(self.reported().map(|(_, known)| known.work())).unwrap_or_default();
        let medians = self.medians();
        let mut order: Vec<(usize, f64)> =
            self.reported().map(|(rank, known)| (rank, known.work())).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let slowest = order.into_iter().take(MAX_ROWS);
        let slowest = slowest.filter_map(|(rank, work)| self.row(rank, work / typical, &medians));
        let intervals = || self.reported().filter_map(|(_, known)| known.interval.as_ref());
        Some(RankTable {
            time,
            attempt,
            step: self.round,
            world_size: self.ranks.len(),
            reported,
            median_work_s: typical,
            phases: self.spreads(),
            highest: Highest {
                memory_mib: intervals().map(|i| i.memory_mib).max().unwrap_or(0),
                device_memory_mib: intervals().filter_map(|i| i.device_memory_mib).max(),
            },
            slowest: slowest.collect(),
        })
    }

    fn row(&self, rank: usize, ratio: f64, medians: &BTreeMap<Phase, f64>) -> Option<RankRow> {
        let known = &self.ranks[rank];
        let interval = known.interval.as_ref()?;
        Some(RankRow {
            rank,
            host: known.host.clone(),
            work_s: known.work(),
            over: if ratio.is_finite() { ratio - 1.0 } else { 0.0 },
            phase: worst_phase(known, medians),
            data_s: known.of(Phase::Data),
            collective_s: known.of(Phase::Collective),
            tflops: interval.tflops,
            memory_mib: interval.memory_mib,
            device_memory_mib: interval.device_memory_mib,
            slow_in_a_row: known.slow_in_a_row,
        })
    }

    fn spreads(&self) -> BTreeMap<Phase, Spread> {
        let mut phases: Vec<Phase> = self
            .reported()
            .filter_map(|(_, known)| known.interval.as_ref())
            .flat_map(|interval| interval.phase_s.keys().copied())
            .collect();
        phases.sort_unstable();
        phases.dedup();
        let spread = |phase| {
            let values = || self.reported().map(|(rank, known)| (rank, known.of(phase)));
            let max = values().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            let (max_rank, max_s) = max.unwrap_or_default();
            Spread {
                median_s: median(values().map(|value| value.1)).unwrap_or_default(),
                max_s,
                max_rank,
            }
        };
        phases.into_iter().map(|phase| (phase, spread(phase))).collect()
    }
}

/// Phase of its own work in which a rank exceeds the median most.
fn worst_phase(known: &Known, medians: &BTreeMap<Phase, f64>) -> Phase {
    let over = |phase: &Phase| known.of(*phase) - medians.get(phase).copied().unwrap_or_default();
    // `max_by` returns the last maximum, so the reversed order prefers the first phase.
    OWN_PHASES.into_iter().rev().max_by(|a, b| over(a).total_cmp(&over(b))).unwrap_or(Phase::Data)
}

#[expect(clippy::cast_precision_loss, reason = "steps of an interval are few")]
fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use vljepa_recipes::protocol::{Interval, Phase};

    use super::{MAX_ROWS, Straggler, Stragglers};

    /// Interval of ten steps with the given milliseconds per step in data, forward and collective.
    fn interval(step: u64, [data, forward, collective]: [f64; 3]) -> Interval {
        let phases = [Phase::Data, Phase::Forward, Phase::Collective];
        Interval {
            step,
            steps: 10,
            seconds: (data + forward + collective) / 100.0,
            phase_s: phases
                .into_iter()
                .zip([data, forward, collective].map(|ms| ms / 100.0))
                .collect(),
            tflops: 1.0,
            memory_mib: 100 + step,
            device_memory_mib: None,
        }
    }

    fn world(size: usize) -> Stragglers {
        let mut ranks = Stragglers::default();
        ranks.restart(size);
        (0..size).for_each(|rank| ranks.joined(rank, &format!("node{}", rank / 8)));
        ranks
    }

    /// Reports one round, in which the ranks of `odd` have their own times, and returns the
    /// stragglers.
    fn round(ranks: &mut Stragglers, step: u64, odd: &[(usize, [f64; 3])]) -> Vec<Straggler> {
        (0..ranks.ranks.len())
            .filter_map(|rank| {
                let own = odd.iter().find(|(r, _)| *r == rank).map_or([1.0, 99.0, 50.0], |o| o.1);
                ranks.add(rank, &interval(step, own))
            })
            .collect()
    }

    #[test]
    fn a_rank_that_is_slow_three_times_in_a_row_is_named_once_with_its_phase() {
        let mut ranks = world(4);
        let slow = [(2, [31.0, 99.0, 0.0])];
        assert_eq!(round(&mut ranks, 10, &slow), []);
        assert_eq!(round(&mut ranks, 20, &slow), []);
        let named = round(&mut ranks, 30, &slow);
        assert_eq!(named.len(), 1, "{named:?}");
        let Straggler { rank, step, phase, over, others, .. } = &named[0];
        assert_eq!((*rank, *step, *phase, *others), (2, 30, Phase::Data, 0));
        assert!((over - 0.3).abs() < 1e-9, "{over}");
        let text = named[0].to_string();
        assert!(text.starts_with("rank 2 on node0 is slow: 30% over the median"), "{text}");
        assert_eq!(round(&mut ranks, 40, &slow), [], "said once");
        round(&mut ranks, 50, &[]);
        round(&mut ranks, 60, &slow);
        round(&mut ranks, 70, &slow);
        assert_eq!(round(&mut ranks, 80, &slow).len(), 1, "it was not slow in between");
    }

    #[test]
    fn waiting_in_collectives_and_a_fifth_more_work_are_not_slow() {
        let mut ranks = world(4);
        for step in 1..9 {
            let odd = [(1, [1.0, 99.0, 5000.0]), (2, [1.0, 118.0, 0.0])];
            assert_eq!(round(&mut ranks, 10 * step, &odd), []);
        }
    }

    #[test]
    fn two_slow_rounds_with_a_good_one_between_are_not_persistent() {
        let mut ranks = world(3);
        let slow = [(0, [1.0, 200.0, 0.0])];
        for step in [10, 20, 40, 50, 70, 80] {
            assert_eq!(round(&mut ranks, step, &slow), []);
            if step % 30 == 20 {
                assert_eq!(round(&mut ranks, step + 10, &[]), []);
            }
        }
    }

    #[test]
    fn a_slow_node_of_a_large_world_is_one_line_and_its_table_stays_small() {
        let mut ranks = world(4096);
        let slow: Vec<(usize, [f64; 3])> = (800..808)
            .map(|rank| (rank, [1.0, 150.0 + f64::from(u8::try_from(rank - 800).unwrap()), 0.0]))
            .collect();
        let started = Instant::now();
        round(&mut ranks, 10, &slow);
        round(&mut ranks, 20, &slow);
        let named = round(&mut ranks, 30, &slow);
        assert_eq!((named.len(), named[0].rank, named[0].others), (1, 807, 7));
        let table = ranks.table(1, "now".to_owned()).unwrap();
        assert_eq!(
            (table.slowest.len(), table.reported, table.slowest[0].rank),
            (MAX_ROWS, 4096, 807)
        );
        assert_eq!(table.phases[&Phase::Forward].max_rank, 807);
        let bytes = serde_json::to_vec(&table).unwrap().len();
        assert!(bytes < 8192, "{bytes} bytes");
        // 12,288 intervals must take far less than the second in which they arrive.
        assert!(started.elapsed().as_secs() < 1, "{:?}", started.elapsed());
    }

    #[test]
    fn an_incomplete_round_judges_nobody_and_strangers_are_ignored() {
        let mut ranks = world(2);
        assert_eq!(ranks.add(7, &interval(10, [1.0, 1.0, 1.0])), None);
        assert!(ranks.table(1, String::new()).is_none());
        for step in [10, 20, 30, 40] {
            assert_eq!(ranks.add(0, &interval(step, [1.0, 900.0, 1.0])), None);
            assert_eq!(ranks.add(0, &interval(step, [1.0, 900.0, 1.0])), None, "twice is once");
        }
        assert!(!ranks.is_round_complete());
        assert_eq!(ranks.add(1, &interval(40, [1.0, 9.0, 1.0])), None);
        assert!(ranks.is_round_complete());
        let table = ranks.table(3, "now".to_owned()).unwrap();
        assert_eq!((table.attempt, table.step, table.slowest[0].rank), (3, 40, 0));
        assert_eq!(table.highest.memory_mib, 140);
    }
}
