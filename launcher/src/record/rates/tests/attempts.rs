//! Tests of the time of runs with several attempts, and of runs that have ended.

use std::collections::BTreeMap;

use vljepa_recipes::protocol::{Phase, Resumed};
use vljepa_recipes::schema::Scheduler;

use super::{STEPS, assert_spent, at, ended, interval, now, rates, recipe, running, started, time};
use crate::record::events::Event;
use crate::record::provenance::AttemptOutcome;
use crate::record::rates::{Activity, Rates, Spent, steps_again};

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
    let summary = running(&rates, 14.0);
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
    let summary = running(&rates(&events, &intervals), 63.0);
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
    let summary = running(&rates, 106.0);
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
    let waiting = rates.summary(now(30.0), Activity::Job);
    assert_spent(&waiting, 30.0, Spent { queue_s: 30.0, ..Spent::default() });
    assert!(waiting.left.is_none() && waiting.whole_run_samples_per_s.is_none());
    rates.event(&started(40.0, 1));
    rates.event(&ended(50.0, 1, AttemptOutcome::Stopped, 0));
    // The job was requeued at its time limit, and waits again.
    let requeued = rates.summary(now(60.0), Activity::Job);
    let expected = Spent { queue_s: 50.0, start_up_s: 10.0, ..Spent::default() };
    assert_spent(&requeued, 60.0, expected);
    // Somebody stopped it then, and submitted it anew: the time before was no wait.
    rates.event(&at(80.0, 2, Event::Submitted { job: "8".to_owned() }));
    rates.event(&started(100.0, 2));
    let expected = Spent { queue_s: 60.0, start_up_s: 15.0, stopped_s: 30.0, ..Spent::default() };
    assert_spent(&running(&rates, 105.0), 105.0, expected);
}

#[test]
fn a_completed_run_ends_with_its_evaluation() {
    let values = BTreeMap::new();
    let events = [
        started(0.0, 1),
        at(5.0, 1, Event::Scores { step: 10, values }),
        ended(6.0, 1, AttemptOutcome::Completed, 10),
    ];
    let summary = rates(&events, &[interval(2.0, 10, &STEPS)]).summary(now(1e5), Activity::Nothing);
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

/// Two intervals, the restart of a failed attempt, and the end of the run.
fn restarted(outcome: AttemptOutcome) -> Rates {
    let events = [
        started(0.0, 1),
        ended(4.0, 1, AttemptOutcome::Failed, 20),
        at(4.0, 1, Event::Restart { delay_s: 1.0 }),
        started(5.0, 2),
        ended(10.0, 2, outcome, 30),
    ];
    rates(&events, &[interval(2.0, 10, &STEPS), interval(8.0, 20, &STEPS)])
}

#[test]
fn a_lock_does_not_prolong_a_run_that_has_ended() {
    for outcome in [AttemptOutcome::Completed, AttemptOutcome::Stopped, AttemptOutcome::Failed] {
        for activity in [Activity::Nothing, Activity::Lock, Activity::Job] {
            let summary = restarted(outcome).summary(now(5000.0), activity);
            let is_over = (summary.elapsed_s - 10.0).abs() < 1e-6 && !summary.is_running;
            assert!(is_over, "{outcome:?}, {activity:?}: {summary:#?}");
        }
    }
    // The launcher waits before it restarts.
    let mut rates = restarted(AttemptOutcome::Failed);
    rates.event(&at(10.0, 2, Event::Restart { delay_s: 60.0 }));
    let waits = running(&rates, 20.0);
    assert!((waits.elapsed_s - 20.0).abs() < 1e-6 && waits.is_running, "{waits:#?}");
    assert!((rates.summary(now(20.0), Activity::Nothing).elapsed_s - 10.0).abs() < 1e-6);
    // The run was submitted, and its job waits.
    let mut rates = restarted(AttemptOutcome::Failed);
    rates.event(&at(15.0, 3, Event::Submitted { job: "7".to_owned() }));
    let waits = rates.summary(now(20.0), Activity::Job);
    assert!((waits.spent.queue_s - 5.0).abs() < 1e-6 && waits.is_running, "{waits:#?}");
}

#[test]
fn the_end_of_a_run_that_failed_for_good_is_no_restart() {
    let only = |outcome| {
        let events = [started(0.0, 1), ended(9.0, 1, outcome, 20)];
        rates(&events, &[interval(2.0, 10, &STEPS)])
    };
    let expected = Spent {
        steps_s: 0.75,
        data_wait_s: 0.25,
        start_up_s: 1.0,
        not_logged_s: 7.0,
        ..Spent::default()
    };
    for outcome in [AttemptOutcome::Failed, AttemptOutcome::Killed, AttemptOutcome::Unfinished] {
        assert_spent(&only(outcome).summary(now(50.0), Activity::Nothing), 9.0, expected);
    }
    // With another attempt, or one that is announced, it is one.
    let mut rates = only(AttemptOutcome::Failed);
    rates.event(&at(9.0, 1, Event::Restart { delay_s: 1.0 }));
    let expected = Spent { not_logged_s: 0.0, restarts_s: 7.0, ..expected };
    assert_spent(&rates.summary(now(50.0), Activity::Nothing), 9.0, expected);
    rates.event(&started(10.0, 2));
    let expected = Spent { restarts_s: 8.0, ..expected };
    assert_spent(&rates.summary(now(50.0), Activity::Nothing), 10.0, expected);
}

fn joined(seconds: f64, attempt: u32) -> crate::record::events::Line {
    let (host, device, build) = ("here".to_owned(), "cpu".to_owned(), "1".to_owned());
    at(seconds, attempt, Event::RankJoined { rank: 0, host, pid: 1, device, build })
}

#[test]
fn steps_before_the_first_logged_line_are_no_start_up() {
    let mut rates = rates(&[started(0.0, 1), joined(2.0, 1), joined(3.0, 1)], &[]);
    let expected = Spent { start_up_s: 3.0, not_logged_s: 57.0, ..Spent::default() };
    assert_spent(&running(&rates, 60.0), 60.0, expected);
    // A fault loses them: nothing was logged.
    rates.event(&ended(60.0, 1, AttemptOutcome::Failed, 9));
    rates.event(&at(60.0, 1, Event::Restart { delay_s: 1.0 }));
    rates.event(&started(61.0, 2));
    rates.event(&joined(63.0, 2));
    let expected = Spent { start_up_s: 3.0, restarts_s: 60.0, not_logged_s: 7.0, ..expected };
    assert_spent(&running(&rates, 70.0), 70.0, expected);
    // Weights of another run are loaded, or a checkpoint.
    let resumed = Resumed { from_step: 0, ..Resumed::default() };
    rates.event(&at(66.0, 2, Event::Resumed(resumed)));
    let known = running(&rates, 70.0).spent;
    assert!((known.not_logged_s - 4.0).abs() < 1e-6, "{known:#?}");
    // No rank has connected yet.
    let starting = running(&super::rates(&[started(0.0, 1)], &[]), 5.0);
    assert_spent(&starting, 5.0, Spent { start_up_s: 5.0, ..Spent::default() });
}
