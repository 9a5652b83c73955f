//! Faults of disks, files and numbers: damaged checkpoints, full disks, unreadable samples and NaN
//! gradients.

use std::path::{Path, PathBuf};

use crate::breakage::{SmallDisk, flip_a_bit, write_spoiled_shard};
use crate::cluster::{Cluster, LAST, TWO_STAGES, assert_same_end, report, undisturbed};
use crate::programs::{Trial, has_checkpoint};

fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

#[test]
fn damaged_and_incomplete_checkpoints_are_passed_over_and_named() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // The steps are slow, so that the test can damage a checkpoint between its save and the kill.
    let drills = [
        "slow:rank=0,step=0,seconds=0.4",
        "kill:rank=1,step=9,phase=data",
        "slow:rank=0,step=0,seconds=0.4,attempt=2",
        "kill:rank=2,step=15,phase=forward,attempt=2",
    ];
    let mut running = cluster.launch(trial, "damaged", &[], &drills);
    running.wait_until("the second checkpoint", |run| has_checkpoint(run, 8));
    running.inject(|| {
        flip_a_bit(&checkpoint(&trial.path("damaged"), 8).join("rank-0003.safetensors"));
    });
    running.wait_until("the third checkpoint", |run| has_checkpoint(run, 12));
    running.inject(|| {
        let part = checkpoint(&trial.path("damaged"), 12).join("rank-0002.safetensors");
        std::fs::remove_file(part).unwrap();
    });
    let events = running.complete();
    assert_same_end(trial, "damaged");
    assert_eq!(events.faults().len(), 2, "{:?}", events.faults());
    let warnings: Vec<&str> =
        events.named("warning").map(|event| event["text"].as_str().unwrap()).collect();
    for (step, why) in
        [(8, "rank-0003.safetensors is damaged"), (12, "rank-0002.safetensors is missing")]
    {
        let name = format!("step-{step:08}");
        let said = warnings.iter().any(|text| text.contains(&name) && text.contains(why));
        assert!(said, "{name} {why}: {warnings:?}");
    }
    report("newest checkpoint with a flipped bit, then with a missing part", &events);
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_checkpoints_and_no_step() {
    let trial = undisturbed();
    let place = trial.path("disk");
    let _disk = SmallDisk::mount(&place, 512);
    let cluster = Cluster::up(2);
    // A save at the end of a stage is waited for, and its failure is a fault. Between the first
    // save without room and the end of the first stage, step 10, lie four steps of at least 0.4 s.
    let (often, slow) = ("checkpoints.every_steps=2", "slow:rank=0,step=0,seconds=0.4");
    let mut running = cluster.launch(trial, "disk/full", &[often], &[slow]);
    running.wait_until("the first checkpoint", |run| has_checkpoint(run, 2));
    let ballast = place.join("ballast");
    running.inject(|| fill(&ballast));
    running.wait_until("a save without room", |run| said(run, "No space left"));
    std::fs::remove_file(&ballast).unwrap();
    let events = running.complete();
    // Lines of metrics may be missing, because the disk was full, so only the bits are compared.
    trial.assert_same_bits("undisturbed", "disk/full", LAST);
    assert_eq!(events.named("attempt_started").count(), 1, "{:?}", events.faults());
    let saved = |step: &u64| has_checkpoint(&trial.path("disk/full"), *step);
    assert!(!(2..=LAST).step_by(2).all(|step| saved(&step)), "no save has failed");
}

/// Returns whether the run's events contain `words`.
fn said(run: &Path, words: &str) -> bool {
    std::fs::read_to_string(run.join("events.jsonl")).is_ok_and(|text| text.contains(words))
}

/// Fills the disk except for 256 KiB, which logs and events need.
fn fill(ballast: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(ballast).unwrap();
    let block = vec![1_u8; 1 << 16];
    let mut written = 0;
    while file.write_all(&block).is_ok() {
        written += block.len() as u64;
    }
    file.set_len(written - (1 << 18)).unwrap();
}

#[test]
fn a_nan_of_one_rank_skips_its_step_on_all_ranks() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // Both runs skip the same step and nothing else, although the NaN comes from another rank and
    // one run is killed later.
    let first = cluster.launch(trial, "nan", &[], &["nan:rank=3,step=5"]).complete();
    let drills = ["nan:rank=1,step=5", "kill:rank=2,step=11,phase=backward"];
    let other = cluster.launch(trial, "nan-other", &[], &drills).complete();
    assert_eq!([first.faults().len(), other.faults().len()], [0, 1]);
    for events in [&first, &other] {
        let mut warnings = events.named("warning").map(|event| event["text"].as_str().unwrap());
        assert!(warnings.any(|text| text.contains("step 6: gradient not finite, step skipped")));
    }
    for buffer in ["weights", "first_moment", "second_moment"] {
        let bits = |run: &str| -> Vec<u32> {
            trial.buffer(run, LAST, buffer).iter().map(|x| x.to_bits()).collect()
        };
        assert!(bits("nan") == bits("nan-other"), "{buffer} differs");
        assert!(bits("nan") != bits("undisturbed"), "{buffer}: no step was skipped");
    }
    report("NaN of one rank, and later kill -9", &other);
}

#[test]
fn a_truncated_shard_costs_the_same_samples_whatever_happens() {
    let trial = Trial::new(TWO_STAGES);
    let shard = trial.path("spoiled.tar");
    write_spoiled_shard(&shard);
    let shards = format!("data.sources.questions.shards={}", shard.display());
    let sets = [shards.as_str(), "data.bad_samples.max_fraction=1"];
    let cluster = Cluster::up(2);
    let plain = cluster.launch(&trial, "undisturbed", &sets, &[]).complete();
    let kill = "kill:rank=1,step=11,phase=collective";
    let killed = cluster.launch(&trial, "killed", &sets, &[kill]).complete();
    assert_same_end(&trial, "killed");
    assert_eq!([plain.faults().len(), killed.faults().len()], [0, 1]);
    assert!(trial.bad_samples("undisturbed") > 0);
    assert_eq!(trial.bad_samples("undisturbed"), trial.bad_samples("killed"));
    report("truncated shard, and kill -9", &killed);
}
