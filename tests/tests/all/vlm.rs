//! Runs that train a token-predicting VLM, and the texts that it writes.

use std::process::Output;

use serde_json::Value;

use crate::programs::{Trial, command, small_set, text};

/// A recipe of a VLM on two ranks: eight steps, a checkpoint after every fourth.
fn trial() -> Trial {
    let set = small_set().display();
    let heldout = format!("{set}/eval/heldout.tar");
    let task = |name: &str, kind: &str| {
        format!(
            "{{name: {name}, shards: {heldout}, limit: 12, query: describe the video, kind: {kind}}}"
        )
    };
    let trial = Trial::new(&format!(
        "
stages:
  - {{name: all, steps: 8, batch: 10, frames: 4, mixture: {{clips: 1}}, learning_rate: {{peak: 2e-3}}}}
evaluation:
  tasks:
    - {}
    - {}
    - {{name: exists, shards: {set}/eval/exists.tar, limit: 12, frames: 2, kind: {{question_answering: {{candidates: ['yes', 'no']}}}}}}
logging: {{every_steps: 1}}
checkpoints: {{every_steps: 4}}
cluster: {{ranks_per_node: 2}}
",
        task("caption", "{captioning: {names: [shape, colour]}}"),
        task("motion", &format!("{{classification: {{field: motion, candidates: {set}/labels/motions.json}}}}")),
    ));
    // The trial's recipe names tokenizers of parts that a VLM does not have.
    let written = std::fs::read_to_string(trial.recipe()).unwrap();
    let start = written.find("model:").unwrap();
    let end = written.find("data:").unwrap();
    let model = format!(
        "model:
  kind: vlm
  language_model: {{hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, head_dim: 16,
    intermediate_size: 64, rope_scaling: null, vocab_size: 128, max_question_tokens: 16,
    max_answer_tokens: 12, tokenizer: {set}/tokenizer.json,
    template: {{custom: {{before: '[BOS]', question: '{{}}', answer: '{{}}[BOS]'}}}}}}
"
    );
    let recipe = format!("{}{model}{}", &written[..start], &written[end..]);
    std::fs::write(trial.recipe(), recipe).unwrap();
    trial
}

fn scores(trial: &Trial, run: &str) -> Value {
    let text = std::fs::read(trial.path(run).join("scores.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn launch(arguments: &[&str]) -> Output {
    command("vljepa-launch").args(arguments).output().unwrap()
}

#[test]
fn a_vlm_learns_writes_and_ranks_and_has_no_embeddings() {
    let trial = trial();
    trial.complete("vlm", &[]);
    let losses = trial.losses("vlm");
    // Logits that are Normal(0, 1) have a loss of log(128) + 1/2. Its mean over the 80 tokens of a
    // batch has a standard deviation of √(1/80) = 0.11.
    assert!((losses[0].1 - 128_f64.ln() - 0.5).abs() < 0.5, "{losses:?}");
    assert!(losses[7].1 < losses[0].1 - 0.3, "{losses:?}");
    let measured = scores(&trial, "vlm");
    for (metric, chance) in [("caption_named", 0.0), ("motion_top1", 1.0 / 6.0), ("exists", 0.5)] {
        let score = &measured[metric];
        assert!(score["n"].as_u64() >= Some(12), "{metric}: {score}");
        assert!((score["chance"].as_f64().unwrap() - chance).abs() < 1e-9, "{metric}: {score}");
    }
    let trained = trial.parameters("vlm", 8);
    let parts = ["x_encoder.", "projector.", "language_model."];
    for part in parts {
        assert!(trained.iter().any(|(name, _)| name.starts_with(part)), "{part} is trained");
    }

    let clip = trial.clip();
    let [run, clip] = [trial.path("vlm"), clip].map(|path| path.display().to_string());
    let written = launch(&["caption", &run, &clip, &clip, "--json"]);
    assert!(written.status.success(), "{}", text(&written));
    let written: Value = serde_json::from_slice(&written.stdout).unwrap();
    assert_eq!(written["step"], 8);
    assert_eq!(written["captions"][0]["text"], written["captions"][1]["text"]);
    assert!(written["captions"][0]["text"].is_string(), "{written}");
    let answer = launch(&["ask", &run, &clip, "how is it moving?"]);
    assert!(answer.status.success() && !answer.stdout.is_empty(), "{}", text(&answer));
    let ask = ["ask", &run, &clip, "how is it moving?", "--answers", "growing,shrinking", "--json"];
    let ranked: Value = serde_json::from_slice(&launch(&ask).stdout).unwrap();
    let score = |i: usize| ranked["answers"][i]["score"].as_f64().unwrap();
    assert!(score(0) > score(1) && score(0) < 0.0, "mean logarithms of probabilities: {ranked}");

    let measure = ["latency", &run, &clip, "--frames", "8", "--repeats", "3", "--json"];
    let measured: Value = serde_json::from_slice(&launch(&measure).stdout).unwrap();
    let seconds = |part: &str| measured[part]["mean_s"].as_f64().unwrap();
    let parts = ["query_embedding", "encoder", "decoder"].map(seconds);
    assert!(parts.iter().all(|part| *part > 0.0), "{measured}");
    // Sums of three positive numbers, rounded.
    assert!((parts.iter().sum::<f64>() / seconds("total") - 1.0).abs() < 1e-9, "{measured}");
    assert_eq!([&measured["frames"], &measured["repeats"]], [8, 3], "{measured}");
    let odd = launch(&["latency", &run, &clip, "--frames", "7"]);
    assert!(!odd.status.success() && text(&odd).contains('7'), "{}", text(&odd));

    // As a row of a table, it has the scores that its run measured.
    let set = small_set().display();
    let table = trial.path("table.yaml");
    let recipe = format!(
        "name: table
table: {{of: figure3, rows: {{vlm: {{run: {run}}}}}, columns: {{classification: [motion_top1]}}}}
cluster: {{ranks_per_node: 1}}
evaluation:
  tasks:
    - {{name: motion, shards: {set}/eval/heldout.tar, limit: 12, query: describe the video, kind: {{classification: {{field: motion, candidates: {set}/labels/motions.json}}}}}}
"
    );
    std::fs::write(&table, recipe).unwrap();
    let [table, folder] = [table, trial.path("table")].map(|path| path.display().to_string());
    let output = launch(&[&table, "--run", &folder]);
    assert!(output.status.success(), "{}", text(&output));
    let row = std::fs::read(trial.path("table/rows/vlm/scores.json")).unwrap();
    let row: Value = serde_json::from_slice(&row).unwrap();
    assert_eq!(row["motion_top1"], scores(&trial, "vlm")["motion_top1"]);

    let folder = trial.path("exported").display().to_string();
    let tars = small_set().join("eval").display().to_string();
    for arguments in [&["export", &*run, &*folder][..], &["search", &run, &tars, "a red ring"]] {
        let refused = launch(arguments);
        assert!(!refused.status.success(), "{}", text(&refused));
        assert!(text(&refused).contains("has a VLM"), "{}", text(&refused));
    }
}

#[test]
fn a_vlm_is_the_same_on_one_and_two_ranks_in_micro_batches_and_after_a_kill() {
    let trial = trial();
    trial.complete("two", &[]);
    let mut killed = trial.launch("killed", &[]);
    let output = killed.args(["--drill", "kill:rank=1,step=6"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("restart"), "{}", text(&output));
    assert_eq!(trial.losses("killed"), trial.losses("two"));
    trial.assert_same_bits("killed", "two", 8);
    // Other splits of the batch differ by the rounding of sums only, as a Y-decoder's do.
    let close = |run: &str, tolerance: f64| {
        let (other, two) = (trial.losses(run), trial.losses("two"));
        assert_eq!(other.len(), two.len());
        other.iter().zip(&two).all(|(a, b)| (a.1 - b.1).abs() < tolerance)
    };
    let frozen = "model.x_encoder.trainable=false";
    trial.complete("one", &["cluster.ranks_per_node=1"]);
    trial.complete("micro", &["stages.0.micro_batch=2", "stages.0.recompute=block"]);
    assert!(close("one", 2e-4) && close("micro", 2e-4));
    trial.complete("frozen", &[frozen]);
    assert!(!close("frozen", 2e-4), "another training");

    // From that run: the projector alone, then the last layer too, as PLM's stages.
    let from = format!("init.run={}", trial.path("frozen").display());
    let language = |keys: &str| format!("model.language_model.{keys}");
    let (layers, table) = (language("trained_layers=0"), language("train_embeddings=false"));
    trial.complete("projector", &[frozen, &from, &layers, &table, "stages.0.steps=4"]);
    let named = |run: &str, step: u64, part: &str| {
        trial.parameters(run, step).iter().filter(|(name, _)| name.starts_with(part)).count()
    };
    assert_eq!([named("projector", 4, "projector."), named("projector", 4, "language_")], [4, 0]);
    let first = trial.losses("projector")[0].1;
    assert!(first < trial.losses("frozen")[0].1 - 0.3, "it starts from the other run: {first}");
    let from = format!("init.run={}", trial.path("projector").display());
    let layers = language("trained_layers=1");
    trial.complete("last", &[frozen, &from, &layers, &table, "stages.0.steps=4"]);
    assert_eq!(named("last", 4, "language_model.layers.0."), 0);
    assert!(named("last", 4, "language_model.layers.1.") > 0);
}
