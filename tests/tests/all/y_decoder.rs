//! Runs that train a Y-decoder behind the frozen VL-JEPA of another run, and the texts that it
//! writes.

use std::process::Output;

use serde_json::Value;

use crate::programs::{Trial, command, small_set, text};

/// A trial with a trained VL-JEPA of a recipe with these `--set` flags, on two ranks.
pub fn trial(sets: &[&str]) -> Trial {
    let set = small_set().display();
    let trial = Trial::new(&format!(
        "
stages:
  - {{name: all, steps: 2, batch: 8, frames: 4, mixture: {{clips: 1}}, learning_rate: {{peak: 2e-3}}}}
evaluation: {{tasks: [{{name: retrieval, shards: {set}/eval/retrieval.tar, kind: retrieval}}]}}
logging: {{every_steps: 1}}
checkpoints: {{every_steps: 4}}
cluster: {{ranks_per_node: 2}}
"
    ));
    trial.complete("trained", &[&["model.x_encoder.trainable=false"], sets].concat());
    trial
}

/// The `--set` flags that make the trial's recipe that of a decoder: six steps on texts and four on
/// clips.
pub fn decoder(trial: &Trial) -> Vec<String> {
    let set = small_set().display();
    let stage = |name: &str, steps: usize, batch: usize, embeddings: &str| {
        format!(
            "{{name: {name}, steps: {steps}, batch: {batch}, frames: 4, mixture: {{clips: 1}}, \
             learning_rate: {{peak: 2e-3}}, decoding: {{embeddings: {embeddings}, noise: 0.3}}}}"
        )
    };
    vec![
        "model.kind=y_decoder".to_owned(),
        format!("init.run={}", trial.path("trained").display()),
        format!(
            "model.y_decoder={{prefix_tokens: 2, hidden_size: 32, num_layers: 1, num_heads: 2, \
             num_kv_heads: 1, head_dim: 16, intermediate_size: 64, rope_scaling: null, \
             vocab_size: 128, max_tokens: 16, end: '[BOS]', tokenizer: {set}/tokenizer.json}}"
        ),
        format!(
            "stages=[{}, {}]",
            stage("texts", 6, 10, "targets"),
            stage("clips", 4, 6, "predictions")
        ),
        format!(
            "evaluation.tasks=[{{name: caption, shards: {set}/eval/heldout.tar, limit: 12, frames: 4, query: \
             describe the video, kind: {{captioning: {{names: [shape, colour], references: [caption]}}}}}}, \
             {{name: retrieval, shards: {set}/eval/retrieval.tar, frames: 4, kind: retrieval}}]"
        ),
    ]
}

pub fn complete(trial: &Trial, run: &str, sets: &[String], more: &[&str]) {
    let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
    trial.complete(run, &sets);
}

pub fn scores(trial: &Trial, run: &str) -> Value {
    let text = std::fs::read(trial.path(run).join("scores.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn launch(arguments: &[&str]) -> Output {
    command("vljepa-launch").args(arguments).output().unwrap()
}

#[test]
fn a_decoder_learns_behind_a_frozen_vl_jepa_and_writes_texts() {
    let trial = trial(&[]);
    let sets = decoder(&trial);
    complete(&trial, "decoder", &sets, &[]);
    let losses = trial.losses("decoder");
    // Logits that are Normal(0, 1) have a loss of log(128) + 1/2. Its mean over the 60 tokens of a
    // batch has a standard deviation of √(1/60) = 0.13.
    assert!((losses[0].1 - 128_f64.ln() - 0.5).abs() < 0.5, "{losses:?}");
    assert!(losses[5].1 < losses[0].1 - 0.3, "{losses:?}");
    // VL-JEPA is what it was, and only the decoder is in the checkpoint.
    assert_eq!(
        scores(&trial, "decoder")["retrieval_r1"]["value"],
        scores(&trial, "trained")["retrieval_r1"]["value"]
    );
    for metric in ["caption_named", "caption_cider", "caption_bleu4", "caption_rouge_l"] {
        assert_eq!(scores(&trial, "decoder")[metric]["n"], 12, "{metric}");
    }
    let trained = trial.parameters("decoder", 10);
    assert!(trained.iter().all(|(name, _)| name.starts_with("y_decoder.")), "{trained:?}");

    // `caption` and `ask` write; they need no candidates.
    let clip = trial.clip();
    let (run, clip) = (trial.path("decoder"), clip.display().to_string());
    let run = run.display().to_string();
    let written = launch(&["caption", &run, &clip, &clip, "--json"]);
    assert!(written.status.success(), "{}", text(&written));
    let written: Value = serde_json::from_slice(&written.stdout).unwrap();
    let captions = written["captions"].as_array().unwrap();
    assert_eq!((captions.len(), &written["step"]), (2, &Value::from(10)));
    assert_eq!(captions[0]["text"], captions[1]["text"]);
    assert!(!captions[0]["text"].as_str().unwrap().is_empty());
    let answer = launch(&["ask", &run, &clip, "how is it moving?"]);
    assert!(answer.status.success() && !answer.stdout.is_empty(), "{}", text(&answer));
    let ranked = launch(&["ask", &run, &clip, "how is it moving?", "--answers", "up,down"]);
    assert!(ranked.status.success(), "{}", text(&ranked));

    // A run without a decoder writes nothing.
    let plain = trial.path("trained").display().to_string();
    for arguments in [&["caption", &*plain, &*clip][..], &["ask", &plain, &clip, "what is it?"]] {
        let refused = launch(arguments);
        assert!(!refused.status.success(), "{}", text(&refused));
        assert!(text(&refused).contains("no Y-decoder"), "{}", text(&refused));
    }
}

#[test]
fn an_exported_decoder_writes_the_same_behind_a_vl_jepa_that_does_not_train_it() {
    let trial = trial(&[]);
    let mut sets = decoder(&trial);
    complete(&trial, "decoder", &sets, &[]);
    let run = |name: &str| trial.path(name).display().to_string();
    let folder = run("exported");
    let exported = launch(&["export", &run("decoder"), &folder]);
    assert!(exported.status.success(), "{}", text(&exported));
    let file = format!("{folder}/y_decoder/model.safetensors");
    for name in
        [&*file, &format!("{folder}/y_decoder/tokenizer.json"), &format!("{folder}/README.md")]
    {
        assert!(std::fs::exists(name).unwrap(), "{name}");
    }

    // The same VL-JEPA, whose weights such a learning rate cannot change.
    sets[0] = "model.kind=vl_jepa".to_owned();
    sets[2] = sets[2].replace("max_tokens", &format!("weights: {file}, max_tokens"));
    sets[3] = "stages.0.learning_rate.peak=1e-30".to_owned();
    complete(&trial, "behind", &sets, &["model.x_encoder.trainable=false"]);
    let trained = trial.parameters("behind", 2);
    assert!(trained.iter().all(|(name, _)| !name.starts_with("y_decoder.")), "{trained:?}");
    let clip = trial.clip().display().to_string();
    let caption = |name: &str| {
        let written = launch(&["caption", &run(name), &clip]);
        assert!(written.status.success(), "{}", text(&written));
        String::from_utf8(written.stdout).unwrap()
    };
    assert_eq!(caption("behind"), caption("decoder"));
    // The models differ, so that what was measured has another hash.
    let named = |run: &str| scores(&trial, run)["caption_named"]["value"].clone();
    assert_eq!(named("behind"), named("decoder"));

    // A file without the map to the prefix, as Llama's, is refused by name.
    let llama = trial.path("trained").join("llama.safetensors");
    let exported = launch(&["export", &run("trained"), &run("vl_jepa")]);
    assert!(exported.status.success(), "{}", text(&exported));
    std::fs::copy(format!("{}/predictor/model.safetensors", run("vl_jepa")), &llama).unwrap();
    sets[2] = sets[2].replace(&file, &llama.display().to_string());
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let refused = trial.launch("other", &sets).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(text(&refused).contains("model.y_decoder.weights"), "{}", text(&refused));
}

#[test]
fn a_decoder_is_the_same_on_one_and_two_ranks_in_micro_batches_and_after_a_kill() {
    let trial = trial(&[]);
    let sets = decoder(&trial);
    complete(&trial, "two", &sets, &[]);
    let mut killed = trial.launch("killed", &sets.iter().map(String::as_str).collect::<Vec<_>>());
    let output = killed.args(["--drill", "kill:rank=1,step=7"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("restart"), "{}", text(&output));
    assert_eq!(trial.losses("killed"), trial.losses("two"));
    trial.assert_same_bits("killed", "two", 10);

    // Other splits of the batch differ by the rounding of sums only: a mean of about 60 logarithms
    // of order 5, each with a relative rounding of 6e-8 over a few hundred additions.
    let close = |run: &str, tolerance: f64| {
        let (other, two) = (trial.losses(run), trial.losses("two"));
        assert_eq!(other.len(), two.len());
        other.iter().zip(&two).all(|(a, b)| (a.1 - b.1).abs() < tolerance)
    };
    complete(&trial, "one", &sets, &["cluster.ranks_per_node=1"]);
    complete(&trial, "micro", &sets, &["stages.0.micro_batch=2", "stages.1.micro_batch=1"]);
    assert!(close("one", 2e-4) && close("micro", 2e-4));
    // Another noise is another training.
    complete(&trial, "quiet", &sets, &["stages.0.decoding.noise=0"]);
    assert!(!close("quiet", 2e-4));
}

#[test]
fn sonar_s_decoder_writes_without_training_in_a_run_that_measures_tasks() {
    let set = small_set().display();
    let encoder = format!(
        "model.y_encoder={{family: sonar, projection: none, hidden_size: 16, num_layers: 1, \
         num_heads: 2, intermediate_size: 32, vocab_size: 128, max_target_tokens: 32, \
         tokenizer: {set}/tokenizer.json}}"
    );
    let loss = ["loss.kind=l2", "loss.mask_equal_targets=false"];
    let space = ["model.embed_dim=16", &encoder, loss[0], loss[1]];
    let trial = trial(&space);
    let mut sets = decoder(&trial);
    sets[2] = format!(
        "model.y_decoder={{family: sonar, hidden_size: 16, num_layers: 1, num_heads: 2, \
         intermediate_size: 32, vocab_size: 128, max_tokens: 8, end: '[BOS]', language: red, \
         search: {{beam: {{width: 2, length_penalty: 1}}}}, tokenizer: {set}/tokenizer.json}}"
    );
    "stages=[]".clone_into(&mut sets[3]);
    sets.extend(space.map(str::to_owned));
    complete(&trial, "sonar", &sets, &[]);
    assert_eq!(
        scores(&trial, "sonar")["retrieval_r1"]["value"],
        scores(&trial, "trained")["retrieval_r1"]["value"]
    );
    assert_eq!(scores(&trial, "sonar")["caption_named"]["n"], 12);
}
