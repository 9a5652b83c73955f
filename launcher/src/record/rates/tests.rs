//! Tests of rates on made-up histories. Times are seconds after midnight.

mod attempts;

use std::collections::BTreeMap;

use vljepa_recipes::protocol::{Phase, Resumed};
use vljepa_recipes::schema::Recipe;

use super::{Activity, LoggedInterval, Rates, Recent, Spent, Summary};
use crate::record::events::{Event, Line};
use crate::record::provenance::AttemptOutcome;

/// Two stages: 100 steps of 8 samples, then 50 steps of 4 samples with twice the operations.
fn recipe() -> Recipe {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
    let mut recipe = vljepa_recipes::load(&path, &[]).unwrap().recipe;
    recipe.stages.truncate(1);
    let mut second = recipe.stages[0].clone();
    (recipe.stages[0].name, recipe.stages[0].steps, recipe.stages[0].batch) =
        ("first".to_owned(), 100, 8);
    (second.name, second.steps, second.batch) = ("second".to_owned(), 50, 4);
    recipe.stages.push(second);
    recipe
}

fn time(seconds: f64) -> String {
    let whole = jiff::Timestamp::from_millisecond(midnight_ms());
    let duration = jiff::SignedDuration::from_secs_f64(seconds);
    (whole.unwrap() + duration).to_string()
}

fn midnight_ms() -> i64 {
    "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

fn now(seconds: f64) -> f64 {
    vljepa_recipes::clock::seconds_of(&time(seconds)).unwrap()
}

fn at(seconds: f64, attempt: u32, event: Event) -> Line {
    Line { time: time(seconds), attempt, event }
}

fn started(seconds: f64, attempt: u32) -> Line {
    at(seconds, attempt, Event::AttemptStarted { world_size: 1, command: Vec::new() })
}

fn ended(seconds: f64, attempt: u32, outcome: AttemptOutcome, step: u64) -> Line {
    at(seconds, attempt, Event::AttemptEnded { outcome, step })
}

/// An interval of ten steps of the first stage that ended at `seconds`.
fn interval(seconds: f64, step: u64, phases: &[(Phase, f64)]) -> LoggedInterval {
    let phase_s: BTreeMap<Phase, f64> = phases.iter().copied().collect();
    let whole: f64 = phase_s.values().sum();
    LoggedInterval {
        step,
        stage: "first".to_owned(),
        samples: 8 * step,
        loss: Some(1.0),
        samples_per_s: 80.0 / whole,
        data_wait_fraction: 0.0,
        phase_s,
        tflops: None,
        mfu: None,
        time: time(seconds),
    }
}

const STEPS: [(Phase, f64); 2] = [(Phase::Data, 0.25), (Phase::Forward, 0.75)];

fn rates(events: &[Line], intervals: &[LoggedInterval]) -> Rates {
    let mut rates = Rates::new(&recipe());
    events.iter().for_each(|line| rates.event(line));
    intervals.iter().for_each(|line| rates.interval(line.clone()));
    rates
}

/// Rates of a run that a launcher works on.
fn running(rates: &Rates, seconds: f64) -> Summary {
    rates.summary(now(seconds), Activity::Lock)
}

/// Asserts the elapsed time and its parts, and that the parts sum to it.
fn assert_spent(summary: &Summary, elapsed_s: f64, expected: Spent) {
    let parts = summary.spent.parts().into_iter().zip(expected.parts());
    for ((name, found), (_, expected)) in parts {
        assert!((found - expected).abs() < 1e-6, "{name} is {found}: {summary:#?}");
    }
    let sum: f64 = summary.spent.parts().iter().map(|part| part.1).sum();
    assert!((summary.elapsed_s - elapsed_s).abs() < 1e-6, "{summary:#?}");
    assert!((sum - elapsed_s).abs() < 1e-6, "the parts sum to {sum}: {summary:#?}");
}

fn close(found: Option<f64>, expected: f64) -> bool {
    found.is_some_and(|found| (found / expected - 1.0).abs() < 1e-9)
}

#[test]
fn an_interval_that_is_an_outlier_does_not_move_the_median() {
    let mut recent = Recent::default();
    let slow = [(Phase::Forward, 100.0)];
    for number in 1..=30 {
        let phases = if number == 30 { &slow[..] } else { &STEPS };
        recent.add(&interval(0.0, 10 * number, phases));
    }
    assert_eq!(recent.intervals(), Recent::WINDOW);
    assert!(close(recent.samples_per_s(), 80.0), "{recent:?}");
    // A lasting change of speed does, when it fills more than half of the window.
    (31..=39).for_each(|number| recent.add(&interval(0.0, 10 * number, &slow)));
    assert!(!close(recent.samples_per_s(), 80.0), "{recent:?}");
    (40..=41).for_each(|number| recent.add(&interval(0.0, 10 * number, &slow)));
    assert!(close(recent.samples_per_s(), 0.8), "{recent:?}");
}

#[test]
fn the_start_up_of_an_attempt_is_no_part_of_the_rate() {
    let mut recent = Recent::default();
    recent.add(&interval(0.0, 10, &[(Phase::Start, 9.0), (Phase::Forward, 1.0)]));
    assert!(close(recent.samples_per_s(), 80.0), "{recent:?}");
}

#[test]
fn the_recent_rate_is_of_the_current_stage_and_attempt() {
    let events = [started(0.0, 1), started(100.0, 2)];
    let mut rates = rates(&events, &[interval(1.0, 10, &STEPS), interval(2.0, 20, &STEPS)]);
    assert_eq!(running(&rates, 3.0).recent_intervals, 2);
    let slow = [(Phase::Forward, 2.0)];
    rates.interval(interval(103.0, 30, &slow));
    let summary = running(&rates, 104.0);
    assert!(close(summary.recent_samples_per_s, 40.0) && summary.recent_intervals == 1);
    let second = LoggedInterval { stage: "second".to_owned(), ..interval(110.0, 110, &STEPS) };
    rates.interval(second);
    let summary = running(&rates, 111.0);
    assert!(close(summary.recent_samples_per_s, 80.0) && summary.recent_intervals == 1);
}

#[test]
fn the_time_of_a_running_attempt_is_divided_among_phases() {
    let phases = [
        (Phase::Start, 2.0),
        (Phase::Data, 0.5),
        (Phase::Forward, 1.0),
        (Phase::Collective, 0.25),
        (Phase::Backward, 2.0),
        (Phase::Optimizer, 0.25),
        (Phase::Checkpoint, 0.5),
        (Phase::Evaluation, 1.5),
    ];
    let rates = rates(&[started(10.0, 1)], &[interval(21.0, 10, &phases)]);
    let summary = running(&rates, 25.0);
    let expected = Spent {
        steps_s: 3.5,
        data_wait_s: 0.5,
        evaluation_s: 1.5,
        checkpoints_s: 0.5,
        start_up_s: 3.0 + 2.0,
        not_logged_s: 4.0,
        ..Spent::default()
    };
    assert_spent(&summary, 15.0, expected);
    assert!(close(summary.whole_run_samples_per_s, 80.0 / 15.0), "{summary:?}");
    // Nothing works on the run: its time ended with the last sign of life.
    assert!((rates.summary(now(1e6), Activity::Nothing).elapsed_s - 11.0).abs() < 1e-6);
}

#[test]
fn rows_name_the_rest_by_whether_the_run_goes_on_and_leave_out_what_is_short() {
    let spent = Spent { steps_s: 9.0, queue_s: 0.04, not_logged_s: 2.0, ..Spent::default() };
    let summary = |is_running| Summary { spent, is_running, ..Summary::default() };
    let row = |name: &str, seconds: f64| (name.to_owned(), seconds);
    assert_eq!(summary(true).rows(), [row("steps", 9.0), row("not logged yet", 2.0)]);
    assert_eq!(summary(false).rows(), [row("steps", 9.0), row("other", 2.0)]);
    let spent = Spent { lost_work_s: 1.0, ..Spent::default() };
    let mut lost = Summary { spent, lost_steps: 1200, ..Summary::default() };
    assert_eq!(lost.rows(), [row("lost work, 1,200 steps", 1.0)]);
    lost.spent.lost_work_s = 0.009;
    assert_eq!(lost.rows(), [row("lost work, 1,200 steps", 0.009)]);
    (lost.lost_steps, lost.recent_intervals, lost.spent.lost_work_s) = (0, 20, 1.0);
    assert_eq!(lost.rows(), [row("lost work", 1.0)]);
    assert_eq!(lost.window(), "median of the last 20 intervals");
}

#[test]
fn lines_that_were_not_dropped_count_once() {
    let again = [interval(2.0, 10, &STEPS), interval(3.0, 20, &STEPS), interval(9.0, 10, &STEPS)];
    let summary = running(&rates(&[started(0.0, 1), started(7.0, 2)], &again), 9.0);
    let steps_s = summary.spent.steps_s;
    assert!((steps_s - 1.5).abs() < 1e-6 && (summary.spent.lost_work_s - 1.0).abs() < 1e-6);
    assert_eq!(summary.samples, 80);
}

#[test]
fn metrics_without_events_have_rates() {
    let intervals = [interval(2.0, 10, &STEPS), interval(3.0, 20, &STEPS)];
    let summary = running(&rates(&[], &intervals), 4.0);
    assert!(close(summary.recent_samples_per_s, 80.0));
    let expected = Spent { steps_s: 1.5, data_wait_s: 0.5, not_logged_s: 1.0, ..Spent::default() };
    assert_spent(&summary, 3.0, expected);
    assert_spent(&running(&rates(&[], &[]), 4.0), 0.0, Spent::default());
}

#[test]
fn the_time_left_scales_with_the_operations_of_later_stages() {
    let rates = rates(&[started(0.0, 1)], &[interval(2.0, 50, &STEPS)]);
    let left = running(&rates, 2.0).left.unwrap();
    assert!((left.stage_s - 50.0 * 8.0 / 80.0).abs() < 1e-9, "{left:?}");
    assert_eq!(left.later_stages, 1);
    // The stages read the same samples, so only their numbers differ.
    assert!((left.later_stages_s - 50.0 * 4.0 / 80.0).abs() < 1e-9, "{left:?}");
    let mut longer = recipe();
    longer.stages[1].frames *= 4;
    let mut rates = Rates::new(&longer);
    rates.interval(interval(2.0, 50, &STEPS));
    let more = running(&rates, 2.0).left.unwrap();
    assert!(more.later_stages_s > 2.0 * left.later_stages_s, "{more:?}");
    // At the end of a stage the recent rate is still that of the stage before.
    rates.interval(interval(3.0, 100, &STEPS));
    let last = running(&rates, 3.0).left.unwrap();
    assert_eq!(last.later_stages, 0);
    assert!((last.stage_s - more.later_stages_s).abs() < 1e-9, "{last:?}");
    rates.interval(interval(4.0, 150, &STEPS));
    assert_eq!(running(&rates, 4.0).left, None);
}

#[test]
fn damaged_numbers_and_times_do_not_end_the_program() {
    let huge = [(Phase::Start, 1e308), (Phase::Forward, 1e308), (Phase::Data, 1e308)];
    let mut broken = interval(2.0, u64::MAX, &huge);
    (broken.samples_per_s, broken.samples) = (1e308, u64::MAX);
    let resumed = Resumed {
        from_step: u64::MAX,
        lost_steps: u64::MAX,
        lost_s: -1e308,
        kept_s: 1e308,
        lost_until: None,
    };
    let events = [
        started(10.0, 1),
        ended(5.0, 1, AttemptOutcome::Failed, u64::MAX),
        started(1.0, 2),
        at(0.5, 2, Event::Resumed(resumed.clone())),
        at(0.5, 2, Event::Resumed(resumed)),
        Line { time: "yesterday".to_owned(), ..started(0.0, 3) },
    ];
    let no_time = LoggedInterval { time: "tomorrow".to_owned(), ..broken.clone() };
    let mut rates = rates(&events, &[broken, no_time]);
    for activity in [Activity::Nothing, Activity::Lock, Activity::Job] {
        let summary = rates.summary(now(-5.0), activity);
        assert!(serde_json::to_string(&summary).is_ok());
    }
    rates.forget_intervals();
    assert_eq!(running(&rates, 20.0).samples, 0);
}
