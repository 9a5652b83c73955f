//! The report's section on reliability: faults and the time they cost, slow ranks, and waits for
//! checkpoints.

use maud::{Markup, html};
use vljepa_recipes::protocol::Resumed;

use super::Contents;
use super::time::{between, moment};
use crate::record::events::{Event, Fault};
use crate::record::rates::steps_again;
use crate::record::stragglers::Straggler;
use crate::statistics::{self, to_f64};
use crate::terminal;

/// Largest number of stragglers that are shown; the oldest ones are only in `events.jsonl`.
const MAX_SLOW_RANKS: usize = 20;

/// A fault that ended an attempt, and its cost.
#[derive(Debug, PartialEq)]
struct Restart<'a> {
    time: &'a str,
    attempt: u32,
    fault: &'a Fault,
    /// Seconds from the fault to the first metrics of a later attempt, or `None` if there are none.
    lost_s: Option<f64>,
    /// Number of steps that were computed again.
    steps_again: Option<u64>,
}

/// The section on reliability; empty for a run that has not started.
pub(super) fn section(contents: &Contents) -> Markup {
    if contents.events.is_empty() {
        return html! {};
    }
    let restarts = restarts(contents);
    let stalls = stalls(contents);
    html! {
        section {
            h2 { "Reliability" }
            p.note {
                @if restarts.is_empty() {
                    "No fault ended an attempt."
                } @else {
                    (restarts.len()) " fault" @if restarts.len() != 1 { "s" }
                    "; " (terminal::duration(restarts.iter().filter_map(|r| r.lost_s).sum()))
                    " in total between a fault and the next logged step; "
                    (terminal::thousands(restarts.iter().filter_map(|r| r.steps_again).sum()))
                    " steps computed again."
                }
                @if let Some((count, median, longest, total)) = stalls {
                    " " (terminal::thousands(count)) " checkpoints; steps waited for each "
                    (format!("{median:.2} s")) " (median), " (format!("{longest:.2} s")) " at most, "
                    (terminal::duration(total)) " in total."
                }
            }
            @if !restarts.is_empty() { (restart_table(&restarts)) }
            (slow_ranks(contents))
        }
    }
}

fn restart_table(restarts: &[Restart<'_>]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "time" } th { "attempt" } th { "fault" } th.short { "time lost" } th.short { "steps computed again" } } }
            tbody {
                @for restart in restarts {
                    tr {
                        td { (moment(restart.time)) }
                        td { (restart.attempt) }
                        td { (restart.fault) }
                        td { (restart.lost_s.map_or_else(|| "–".to_owned(), terminal::duration)) }
                        td { (restart.steps_again.map_or_else(|| "–".to_owned(), terminal::thousands)) }
                    }
                }
            }
        } }
    }
}

fn slow_ranks(contents: &Contents) -> Markup {
    let found: Vec<(&str, &Straggler)> = contents
        .events
        .iter()
        .filter_map(|line| match &line.event {
            Event::Straggler(straggler) => Some((line.time.as_str(), straggler)),
            _ => None,
        })
        .collect();
    let left_out = found.len().saturating_sub(MAX_SLOW_RANKS);
    html! {
        @if let Some(table) = &contents.ranks {
            @if let Some(words) = table.slowest_text() {
                p.note.after {
                    "At step " (terminal::thousands(table.step)) " the median rank worked "
                    (format!("{:.1} ms", 1e3 * table.median_work_s)) " per step, not counting waits for other ranks; " (words) "."
                }
            }
        }
        @if left_out > 0 { p.note { "The oldest " (left_out) " slow ranks are only in events.jsonl." } }
        @if !found.is_empty() {
            ul.incidents {
                @for (time, straggler) in found.iter().skip(left_out) {
                    li { time { (moment(time)) } span.state.fair { "slow" } " " (straggler) }
                }
            }
        }
    }
}

/// All faults, oldest first, with the time until a later attempt logged a step.
fn restarts(contents: &Contents) -> Vec<Restart<'_>> {
    let attempts = contents.record.as_ref().map_or(&[][..], |record| &record.attempts);
    let fault = |line: &'_ crate::record::events::Line| matches!(line.event, Event::Fault(_));
    contents
        .events
        .iter()
        .filter(|line| fault(line))
        .filter_map(|line| {
            let Event::Fault(fault) = &line.event else { return None };
            let next = contents.metrics.iter().filter_map(|m| between(&line.time, &m.time));
            let of = |number| attempts.iter().find(|attempt| attempt.number == number);
            let reached = of(line.attempt).map(|attempt| attempt.last_step);
            let resumed = resumed(contents, line.attempt + 1).or_else(|| {
                let from_step = of(line.attempt + 1)?.first_step?;
                Some(Resumed { from_step, ..Resumed::default() })
            });
            let again = reached.zip(resumed);
            Some(Restart {
                time: &line.time,
                attempt: line.attempt,
                fault,
                lost_s: next.filter(|seconds| *seconds > 0.0).min_by(f64::total_cmp),
                steps_again: again.map(|(reached, resumed)| steps_again(&resumed, reached)),
            })
        })
        .collect()
}

/// Point from which an attempt continued, if its worker reported it.
fn resumed(contents: &Contents, attempt: u32) -> Option<Resumed> {
    let of_attempt = contents.events.iter().filter(|line| line.attempt == attempt);
    of_attempt
        .filter_map(|line| match &line.event {
            Event::Resumed(resumed) => Some(resumed.clone()),
            _ => None,
        })
        .next()
}

/// Number, median, longest and sum of the waits for checkpoints, in seconds; `None` without
/// checkpoints.
fn stalls(contents: &Contents) -> Option<(u64, f64, f64, f64)> {
    let mut stalls: Vec<f64> = contents
        .events
        .iter()
        .filter_map(|line| match line.event {
            Event::Saved { stall_s, .. } => Some(stall_s),
            _ => None,
        })
        .collect();
    stalls.sort_by(f64::total_cmp);
    let longest = *stalls.last()?;
    Some((stalls.len() as u64, stalls[stalls.len() / 2], longest, stalls.iter().sum()))
}

/// Table with the rates of each stage: medians over the stage's metrics.
pub(super) fn stages(contents: &Contents) -> Markup {
    let median = |stage: &str, value: fn(&vljepa_recipes::protocol::Metrics) -> Option<f64>| {
        let lines = contents.metrics.iter().filter(|line| line.stage == stage);
        statistics::median(lines.filter_map(value))
    };
    let shown =
        |value: Option<f64>, text: fn(f64) -> String| value.map_or_else(|| "–".to_owned(), text);
    let percent: fn(f64) -> String = |value| format!("{:.1}%", 100.0 * value);
    html! {
        @if !contents.metrics.is_empty() {
            div.scroll { table {
                thead { tr {
                    th { "stage" } th { "steps" } th { "samples/s" } th { "TFLOP/s per rank" } th { "MFU" }
                    th { "waiting for data" } th { "memory, MiB" } th { "GPU memory, MiB" }
                } }
                tbody {
                    @for stage in &contents.recipe.stages {
                        tr {
                            td { (stage.name) }
                            td { (terminal::thousands(stage.steps)) }
                            td { (shown(median(&stage.name, |m| Some(m.samples_per_s)), |v| format!("{v:.1}"))) }
                            td { (shown(median(&stage.name, |m| m.tflops), |v| format!("{v:.3}"))) }
                            td { (shown(median(&stage.name, |m| m.mfu), percent)) }
                            td { (shown(median(&stage.name, |m| Some(m.data_wait_fraction)), percent)) }
                            td { (shown(median(&stage.name, |m| m.memory_mib.map(to_f64)), |v| format!("{v:.0}"))) }
                            td { (shown(median(&stage.name, |m| m.device_memory_mib.map(to_f64)), |v| format!("{v:.0}"))) }
                        }
                    }
                }
            } }
            p.note.after { "Medians over the logged steps. Rates count each operation of the model on rank 0 once; MFU is their share of the device's dense bf16 peak." }
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::Phase;

    use super::{restarts, section, stages};
    use crate::record::events::{Event, Fault, FaultKind, Line};
    use crate::record::history::tests::line;
    use crate::record::stragglers::Straggler;
    use crate::report::Contents;

    fn at(seconds: u32, attempt: u32, event: Event) -> Line {
        Line { time: format!("2026-01-01T00:00:{seconds:02}Z"), attempt, event }
    }

    fn contents() -> Contents {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let loaded = vljepa_recipes::load(&path, &[]).unwrap();
        let mut contents = Contents::empty(loaded);
        let fault = Fault {
            kind: FaultKind::Died,
            rank: Some(1),
            step: 30,
            phase: Phase::Backward,
            error: "signal 9".to_owned(),
            log: "log".to_owned(),
        };
        let slow = Straggler {
            rank: 1,
            host: "node3".to_owned(),
            step: 20,
            phase: Phase::Data,
            over: 0.5,
            others: 0,
        };
        contents.events = vec![
            at(5, 1, Event::Straggler(slow)),
            at(
                6,
                1,
                Event::Saved { step: 20, name: "s".to_owned(), stall_s: 0.25, durable_s: 0.5 },
            ),
            at(
                7,
                1,
                Event::Saved { step: 22, name: "s".to_owned(), stall_s: 0.75, durable_s: 1.5 },
            ),
            at(10, 1, Event::Fault(fault)),
        ];
        contents.metrics = (1..=6).map(|step| line(10 * step, 1.0)).collect();
        for (index, metrics) in contents.metrics.iter_mut().enumerate() {
            metrics.stage = "all".to_owned();
            metrics.time = format!("2026-01-01T00:00:{:02}Z", 3 + 7 * index);
        }
        contents
    }

    #[test]
    fn a_restart_costs_the_time_to_the_next_logged_step() {
        let contents = contents();
        let found = restarts(&contents);
        // Metrics at 3, 10, 17 s: those at the moment of the fault were written before it.
        assert_eq!((found.len(), found[0].lost_s, found[0].steps_again), (1, Some(7.0), None));
        let page = section(&contents).into_string();
        for text in [
            "1 fault; 7.0 s in total between a fault and the next logged step",
            "rank 1 died in phase backward of step 30",
            "2 checkpoints; steps waited for each 0.75 s (median), 0.75 s at most, 1.0 s in total",
            "rank 1 on node3 is slow: 50% over",
        ] {
            assert!(page.contains(text), "`{text}` is missing in {page}");
        }
    }

    #[test]
    fn stages_show_their_rates_and_what_is_not_known_as_a_dash() {
        let mut contents = contents();
        let page = stages(&contents).into_string();
        assert!(
            page.contains(
                "<td>500.0</td><td>1.500</td><td>40.0%</td><td>1.0%</td><td>700</td><td>–</td>"
            ),
            "{page}"
        );
        contents.metrics.iter_mut().for_each(|line| (line.tflops, line.mfu) = (None, None));
        assert!(stages(&contents).into_string().contains("<td>500.0</td><td>–</td><td>–</td>"));
    }
}
