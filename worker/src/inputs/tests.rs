//! Tests that each file of a recipe is checked before a run starts.

use std::path::Path;

use serde_json::{Value, json};
use vljepa_recipes::Recipe;
use vljepa_recipes::protocol::Inputs;
use vljepa_recipes::schema::{Source, YEncoder};

use super::check;

/// Writes a tar with the given (name, contents) files.
fn write_tar(path: &Path, files: &[(&str, &str)]) {
    let mut tar = Vec::new();
    for (name, contents) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        header[156] = b'0';
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend(header);
        tar.extend(contents.as_bytes());
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    std::fs::write(path, tar).unwrap();
}

/// A recipe over a word-level tokenizer of four words and a shard with two samples. `<soft>` is an
/// added token beyond the embedding.
fn recipe(folder: &Path) -> Recipe {
    let soft = json!({"id": 4, "content": "<soft>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [soft],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "unk_token": "?",
            "vocab": {"?": 0, "a": 1, "red": 2, "blue": 3}},
    });
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let shard = folder.join("a.tar");
    let one =
        r#"{"label": 0, "questions": [{"question": "a", "answer": "red", "kind": "colour"}]}"#;
    let files = [
        ("1.png", "x"),
        ("1.txt", "a red"),
        ("1.json", one),
        ("2.png", "x"),
        ("2.txt", "a"),
        ("2.json", r#"{"label": 1}"#),
    ];
    write_tar(&shard, &files);
    serde_json::from_value(json!({
        "name": "test", "seed": 5,
        "model": {
            "predictor": {"tokenizer": path, "vocab_size": 4},
            "y_encoder": {"tokenizer": path, "vocab_size": 4},
        },
        "data": {"sources": {"pictures": {
            "shards": shard, "visual": "image", "targets": [{"from": "caption"}],
        }}},
        "stages": [{"name": "only", "steps": 1, "batch": 2, "frames": 2,
            "mixture": {"pictures": 1}, "learning_rate": {"peak": 0.001}}],
    }))
    .unwrap()
}

fn source(recipe: &mut Recipe) -> &mut Source {
    recipe.data.sources.get_mut("pictures").unwrap()
}

fn with_task(recipe: &Recipe, kind: Value) -> Recipe {
    let mut recipe = recipe.clone();
    let shards = recipe.data.sources["pictures"].shards.clone();
    let task = json!({"name": "task", "kind": kind, "shards": shards});
    recipe.evaluation.tasks = vec![serde_json::from_value(task).unwrap()];
    recipe
}

/// Asserts that the recipe has one problem, with this key and these words.
fn refused(recipe: &Recipe, key: &str, words: &[&str]) {
    let Inputs { problems, .. } = check(recipe, false);
    let [problem] = &problems[..] else { panic!("{key}: {problems:?}") };
    assert_eq!(problem.key, key, "{}", problem.what);
    for word in words {
        assert!(problem.what.contains(word), "`{word}`: {}", problem.what);
    }
}

#[test]
fn a_tokenizer_may_have_added_tokens_beyond_the_embedding_but_no_text_of_the_recipe_uses_them() {
    let folder = tempfile::tempdir().unwrap();
    let good = recipe(folder.path());
    assert_eq!(check(&good, false), Inputs::default());
    let mut bad = good.clone();
    let YEncoder::EmbeddingGemma(keys) = &mut bad.model.y_encoder else { panic!("a default") };
    keys.vocab_size = 3;
    refused(&bad, "model.y_encoder.vocab_size", &["is 3", "tokenizer.json has 4 tokens"]);
    let mut bad = good.clone();
    source(&mut bad).targets[0].query = "a <soft>".to_owned();
    refused(&bad, "data.sources.pictures.targets.0.query", &["`<soft>` (id 4)", "only 4 rows"]);
    let path = folder.path().join("tokenizer.json");
    std::fs::write(path, "<html>").unwrap();
    let keys: Vec<_> = check(&good, false).problems.into_iter().map(|p| p.key).collect();
    assert_eq!(keys, ["model.predictor.tokenizer", "model.y_encoder.tokenizer"]);
}

#[test]
fn weights_are_checked_and_missing_ones_only_before_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = recipe(folder.path());
    let path = folder.path().join("model.safetensors.index.json");
    bad.model.predictor.weights = Some(path.clone());
    assert_eq!(check(&bad, true), Inputs::default());
    refused(&bad, "model.predictor.weights", &["model.safetensors.index.json"]);
    std::fs::write(&path, r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#).unwrap();
    refused(&bad, "model.predictor.weights", &["model-00001-of-00002", "No such file"]);
    assert_eq!(check(&bad, true), check(&bad, false));
}

#[test]
fn every_shard_that_cannot_be_used_is_a_problem_and_unread_bytes_are_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = recipe(folder.path());
    let shard = folder.path().join("a.tar");
    let mut joined = std::fs::read(&shard).unwrap();
    joined.extend(joined.clone());
    std::fs::write(&shard, &joined).unwrap();
    let entry = format!("{}/{{a,b,c}}.tar", folder.path().display());
    source(&mut bad).shards = entry;
    std::fs::write(folder.path().join("b.tar"), "").unwrap();
    let Inputs { problems, warnings } = check(&bad, false);
    assert!(problems.iter().all(|problem| problem.key == "data.sources.pictures.shards"));
    let said: Vec<_> = problems.iter().map(|problem| problem.what.as_str()).collect();
    assert!(said[0].contains("b.tar") && said[0].contains("0 bytes"), "{said:?}");
    assert!(said[1].contains("c.tar") && said.len() == 2, "{said:?}");
    assert!(warnings[0].contains("a.tar") && warnings[0].contains("are not read"), "{warnings:?}");
    assert_eq!(check(&bad, true).problems.len(), 1, "a dry run does not report missing files");
    // A source that no stage uses is not read.
    bad.stages[0].mixture.clear();
    assert_eq!(check(&bad, false), Inputs::default());
}

#[test]
fn an_evaluation_task_is_checked_against_the_texts_of_its_samples() {
    let folder = tempfile::tempdir().unwrap();
    let good = recipe(folder.path());
    let class = |field: &str, candidates: Value| {
        with_task(&good, json!({"classification": {"field": field, "candidates": candidates}}))
    };
    // The labels of the samples are the numbers 0 and 1.
    let labels = || json!(["0", "1"]);
    assert_eq!(check(&class("label", labels()), false), Inputs::default());
    refused(&class("label", json!(["0", "2"])), "evaluation.tasks.0", &["`2`", "`1` is not among"]);
    let missing = check(&class("lable", labels()), false).problems;
    assert!(missing.len() == 2 && missing[0].what.contains("no field `lable`"), "{missing:?}");
    let file = folder.path().join("labels.json");
    std::fs::write(&file, r#"{"0": ["a <soft>"], "1": ["red"]}"#).unwrap();
    refused(&class("label", json!(file)), "evaluation.tasks.0.kind", &["`<soft>` (id 4)"]);
    std::fs::write(&file, r#"{"0": [], "1": ["red"]}"#).unwrap();
    refused(&class("label", json!(file)), "evaluation.tasks.0.kind", &["`0` has no text"]);
    std::fs::write(&file, "[0, 1]").unwrap();
    assert_eq!(check(&class("label", json!(file)), false), Inputs::default());

    let asks = |kind: &str, candidates: Value| {
        let kind = json!({"question_kind": kind, "candidates": candidates});
        with_task(&good, json!({"question_answering": kind}))
    };
    assert_eq!(check(&asks("colour", json!(["red", "blue"])), false), Inputs::default());
    let key = "evaluation.tasks.0";
    refused(&asks("colour", json!(["green", "blue"])), key, &["`1`", "`red` is not among"]);
    refused(&asks("count", json!(["green", "blue"])), key, &["no sample", "`count`"]);

    let retrieval = with_task(&good, json!("retrieval"));
    assert_eq!(check(&retrieval, false), Inputs::default());
    let shard = folder.path().join("a.tar");
    write_tar(&shard, &[("1.png", "x"), ("1.txt", " "), ("2.png", "x"), ("2.txt", "a <soft>")]);
    let said = check(&retrieval, false).problems;
    assert!(said[0].what.contains("`1`") && said[0].what.contains("no caption"), "{said:?}");
    assert!(said[1].what.contains("`2`") && said[1].what.contains("<soft>"), "{said:?}");

    let mut triplets = with_task(&good, json!("triplets"));
    triplets.evaluation.tasks[0].shards = Some(folder.path().join("t.json").display().to_string());
    std::fs::write(folder.path().join("t.json"), "[]").unwrap();
    refused(&triplets, "evaluation.tasks.0.shards", &["holds no triplets"]);
}
