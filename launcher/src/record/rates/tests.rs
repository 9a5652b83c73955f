//! Tests of rates on made-up histories. Times are seconds after midnight.

use std::collections::BTreeMap;

use vljepa_recipes::protocol::{Phase, Resumed};
use vljepa_recipes::schema::{Recipe, Scheduler};

use super::{LoggedInterval, Rates, Recent, Spent, Summary, steps_again};
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
    assert_eq!(rates.summary(now(3.0), true).recent_intervals, 2);
    let slow = [(Phase::Forward, 2.0)];
    rates.interval(interval(103.0, 30, &slow));
    let summary = rates.summary(now(104.0), true);
    assert!(close(summary.recent_samples_per_s, 40.0) && summary.recent_intervals == 1);
    let second = LoggedInterval { stage: "second".to_owned(), ..interval(110.0, 110, &STEPS) };
    rates.interval(second);
    let summary = rates.summary(now(111.0), true);
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
    let summary = rates.summary(now(25.0), true);
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
    assert!((rates.summary(now(1e6), false).elapsed_s - 11.0).abs() < 1e-6);
}

#[test]
fn lost_steps_and_the_time_of_the_restart_are_counted() {
    // Lines of the steps 20, 30 and 40 existed; the checkpoint is of step 20.
    let resumed = Resumed {
        from_step: 20,
        lost_steps: 20,
        lost_s: 2.0,
        kept_s: 0.0,
        lost_until: Some(time(5.0)),
    };
    let events = [
        started(0.0, 1),
        ended(8.0, 1, AttemptOutcome::Failed, 42),
        at(8.0, 1, Event::Restart { delay_s: 1.0 }),
        started(9.0, 2),
        at(11.0, 2, Event::Resumed(resumed)),
    ];
    let kept = [interval(2.0, 10, &STEPS), interval(3.0, 20, &STEPS)];
    let again = [(Phase::Start, 1.0), (Phase::Data, 0.25), (Phase::Forward, 0.75)];
    let mut rates = rates(&events, &kept);
    rates.interval(interval(14.0, 30, &again));
    let summary = rates.summary(now(14.0), true);
    assert_eq!(summary.lost_steps, 22, "two of them were not logged");
    // Thirty kept steps took 3 s, so the two took 0.2 s.
    let expected = Spent {
        steps_s: 3.0 * 0.75,
        data_wait_s: 3.0 * 0.25,
        start_up_s: 1.0,
        lost_work_s: 2.2,
        restarts_s: (13.0 - 3.0) - 2.2,
        ..Spent::default()
    };
    assert_spent(&summary, 14.0, expected);
    assert_eq!(steps_again(&Resumed { from_step: 20, ..Resumed::default() }, 10), 0);
}

#[test]
fn a_run_whose_launcher_was_killed_loses_the_time_up_to_its_next_first_step() {
    let resumed = Resumed {
        from_step: 10,
        lost_steps: 20,
        lost_s: 2.0,
        kept_s: 0.5,
        lost_until: Some(time(4.5)),
    };
    let events = [started(0.0, 1), started(60.0, 2), at(61.0, 2, Event::Resumed(resumed))];
    let intervals = [interval(2.0, 10, &STEPS), interval(63.0, 20, &STEPS)];
    let summary = rates(&events, &intervals).summary(now(63.0), true);
    let expected = Spent {
        steps_s: 1.5 + 0.5,
        data_wait_s: 0.5,
        start_up_s: 1.0,
        lost_work_s: 2.0,
        restarts_s: 60.0 - 2.5,
        ..Spent::default()
    };
    assert_eq!(summary.lost_steps, 20);
    assert_spent(&summary, 63.0, expected);
}

#[test]
fn a_stopped_run_loses_nothing_and_its_pause_is_shown() {
    let saved = Event::Saved { step: 13, name: "s".to_owned(), stall_s: 0.2, durable_s: 0.3 };
    let resumed = Resumed { from_step: 13, ..Resumed::default() };
    let events = [
        started(0.0, 1),
        at(2.8, 1, saved),
        ended(3.0, 1, AttemptOutcome::Stopped, 13),
        started(103.0, 2),
        at(104.0, 2, Event::Resumed(resumed)),
    ];
    let intervals = [interval(2.0, 10, &STEPS), interval(106.0, 20, &STEPS)];
    let rates = rates(&events, &intervals);
    let summary = rates.summary(now(106.0), true);
    let expected = Spent {
        steps_s: 1.5 + 0.8,
        data_wait_s: 0.5,
        checkpoints_s: 0.2,
        start_up_s: 1.0 + 2.0,
        stopped_s: 100.0,
        ..Spent::default()
    };
    assert_eq!(summary.lost_steps, 0);
    assert_spent(&summary, 106.0, expected);
}

#[test]
fn the_time_in_slurms_queue_is_shown() {
    let mut recipe = recipe();
    recipe.cluster.scheduler = Scheduler::Slurm;
    let mut rates = Rates::new(&recipe);
    rates.event(&at(0.0, 1, Event::Submitted { job: "7".to_owned() }));
    let waiting = rates.summary(now(30.0), true);
    assert_spent(&waiting, 30.0, Spent { queue_s: 30.0, ..Spent::default() });
    assert!(waiting.left.is_none() && waiting.whole_run_samples_per_s.is_none());
    rates.event(&started(40.0, 1));
    rates.event(&ended(50.0, 1, AttemptOutcome::Stopped, 0));
    // The job was requeued at its time limit, and waits again.
    let requeued = rates.summary(now(60.0), true);
    let expected = Spent { queue_s: 50.0, start_up_s: 10.0, ..Spent::default() };
    assert_spent(&requeued, 60.0, expected);
    // Somebody stopped it then, and submitted it anew: the time before was no wait.
    rates.event(&at(80.0, 2, Event::Submitted { job: "8".to_owned() }));
    rates.event(&started(100.0, 2));
    let expected = Spent { queue_s: 60.0, start_up_s: 15.0, stopped_s: 30.0, ..Spent::default() };
    assert_spent(&rates.summary(now(105.0), true), 105.0, expected);
}

#[test]
fn a_completed_run_ends_with_its_evaluation() {
    let values = BTreeMap::new();
    let events = [
        started(0.0, 1),
        at(5.0, 1, Event::Scores { step: 10, values }),
        ended(6.0, 1, AttemptOutcome::Completed, 10),
    ];
    let summary = rates(&events, &[interval(2.0, 10, &STEPS)]).summary(now(1e5), false);
    let expected = Spent {
        steps_s: 0.75,
        data_wait_s: 0.25,
        evaluation_s: 3.0,
        start_up_s: 1.0,
        not_logged_s: 1.0,
        ..Spent::default()
    };
    assert_spent(&summary, 6.0, expected);
}

#[test]
fn lines_that_were_not_dropped_count_once() {
    let again = [interval(2.0, 10, &STEPS), interval(3.0, 20, &STEPS), interval(9.0, 10, &STEPS)];
    let summary = rates(&[started(0.0, 1), started(7.0, 2)], &again).summary(now(9.0), true);
    let steps_s = summary.spent.steps_s;
    assert!((steps_s - 1.5).abs() < 1e-6 && (summary.spent.lost_work_s - 1.0).abs() < 1e-6);
    assert_eq!(summary.samples, 80);
}

#[test]
fn metrics_without_events_have_rates() {
    let intervals = [interval(2.0, 10, &STEPS), interval(3.0, 20, &STEPS)];
    let summary = rates(&[], &intervals).summary(now(4.0), true);
    assert!(close(summary.recent_samples_per_s, 80.0));
    let expected = Spent { steps_s: 1.5, data_wait_s: 0.5, not_logged_s: 1.0, ..Spent::default() };
    assert_spent(&summary, 3.0, expected);
    assert_spent(&rates(&[], &[]).summary(now(4.0), true), 0.0, Spent::default());
}

#[test]
fn the_time_left_scales_with_the_operations_of_later_stages() {
    let rates = rates(&[started(0.0, 1)], &[interval(2.0, 50, &STEPS)]);
    let left = rates.summary(now(2.0), true).left.unwrap();
    assert!((left.stage_s - 50.0 * 8.0 / 80.0).abs() < 1e-9, "{left:?}");
    assert_eq!(left.later_stages, 1);
    // The stages read the same samples, so only their numbers differ.
    assert!((left.later_stages_s - 50.0 * 4.0 / 80.0).abs() < 1e-9, "{left:?}");
    let mut longer = recipe();
    longer.stages[1].frames *= 4;
    let mut rates = Rates::new(&longer);
    rates.interval(interval(2.0, 50, &STEPS));
    let more = rates.summary(now(2.0), true).left.unwrap();
    assert!(more.later_stages_s > 2.0 * left.later_stages_s, "{more:?}");
    // At the end of a stage the recent rate is still that of the stage before.
    rates.interval(interval(3.0, 100, &STEPS));
    let last = rates.summary(now(3.0), true).left.unwrap();
    assert_eq!(last.later_stages, 0);
    assert!((last.stage_s - more.later_stages_s).abs() < 1e-9, "{last:?}");
    rates.interval(interval(4.0, 150, &STEPS));
    assert_eq!(rates.summary(now(4.0), true).left, None);
}

#[test]
fn damaged_numbers_and_times_do_not_end_the_program() {
    let huge = [(Phase::Start, 1e308), (Phase::Forward, 1e308), (Phase::Data, 1e308)];
    let mut broken = interval(2.0, u64::MAX, &huge);
    (broken.samples_per_s, broken.samples) = (1e308, u64::MAX);
    let resumed =
        Resumed { from_step: u64::MAX, lost_s: -1e308, kept_s: 1e308, ..Resumed::default() };
    let events = [
        started(10.0, 1),
        ended(5.0, 1, AttemptOutcome::Failed, u64::MAX),
        started(1.0, 2),
        at(0.5, 2, Event::Resumed(resumed)),
        Line { time: "yesterday".to_owned(), ..started(0.0, 3) },
    ];
    let no_time = LoggedInterval { time: "tomorrow".to_owned(), ..broken.clone() };
    let mut rates = rates(&events, &[broken, no_time]);
    for is_alive in [true, false] {
        let summary = rates.summary(now(-5.0), is_alive);
        assert!(serde_json::to_string(&summary).is_ok());
    }
    rates.forget_intervals();
    assert_eq!(rates.summary(now(20.0), true).samples, 0);
}
