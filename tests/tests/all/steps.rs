//! Checkpoints of single steps: which ones a run keeps, and commands that read one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use vljepa_recipes::RunDirectory;

use crate::programs::{Trial, command, has_checkpoint, small_set, text, wait_until};
use crate::resume::{signal, wait_for_workers};
use crate::user_errors::refused;

/// 5 steps of 8 samples and 7 steps of 10, each scored and saved. Of the checkpoints, the last, the
/// two best, and those of steps 3 (24 samples), 5 and 12 (ends of stages) and 9 (80 samples) stay.
const KEPT: &str = "
stages:
  - {name: pictures, steps: 5, batch: 8, frames: 4, mixture: {images: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
  - {name: clips, steps: 7, batch: 10, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 2e-3}}
logging: {every_steps: 1}
checkpoints:
  every_steps: 50
  keep: 1
  keep_best: {metric: text_to_video_r5, count: 2}
  keep_at: {stage_ends: true, samples_seen: [20, 75]}
cluster: {ranks_per_node: 2}
evaluation:
  every_steps: 1
  tasks: ";
const LAST: u64 = 12;
const LIMIT: Duration = Duration::from_secs(120);

fn trial(recipe: &str) -> Trial {
    let shards = small_set().join("eval/retrieval.tar");
    let task = "name: text_to_video, kind: retrieval, query: describe the video, limit: 40";
    Trial::new(&format!("{recipe}[{{{task}, shards: {}}}]\n", shards.display()))
}

fn scores(run: &RunDirectory) -> BTreeMap<u64, f64> {
    (1..=LAST).map(|step| (step, run.score(step, "text_to_video_r5").unwrap())).collect()
}

#[test]
fn a_run_that_was_stopped_and_killed_keeps_the_checkpoints_of_an_undisturbed_run() {
    let trial = trial(KEPT);
    trial.complete("undisturbed", &[]);
    let run = trial.path("disturbed");
    let launch = |attempt: u32| {
        // The steps are slow, so that the run does not end before the signal.
        let slower = format!("slow:rank=0,step=0,seconds=0.1,attempt={attempt}");
        trial.launch("disturbed", &[]).args(["--drill", &slower]).spawn().unwrap()
    };
    // The stop comes between the save and the evaluation of a step.
    let mut child = launch(1);
    wait_until(&mut child, LIMIT, "the checkpoint of step 3", || has_checkpoint(&run, 3));
    signal(&child, Signal::SIGINT);
    child.wait().unwrap();
    assert!(!run.join("completed.json").exists(), "the run was stopped on its way");
    let mut child = launch(2);
    wait_until(&mut child, LIMIT, "the checkpoint of step 9", || has_checkpoint(&run, 9));
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    wait_for_workers(&run);
    trial.complete("disturbed", &[]);

    let [one, other] = ["undisturbed", "disturbed"].map(|run| {
        let run = RunDirectory::open(&trial.path(run)).unwrap();
        (run.checkpoint_steps(), scores(&run))
    });
    assert_eq!(one, other);
    trial.assert_same_bits("undisturbed", "disturbed", LAST);
    let (steps, scores) = one;
    let mut by_score: Vec<_> = scores.into_iter().collect();
    by_score.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let best = by_score.iter().take(2).map(|(step, _)| *step);
    let wanted: BTreeSet<u64> = [3, 5, 9, LAST].into_iter().chain(best).collect();
    assert_eq!(steps, wanted.into_iter().collect::<Vec<_>>(), "{by_score:?}");
}

/// Three steps of 4 samples, each with a checkpoint; the first and the last are scored.
const QUICK: &str = "
stages:
  - {name: one, steps: 3, batch: 4, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 1e-2}}
checkpoints: {every_steps: 1}
cluster: {ranks_per_node: 1}
evaluation:
  every_steps: 0
  at_samples: [3]
  tasks: ";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Runs `vljepa-launch` and returns the JSON that it prints.
fn printed(arguments: &[&str]) -> Value {
    let output = command("vljepa-launch").args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn commands_read_the_checkpoint_of_the_step_that_they_name() {
    let trial = trial(QUICK);
    trial.complete("run", &[]);
    let path = trial.path("run");
    let run = path.to_str().unwrap();
    let file = |name: &str| path.join(name);
    let evaluation = |step: u64| file(&format!("evaluations/step-{step:08}.json"));
    assert!(evaluation(1).exists() && !evaluation(2).exists() && evaluation(3).exists());

    let (newest, shown) = (json(&file("scores.json")), json(&file("samples.json")));
    let first = json(&evaluation(1));
    for (step, wanted) in [(1, Some(&first)), (2, None), (3, Some(&newest))] {
        let said = printed(&["evaluate", run, "--step", &step.to_string()]);
        assert_eq!(said["step"], step);
        assert_eq!(said["scores"], json(&evaluation(step)));
        assert!(wanted.is_none_or(|wanted| said["scores"] == *wanted), "{said}");
    }
    assert_eq!(json(&file("scores.json")), newest, "the newest scores are still the newest");
    assert_eq!(json(&file("samples.json")), shown);
    assert_eq!(printed(&["evaluate", run])["step"], 3);

    let clips = small_set().join("eval/retrieval.tar");
    let search = ["search", run, clips.to_str().unwrap(), "a red circle", "--limit", "1"];
    let best = |step: &[&str]| printed(&[&search[..], step].concat());
    let [one, three] = ["1", "3"].map(|step| best(&["--step", step]));
    assert_eq!((&one["step"], &three["step"]), (&1.into(), &3.into()));
    assert_eq!(best(&[]), three);
    assert_ne!(one["results"][0]["score"], three["results"][0]["score"]);

    let exported = |step: &str| {
        let folder = trial.path(&format!("export-{step}"));
        let said = printed(&["export", run, folder.to_str().unwrap(), "--step", step]);
        assert_eq!(said["step"].to_string(), step);
        let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
        let samples = 4 * step.parse::<u64>().unwrap();
        assert!(card.contains(&format!("step {step}, {samples} samples")), "{card}");
        (
            card.contains("text_to_video_r1"),
            std::fs::read(folder.join("predictor/model.safetensors")),
        )
    };
    let (two, three) = (exported("2"), exported("3"));
    assert!(two.0 && three.0, "both steps have scores");
    assert_ne!(two.1.unwrap(), three.1.unwrap());
}

#[test]
fn a_step_without_a_whole_checkpoint_is_refused_with_the_steps_that_have_one() {
    let trial = trial(QUICK);
    trial.complete("run", &["evaluation.at_samples=[]", "evaluation.tasks=[]"]);
    let (path, out) = (trial.path("run"), trial.path("out"));
    let (run, out) = (path.to_str().unwrap(), out.to_str().unwrap());
    let tar = small_set().join("eval/heldout.tar");
    let tar = tar.to_str().unwrap();
    let commands: [&[&str]; 5] = [
        &["evaluate", run],
        &["ask", run, tar, "what?", "--answers", "a,b"],
        &["caption", run, tar],
        &["search", run, tar, "a circle"],
        &["export", run, out],
    ];
    for arguments in commands {
        let said = ["has no checkpoint of step 7", "those of the steps 1, 2, 3"];
        refused(&[arguments, &["--step", "7"]].concat(), &said);
    }
    std::fs::remove_file(path.join("checkpoints/step-00000002/rank-0000.safetensors")).unwrap();
    let said = ["step-00000002: does not verify", "is missing", "the checkpoints of 1, 3"];
    refused(&["export", run, out, "--step", "2"], &said);
    assert!(!Path::new(out).exists());
}
