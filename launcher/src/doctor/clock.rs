//! The clock of a node: its difference to that of the node that asks, or, on one machine, whether
//! the system says that it is synchronised.

use std::time::{Duration, Instant};

use vljepa_recipes::clock;
use vljepa_recipes::protocol::CheckName;

use super::adjtimex;
use super::finding::{Fact, Finding};
use crate::platform::health::advice;
use crate::process::Conversation;

/// Number of exchanges, of which the fastest counts: the others waited for a processor.
const EXCHANGES: usize = 12;
/// Difference from which the clock counts as not synchronised, in ms. NTP keeps the nodes of a
/// cluster within 10 ms, and events of ranks in one step, which lie some 100 ms apart, can still be
/// ordered by the time stamps of their logs.
const WARN_MS: f64 = 50.0;
/// Difference from which time stamps of different nodes contradict each other, in ms: a step takes
/// about a second. Watchdogs do not depend on it, because they measure durations. A start refuses a
/// node only above 60 s (the worker's health check), because such a run still works.
const FAIL_MS: f64 = 1000.0;

/// Question to the process on the other node. [`answer`] answers it.
pub(super) const QUESTION: &str = "clock";

/// The time of this node in nanoseconds since 1970.
pub(super) fn answer() -> String {
    clock::now().as_nanosecond().to_string()
}

/// Difference between two clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offset {
    /// How far the other clock is ahead, in ms.
    ahead_ms: f64,
    /// Largest error, in ms: half of the round trip.
    error_ms: f64,
}

/// Measures the clock of the node on which `other` runs, as NTP does: the answer was given between
/// question and receipt.
pub(super) async fn measure(other: &mut Conversation) -> Result<Offset, String> {
    let mut best: Option<Offset> = None;
    for _ in 0..EXCHANGES {
        let (asked, start) = (clock::now().as_nanosecond(), Instant::now());
        let said = other.ask(QUESTION).await?;
        let round_trip = start.elapsed();
        let offset = offset(&said, asked, round_trip)?;
        if best.is_none_or(|best| offset.error_ms < best.error_ms) {
            best = Some(offset);
        }
    }
    best.ok_or_else(|| "its clock was not measured".to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "a difference of clocks needs no more than 53 bits")]
fn offset(said: &str, asked: i128, round_trip: Duration) -> Result<Offset, String> {
    let theirs: i128 =
        said.trim().parse().map_err(|_| format!("it printed `{said}`, not the time"))?;
    let error_ms = round_trip.as_secs_f64() * 500.0;
    Ok(Offset { ahead_ms: (theirs - asked) as f64 / 1e6 - error_ms, error_ms })
}

/// Judges a difference to the clock of the node `here`.
pub(super) fn judge(Offset { ahead_ms, error_ms }: Offset, here: &str) -> Finding {
    let distance_ms = ahead_ms.abs();
    // What the round trip may explain is no fault.
    let surely_ms = distance_ms - error_ms;
    let side = if ahead_ms < 0.0 { "behind" } else { "ahead of" };
    let found = format!("{distance_ms:.1} ms {side} that of {here}, ± {error_ms:.1} ms");
    let help = advice(CheckName::Clock);
    if surely_ms > FAIL_MS {
        Finding::fail(Fact::Clock, found, help)
    } else if surely_ms > WARN_MS {
        Finding::warn(Fact::Clock, found, help)
    } else {
        // Small differences have no side, so that those of many nodes are one line.
        let found = format!("{distance_ms:.1} ms from that of {here}, ± {error_ms:.1} ms");
        Finding::pass(Fact::Clock, found)
    }
}

/// Judges what the kernel says about the clock of this machine.
pub(super) fn local() -> Finding {
    judge_local(adjtimex::is_synchronised())
}

fn judge_local(is_synchronised: Option<bool>) -> Finding {
    match is_synchronised {
        Some(true) => Finding::pass(Fact::Clock, "synchronised"),
        Some(false) => Finding::warn(Fact::Clock, "not synchronised", advice(CheckName::Clock)),
        None => Finding::pass(Fact::Clock, "unknown whether it is synchronised"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{judge, judge_local, local, offset};
    use crate::doctor::finding::State;

    #[test]
    fn a_difference_is_measured_in_the_middle_of_the_round_trip() {
        let second = 1_000_000_000_i128;
        let asked = 1_800_000_000 * second;
        let round_trip = Duration::from_millis(10);
        let state = |ahead_ns: i128| {
            let said = (asked + 5_000_000 + ahead_ns).to_string();
            judge(offset(&said, asked, round_trip).unwrap(), "head")
        };
        let same = state(0);
        assert_eq!((same.state, &*same.found), (State::Pass, "0.0 ms from that of head, ± 5.0 ms"));
        assert_eq!(state(-40_000_000).state, State::Pass);
        // The round trip explains up to 5 ms.
        assert_eq!(state(54_000_000).state, State::Pass);
        let ahead = state(100_000_000);
        assert_eq!(ahead.state, State::Warn);
        assert!(ahead.found.starts_with("100.0 ms ahead of that of head"), "{ahead:?}");
        assert!(state(-100_000_000).found.contains("100.0 ms behind"));
        assert_eq!(state(-2 * second).state, State::Fail);
        assert!(offset("soon", asked, round_trip).unwrap_err().contains("soon"));
    }
    #[test]
    fn a_clock_that_the_kernel_calls_unsynchronised_is_a_warning() {
        assert_eq!(judge_local(Some(true)).state, State::Pass);
        assert_eq!(judge_local(Some(false)).state, State::Warn);
        assert!(judge_local(None).found.starts_with("unknown"));
        // A machine may be synchronised or not, and that is never a failure.
        assert_ne!(local().state, State::Fail);
    }
}
