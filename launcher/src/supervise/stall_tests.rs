//! Tests of the limits and of the choice of the hung rank, with simulated time.

use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{CollectiveKind, Phase};

use super::{Hang, Limits, Position, StepTimes, find_hang, find_wait};

const SECOND: Duration = Duration::from_secs(1);

/// The default limits for a run of two stages with 100 steps each.
fn limits() -> Limits {
    Limits {
        floor: SECOND * 20,
        start: SECOND * 600,
        silence: SECOND * 10,
        start_silence: SECOND * 60,
        stage_ends: vec![100, 200],
    }
}

fn times(steps: &[u32]) -> StepTimes {
    let mut times = StepTimes::default();
    steps.iter().for_each(|s| times.step(&limits(), 5, SECOND * *s));
    times
}

/// Position of a rank that has been in a phase for `still` seconds and sent its last message
/// `heard` seconds ago.
fn position(step: u64, phase: Phase, still: u32, heard: u32, now: Instant) -> Position {
    let collective = 0;
    Position {
        step,
        phase,
        since: now - SECOND * still,
        last_heard: now - SECOND * heard,
        collective,
        inside: (phase == Phase::Collective).then_some(CollectiveKind::AllGather),
        work: 0,
    }
}

fn hang(ranks: &[Position], times: &StepTimes, now: Instant) -> Option<Hang> {
    find_hang(ranks.iter().enumerate(), times, &limits(), now)
}

fn hung(ranks: &[Position], times: &StepTimes, now: Instant) -> Option<(usize, Phase)> {
    hang(ranks, times, now).map(|h| (h.rank, h.phase))
}

fn later() -> Instant {
    Instant::now() + SECOND * 1000
}

#[test]
fn the_limit_is_learned_and_within_half_a_minute_of_the_step_time() {
    let limit = |steps: &[u32], phase| times(steps).limit(&limits(), 7, phase);
    assert_eq!(limit(&[2, 4, 2], Phase::Forward), SECOND * 26);
    assert_eq!(limit(&[2, 4, 2], Phase::Data), SECOND * 66);
    assert_eq!(limit(&[], Phase::Forward), SECOND * 600);
    assert_eq!(limit(&[1], Phase::Evaluation), SECOND * 600);
    for step in 0..=20 {
        for phase in [Phase::Forward, Phase::Collective, Phase::Backward, Phase::Optimizer] {
            assert!(limit(&[step], phase) <= SECOND * step + SECOND * 30);
        }
    }
    let mut forgets = times(&[20]);
    (0..50).for_each(|_| forgets.step(&limits(), 6, SECOND));
    assert_eq!(forgets.limit(&limits(), 7, Phase::Forward), SECOND * 20 + SECOND * 3 / 2);
    forgets.pause(Phase::Load, SECOND * 900);
    forgets.pause(Phase::Evaluation, SECOND * 100);
    assert_eq!(forgets.limit(&limits(), 7, Phase::Checkpoint), SECOND * 1000);
}

#[test]
fn a_rank_that_waits_for_data_is_named_within_half_a_minute_and_hung_later() {
    let now = later();
    let ranks = |seconds: u32| {
        let data = position(7, Phase::Data, seconds, 1, now);
        [position(7, Phase::Collective, seconds + 1, 1, now), data]
    };
    let named = |seconds: u32, steps: &[u32]| {
        find_wait(ranks(seconds).iter().enumerate(), &times(steps), &limits(), now)
    };
    assert_eq!(named(22, &[2]), None);
    let limit = times(&[2]).limit(&limits(), 7, Phase::Data);
    assert_eq!(named(24, &[2]), Some((1, 7, [SECOND * 24, limit])));
    assert_eq!(hung(&ranks(24), &times(&[2]), now), None);
    assert_eq!(hung(&ranks(64), &times(&[2]), now), Some((1, Phase::Data)));
    assert_eq!(named(500, &[]), None, "the first step of a stage fills caches");
}

#[test]
fn the_first_step_of_a_stage_has_the_time_of_a_start() {
    let mut learned = times(&[1]);
    assert_eq!(learned.limit(&limits(), 99, Phase::Forward), SECOND * 20 + SECOND * 3 / 2);
    assert_eq!(learned.limit(&limits(), 100, Phase::Forward), SECOND * 600);
    learned.step(&limits(), 100, SECOND * 30);
    assert_eq!(learned.limit(&limits(), 101, Phase::Forward), SECOND * 65);
}

#[test]
fn a_stopped_rank_is_named_after_ten_seconds_although_the_others_wait_in_a_collective() {
    let now = later();
    let ranks = |silent: u32| {
        [
            position(7, Phase::Collective, silent, 1, now),
            position(7, Phase::Backward, silent, silent, now),
            position(7, Phase::Collective, silent, 0, now),
        ]
    };
    assert_eq!(hung(&ranks(10), &times(&[1]), now), None);
    assert_eq!(hung(&ranks(11), &times(&[1]), now), Some((1, Phase::Backward)));
    let text = hang(&ranks(11), &times(&[1]), now).unwrap().to_string();
    assert_eq!(text, "no progress for 11 s; it sends no heartbeats");
}

#[test]
fn the_rank_behind_is_named_when_all_report() {
    let now = later();
    let ranks = |still| {
        [
            position(8, Phase::Collective, still + 1, 1, now),
            position(7, Phase::Backward, still, 1, now),
        ]
    };
    assert_eq!(hung(&ranks(22), &times(&[1]), now), Some((1, Phase::Backward)));
    assert_eq!(hung(&ranks(20), &times(&[1]), now), None);
    assert_eq!(hung(&ranks(22), &times(&[7]), now), None, "slow steps learn a longer limit");
}

#[test]
fn the_rank_that_is_behind_in_collectives_is_named_with_both_numbers() {
    let now = later();
    let at = |collective, still| Position {
        collective,
        ..position(7, Phase::Collective, still, 1, now)
    };
    let found = hang(&[at(31, 40), at(31, 41), at(30, 30)], &times(&[1]), now).unwrap();
    assert_eq!(found.rank, 2);
    let text = found.to_string();
    let waits = "it has reached collective 30, others wait in collective 31 (all-gather)";
    assert!(text.ends_with(waits), "{text}");
    let all = hang(&[at(31, 40), at(31, 41)], &times(&[1]), now).unwrap().to_string();
    assert!(
        all.ends_with(
            "all ranks are in collective 31 (all-gather): the network between them hangs"
        ),
        "{all}"
    );
}

#[test]
fn silence_in_an_evaluation_is_a_hang_but_its_length_is_not() {
    let now = later();
    let reporting = [position(9, Phase::Evaluation, 300, 1, now)];
    assert_eq!(hung(&reporting, &times(&[1]), now), None);
    let waiting =
        [position(9, Phase::Evaluation, 300, 1, now), position(9, Phase::Collective, 300, 1, now)];
    assert_eq!(hung(&waiting, &times(&[1]), now), None);
    let silent = [waiting[0].clone(), position(9, Phase::Evaluation, 300, 11, now)];
    assert_eq!(hung(&silent, &times(&[1]), now), Some((1, Phase::Evaluation)));
}

#[test]
fn saving_and_starting_and_storage_that_pauses_are_no_hangs() {
    let now = later();
    for (phase, still) in [(Phase::Checkpoint, 599), (Phase::Data, 61)] {
        let ranks =
            [position(9, phase, still, 2, now), position(9, Phase::Collective, still, 2, now)];
        assert_eq!(hung(&ranks, &times(&[1]), now), None, "{phase:?}");
    }
    let starting = [position(0, Phase::Start, 59, 59, now), position(0, Phase::Start, 59, 0, now)];
    assert_eq!(hung(&starting, &times(&[]), now), None);
    for phase in [Phase::Start, Phase::Load] {
        let ranks =
            |heard| [position(0, phase, heard, heard, now), position(0, phase, heard, 0, now)];
        assert_eq!(hung(&ranks(59), &times(&[]), now), None, "{phase:?}");
        assert_eq!(hung(&ranks(61), &times(&[]), now), Some((0, phase)));
    }
}

#[test]
fn heartbeats_that_a_loaded_machine_delays_are_no_hang() {
    let now = later();
    let late = |heard: [u32; 3]| heard.map(|heard| position(3, Phase::Forward, 9, heard, now));
    assert_eq!(hung(&late([0, 4, 9]), &times(&[1]), now), None);
    // No rank is heard: this machine's own network may be the cause, so the limit is doubled.
    assert_eq!(hung(&late([11, 12, 19]), &times(&[1]), now), None);
    assert_eq!(hung(&late([21, 21, 21]), &times(&[1]), now), Some((0, Phase::Forward)));
}
