//! Collapse of a trained Y-encoder without negatives: `VICReg` and `SIGReg` prevent it, the gauges
//! show it, and the rule of the recipe ends the run.

use crate::programs::{Trial, text};

/// 80 steps on one rank, with a line of metrics every 10 steps.
const NO_NEGATIVES: &str = "
loss: {mask_equal_targets: false}
stages:
  - {name: clips, steps: 80, batch: 32, frames: 2, mixture: {images: 1}, mixing: batch, learning_rate: {peak: 3e-3}}
evaluation: {tasks: []}
logging: {every_steps: 10, collapse: {effective_rank_below: 1.1, lines: 2, action: stop}}
cluster: {ranks_per_node: 1}
";

/// Effective ranks of predictions and targets in each line of metrics.
fn effective_ranks(trial: &Trial, run: &str) -> Vec<[f64; 2]> {
    let lines = std::fs::read_to_string(trial.path(run).join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        ["predicted", "target"].map(|side| line["gauges"][side]["effective_rank"].as_f64().unwrap())
    };
    lines.lines().map(line).collect()
}

#[test]
fn regularisers_prevent_the_collapse_that_the_gauges_show_and_the_rule_ends() {
    let trial = Trial::new(NO_NEGATIVES);
    for kind in ["vic_reg", "sig_reg"] {
        trial.complete(kind, &[&format!("loss.kind={kind}")]);
        let [predicted, target] = *effective_ranks(&trial, kind).last().unwrap();
        assert!(predicted.min(target) > 1.5, "{kind}: {predicted} {target}");
    }
    // Without its variance and covariance terms VICReg is the squared distance.
    let distance = ["loss.kind=vic_reg", "loss.vic_reg.variance=1e-9", "loss.vic_reg.covariance=0"];
    let output = trial.launch("distance", &distance).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("the embeddings have collapsed: at step"), "{said}");
    assert!(said.contains("logging.collapse"), "{said}");
    assert!(said.contains("another attempt would end the same way"), "{said}");
    let ranks = effective_ranks(&trial, "distance");
    let [last, before] = [1, 2].map(|i| ranks[ranks.len() - i]);
    assert!(last[0].min(last[1]) < 1.1 && before[0].min(before[1]) < 1.1, "{ranks:?}");
}

#[test]
fn a_step_draws_the_same_directions_after_a_resume() {
    let trial = Trial::new(NO_NEGATIVES);
    let sets = [
        "loss.kind=sig_reg",
        "stages.0.steps=6",
        "logging.every_steps=1",
        "checkpoints.every_steps=2",
        "logging.collapse.action=warn",
    ];
    trial.complete("undisturbed", &sets);
    let output = trial.launch("killed", &sets).args(["--drill", "kill:rank=0,step=5"]).output();
    let said = text(&output.unwrap());
    // The newest checkpoint may still be being written when the rank is killed.
    let log = trial.path("killed").join("logs/rank-0000-attempt-2.log");
    let second = std::fs::read_to_string(log).unwrap();
    assert!(second.contains("continuing from step-0000000"), "from a checkpoint: {said}");
    assert_eq!(trial.losses("undisturbed"), trial.losses("killed"));
    trial.assert_same_bits("undisturbed", "killed", 6);
}
