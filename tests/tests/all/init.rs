//! Runs that start from the weights of another run, by `init.run`, `init.export` or `init.weights`.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use vljepa_worker::rank::environment::hash_file;

use crate::breakage::flip_a_bit;
use crate::programs::{Trial, command, repository, small_set, text, wait_until};

/// A run of four steps on one rank with a frozen X-encoder, which is scored at its end.
fn trial() -> Trial {
    let set = small_set().display();
    Trial::new(&format!(
        "
stages:
  - {{name: all, steps: 4, batch: 8, frames: 4, mixture: {{clips: 1}}, learning_rate: {{peak: 2e-3}}}}
evaluation:
  tasks:
    - name: motion
      shards: {set}/eval/heldout.tar
      kind: {{classification: {{field: motion, candidates: {set}/labels/motions.json}}}}
    - {{name: retrieval, shards: {set}/eval/retrieval.tar, kind: retrieval}}
logging: {{every_steps: 1}}
checkpoints: {{every_steps: 2}}
cluster: {{ranks_per_node: 1}}
"
    ))
}

const FROZEN: &str = "model.x_encoder.trainable=false";

/// One step from other random weights and on other samples. Its learning rate is so small that no
/// weight of more than 1e-22 changes in f32, so the scores are those before the step.
const ONE_STEP: [&str; 3] = ["seed=7", "stages.0.steps=1", "stages.0.learning_rate.peak=1e-30"];

fn init(trial: &Trial, kind: &str, name: &str) -> String {
    format!("init.{kind}={}", trial.path(name).display())
}

fn export(trial: &Trial, run: &str, folder: &str) {
    let mut export = command("vljepa-launch");
    let output = export.arg("export").arg(trial.path(run)).arg(trial.path(folder)).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Scores without the hash of what was measured, which covers the seed and each bit of the weights.
fn scores(trial: &Trial, run: &str) -> Value {
    let mut scores = json(&trial.path(run).join("scores.json"));
    for score in scores.as_object_mut().unwrap().values_mut() {
        score.as_object_mut().unwrap().remove("measured").unwrap();
    }
    scores
}

fn recorded(trial: &Trial, run: &str) -> Value {
    json(&trial.path(run).join("run.json"))["files"].clone()
}

/// Asserts that the run was refused with all parts of a message, in any line breaks.
fn refused(output: &Output, parts: &[&str]) {
    let said = text(output);
    assert!(!output.status.success(), "{said}");
    let line = said.replace(['│', '×', '╰', '▶', '╭', '├', '─'], " ");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(line.contains(part), "`{part}` is missing in: {said}");
    }
}

#[test]
fn a_run_starts_with_the_weights_and_scores_of_a_run_or_of_its_export() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    export(&trial, "trained", "exported");
    let start = |run: &str, more: &[&str]| trial.complete(run, &[&ONE_STEP, more].concat());
    let (run, exported) = (init(&trial, "run", "trained"), init(&trial, "export", "exported"));
    start("of-run", &[FROZEN, &run]);
    start("of-export", &[FROZEN, &exported]);
    start("random", &[FROZEN]);
    assert_eq!(trial.losses("of-run"), trial.losses("of-export"));
    trial.assert_same_bits("of-run", "of-export", 1);
    assert_eq!(scores(&trial, "of-run"), scores(&trial, "trained"));
    assert_eq!(scores(&trial, "of-export"), scores(&trial, "trained"));
    assert_ne!(trial.losses("of-run"), trial.losses("random"));
    assert_ne!(scores(&trial, "random"), scores(&trial, "trained"));
    let frozen = |run: &str| std::fs::read(trial.path(run).join("checkpoints/frozen.safetensors"));
    assert_eq!(frozen("of-run").unwrap(), frozen("trained").unwrap());
    assert_ne!(frozen("random").unwrap(), frozen("trained").unwrap());

    // Projections and temperature are among the trained weights.
    let of = |run, step| trial.buffer(run, step, "weights");
    let apart =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(apart(&of("of-run", 1), &of("trained", 4)) < 1e-22);
    assert!(apart(&of("random", 1), &of("trained", 4)) > 1e-3);
    // A first moment that starts at zero is (1 - 0.9) times the gradient, whose norm is clipped to
    // 1. The norm of 10⁵ numbers of f32 is right to 1e-5.
    let moment = trial.buffer("of-run", 1, "first_moment");
    let norm = moment.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let wanted = 0.1 * trial.losses("of-run")[0].2.min(1.0);
    assert!((norm / wanted - 1.0).abs() < 1e-5, "{norm} {wanted}");

    // An encoder that was frozen can be trained, and one that was trained can be frozen.
    start("thawed", &["model.x_encoder.trainable=true", &run]);
    assert_eq!(scores(&trial, "thawed"), scores(&trial, "trained"));
    start("still", &[FROZEN, "model.y_encoder.update=frozen", &run]);
    assert_eq!(scores(&trial, "still"), scores(&trial, "trained"));
    assert_ne!(frozen("still").unwrap(), frozen("trained").unwrap(), "it holds the Y-encoder too");

    // Two ranks start from the same bits, and their first loss differs by rounding only: it is a
    // mean of 16 logarithms of order 1 (as in world_size.rs).
    start("two-ranks", &[FROZEN, &run, "cluster.ranks_per_node=2"]);
    assert!(of("two-ranks", 1) == of("of-run", 1));
    let (one, two) = (trial.losses("of-run")[0].1, trial.losses("two-ranks")[0].1);
    assert!((one - two).abs() < 1.2e-5, "{one} {two}");

    // The files that were read are recorded.
    let record = &recorded(&trial, "of-run")["init.run"];
    let manifest = trial.path("trained/checkpoints/step-00000004/manifest.json");
    assert_eq!(record["path"].as_str(), manifest.to_str());
    assert_eq!(record["hash"].as_str(), Some(&*hash_file(&manifest).unwrap().to_hex()));
    let records = recorded(&trial, "of-export");
    for name in ["x_encoder/model", "predictor/model", "y_encoder/model", "projections"] {
        let file = trial.path(&format!("exported/{name}.safetensors"));
        let record = &records[format!("init.export/{name}.safetensors")];
        assert_eq!(record["hash"].as_str(), Some(&*hash_file(&file).unwrap().to_hex()), "{name}");
    }
}

#[test]
fn projections_and_temperature_come_from_a_file_of_their_own() {
    let trial = trial();
    trial.complete("trained", &[]);
    export(&trial, "trained", "exported");
    let file = |name: &str| trial.path(&format!("exported/{name}.safetensors"));
    let encoders = ["x_encoder", "predictor", "y_encoder"]
        .map(|part| format!("model.{part}.weights={}", file(&format!("{part}/model")).display()));
    let encoders: Vec<&str> = encoders.iter().map(String::as_str).collect();
    let projections = format!("init.weights={}", file("projections").display());
    trial.complete("parts", &[&ONE_STEP[..], &encoders, &[&projections]].concat());
    trial.complete("whole", &[&ONE_STEP[..], &[&init(&trial, "run", "trained")]].concat());
    trial.complete("encoders", &[&ONE_STEP[..], &encoders].concat());
    assert_eq!(trial.losses("parts"), trial.losses("whole"));
    assert_ne!(trial.losses("encoders"), trial.losses("whole"));
    let wrong = format!("init.weights={}", file("predictor/model").display());
    refused(&trial.launch("wrong", &[&wrong]).output().unwrap(), &["init.weights", "are missing"]);
}

#[test]
fn weights_of_other_sizes_are_refused_by_name_before_anything_starts() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    export(&trial, "trained", "exported");
    let cases: [(&str, &str, &[&str]); 6] = [
        ("run", "model.embed_dim=48", &["has shape [64, 64]", "needs [48, 64]"]),
        ("export", "model.embed_dim=48", &["has shape [64, 64]", "needs [48, 64]"]),
        ("run", "model.predictor.layers=[0, 3]", &["tensors are missing", "predictor.layers.2."]),
        ("export", "model.predictor.layers=[0, 3]", &["tensors are missing", "layers.2."]),
        ("run", "model.predictor.layers=[0, 1]", &["does not use", "predictor.layers.1."]),
        ("export", "model.predictor.layers=[0, 1]", &["does not use", "layers.1."]),
    ];
    for (kind, size, parts) in cases {
        let folder = if kind == "run" { "trained" } else { "exported" };
        let (init, key) = (init(&trial, kind, folder), format!("init.{kind}:"));
        let parts = [&[&*key, "must be the model that these weights"], parts].concat();
        for more in [&[][..], &["--dry-run"]] {
            let output = trial.launch("new", &[&init, size]).args(more).output().unwrap();
            refused(&output, &parts);
        }
        assert!(!trial.path("new").exists());
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_by_name_and_damaged_frozen_weights_are_refused() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    let init = init(&trial, "run", "trained");
    let checkpoints = trial.path("trained/checkpoints");
    flip_a_bit(&checkpoints.join("step-00000004/rank-0000.safetensors"));
    let sets = [&ONE_STEP[..], &[FROZEN, &init]].concat();
    let output = trial.launch("older", &sets).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("init.run") && said.contains("step-00000004"), "{said}");
    let path = recorded(&trial, "older")["init.run"]["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with("step-00000002/manifest.json"), "{path}");
    let of = |run, step| trial.buffer(run, step, "weights");
    let (new, old) = (of("older", 1), of("trained", 2));
    assert!(new.iter().zip(&old).all(|(a, b)| (a - b).abs() < 1e-22));
    flip_a_bit(&checkpoints.join("step-00000002/rank-0000.safetensors"));
    let output = trial.launch("none", &sets).output().unwrap();
    refused(&output, &["init.run: no checkpoint", "step-00000004", "step-00000002", "damaged"]);
    for step in ["2", "4"] {
        flip_a_bit(&checkpoints.join(format!("step-0000000{step}/rank-0000.safetensors")));
    }
    flip_a_bit(&checkpoints.join("frozen.safetensors"));
    let output = trial.launch("none", &sets).output().unwrap();
    refused(&output, &["init.run:", "frozen.safetensors is missing or damaged", "restore it"]);
    assert!(!trial.path("none").exists());
}

#[test]
fn a_run_with_a_checkpoint_continues_without_what_it_started_from() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    export(&trial, "trained", "exported");
    for (kind, from) in [("run", "trained"), ("export", "exported")] {
        let run = format!("of-{kind}");
        let init = init(&trial, kind, from);
        let sets = ["seed=7", FROZEN, &init];
        trial.complete(&run, &sets);
        let (losses, files) = (trial.losses(&run), recorded(&trial, &run));
        assert!(files.to_string().contains(&format!("init.{kind}")), "{files}");
        // As if the run had ended after its first checkpoint.
        std::fs::remove_file(trial.path(&run).join("completed.json")).unwrap();
        std::fs::remove_dir_all(trial.path(&run).join("checkpoints/step-00000004")).unwrap();
        std::fs::rename(trial.path(from), trial.path("away")).unwrap();
        let dry = trial.launch(&run, &sets).arg("--dry-run").output().unwrap();
        assert!(dry.status.success() && !text(&dry).contains("cannot start"), "{}", text(&dry));
        trial.complete(&run, &sets);
        assert_eq!(trial.losses(&run), losses);
        assert_eq!(recorded(&trial, &run), files, "the first start is recorded");
        // A reproduction starts anew, so it needs the weights.
        let mut reproduce = command("vljepa-launch");
        let output = reproduce.arg("reproduce").arg(trial.path(&run)).output().unwrap();
        refused(&output, &[&format!("init.{kind}"), "missing"]);
        std::fs::rename(trial.path("away"), trial.path(from)).unwrap();
    }
    // Weights that are never trained, and were damaged, are made again from where they came from.
    let run = trial.path("of-run");
    let frozen = run.join("checkpoints/frozen.safetensors");
    let whole = std::fs::read(&frozen).unwrap();
    flip_a_bit(&frozen);
    std::fs::remove_file(run.join("completed.json")).unwrap();
    trial.complete("of-run", &["seed=7", FROZEN, &init(&trial, "run", "trained")]);
    assert!(std::fs::read(&frozen).unwrap() == whole);
}

#[test]
fn a_restart_before_the_first_checkpoint_and_a_reproduction_start_from_the_same_checkpoint() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    let init = init(&trial, "run", "trained");
    let sets = ["seed=7", FROZEN, &init];
    trial.complete("undisturbed", &sets);
    let mut launch = trial.launch("killed", &sets);
    let output = launch.args(["--drill", "kill:rank=0,step=1"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("restart"), "{}", text(&output));
    assert_eq!(trial.losses("killed"), trial.losses("undisturbed"));
    trial.assert_same_bits("killed", "undisturbed", 4);

    let reproduce = || {
        let mut reproduce = command("vljepa-launch");
        reproduce.arg("reproduce").arg(trial.path("undisturbed")).output().unwrap()
    };
    let output = reproduce();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("reproduced: 4 of 4 logged steps"), "{}", text(&output));
    // The other run goes on and saves.
    let checkpoints = trial.path("trained/checkpoints");
    std::fs::rename(checkpoints.join("step-00000002"), checkpoints.join("step-00000006")).unwrap();
    refused(
        &reproduce(),
        &["init.run differs: restore", "step-00000004", "move newer checkpoints"],
    );
}

/// As `recipes/finetune.yaml`, small: questions with down-sampled pretraining data, cosine, equal
/// targets masked.
#[test]
fn a_finetuning_run_that_is_killed_repeats_the_undisturbed_one() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    let (init, stage) = (
        init(&trial, "run", "trained"),
        "stages=[{name: sft, steps: 12, batch: 10, frames: 4, mixing: batch, \
         mixture: {questions: 6, clips: 1, images: 1}, \
         learning_rate: {peak: 5e-4, warmup_steps: 2, schedule: cosine}}]",
    );
    let sets = [FROZEN, &init, stage, "loss.mask_equal_targets=true", "cluster.ranks_per_node=2"];
    trial.complete("undisturbed", &sets);
    let mut launch = trial.launch("killed", &sets);
    let output = launch.args(["--drill", "kill:rank=1,step=9"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("restart"), "{}", text(&output));
    assert_eq!(trial.losses("killed"), trial.losses("undisturbed"));
    trial.assert_same_bits("killed", "undisturbed", 12);
    // Without the mask, equal answers are negatives of each other.
    let unmasked = [&sets[..3], &["loss.mask_equal_targets=false", sets[4]]].concat();
    trial.complete("unmasked", &unmasked);
    assert_ne!(trial.losses("unmasked"), trial.losses("undisturbed"));
}

#[test]
fn what_is_not_there_yet_warns_a_dry_run_and_refuses_a_start() {
    let trial = trial();
    let cases = [
        ("run", "holds no run with a checkpoint", "does not exist", "train that run first"),
        ("export", "does not exist", "does not exist", "vljepa-launch export RUN"),
        ("weights", "does not exist", "there is no file", "relative to the folder"),
    ];
    for (kind, warning, error, help) in cases {
        let (init, path) = (init(&trial, kind, "nowhere"), trial.path("nowhere"));
        let named = format!("init.{kind}: ");
        let dry = trial.launch("new", &[&init]).arg("--dry-run").output().unwrap();
        let said = text(&dry);
        assert!(dry.status.success(), "{said}");
        let wanted = format!("warning: {named}{} {warning}", path.display());
        assert!(said.contains(&wanted), "`{wanted}` is missing in: {said}");
        let start = trial.launch("new", &[&init]).output().unwrap();
        assert_eq!(start.status.code(), Some(2));
        refused(&start, &[&named, path.to_str().unwrap(), error, help]);
        assert!(!trial.path("new").exists());
    }
    // A run that has not saved yet.
    let empty = trial.path("empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::copy(repository().join("recipes/pretrain.yaml"), empty.join("recipe.yaml")).unwrap();
    let init = init(&trial, "run", "empty");
    let dry = trial.launch("new", &[&init]).arg("--dry-run").output().unwrap();
    assert!(dry.status.success() && text(&dry).contains("no run with a checkpoint"));
    let start = trial.launch("new", &[&init]).output().unwrap();
    refused(&start, &["init.run: ", "holds no checkpoint that verifies"]);
}

#[test]
fn the_finetuning_recipe_starts_from_the_pretraining_run() {
    let dry = |recipe: &str| {
        let mut launch = command("vljepa-launch");
        let output = launch.arg(format!("recipes/{recipe}.yaml")).arg("--dry-run").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let said = dry("finetune");
    assert!(said.contains("warning: init.run: runs/pretrain holds no run"), "{said}");
    assert!(!dry("pretrain").contains("init."));
}

#[test]
fn an_export_has_its_name_only_when_it_is_whole_and_replaces_none() {
    let trial = trial();
    trial.complete("trained", &[FROZEN]);
    let start = |folder: &str| {
        let mut export = command("vljepa-launch");
        export.arg("export").arg(trial.path("trained")).arg(trial.path(folder));
        export
    };
    let mut killed = start("killed").stdout(Stdio::null()).spawn().unwrap();
    let part = trial.path("killed.part");
    wait_until(&mut killed, Duration::from_secs(60), "the new folder", || part.exists());
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!trial.path("killed").exists());
    refused(&start("killed").output().unwrap(), &["killed.part exists", "interrupted", "Delete"]);

    // A second export to the same folder is refused.
    export(&trial, "trained", "exported");
    let card = std::fs::read_to_string(trial.path("exported/README.md")).unwrap();
    for said in ["Recipe `trial`", "step 4, 32 samples", "| clips | 1 |", "motion_top1"] {
        assert!(card.contains(said), "`{said}` is missing in: {card}");
    }
    let recipe = |folder: &str| std::fs::read(trial.path(folder).join("recipe.yaml")).unwrap();
    assert_eq!(recipe("exported"), recipe("trained"));
    let before = std::fs::read(trial.path("exported/vl_jepa.json")).unwrap();
    refused(&start("exported").output().unwrap(), &["already exists and is not empty"]);
    assert_eq!(std::fs::read(trial.path("exported/vl_jepa.json")).unwrap(), before);
    // An export that fails leaves nothing.
    for step in [2, 4] {
        let rank = format!("trained/checkpoints/step-{step:08}/rank-0000.safetensors");
        flip_a_bit(&trial.path(&rank));
    }
    refused(&start("failed").output().unwrap(), &["no checkpoint"]);
    assert!(!trial.path("failed").exists() && !trial.path("failed.part").exists());
}
