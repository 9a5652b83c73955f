//! Runs of a dual encoder, which measure tasks and train nothing.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use vljepa_data::storage::{Storage, StorageOptions};
use vljepa_kernels::{Device, Packed, Tensor};
use vljepa_recipes::load;
use vljepa_worker::collectives::{Collectives, Solo};
use vljepa_worker::engine::Engine;

use crate::programs::{command, repository, small_set, text};

/// A folder with a recipe of a tiny CLIP and its tokenizer, and with its runs.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Writes the recipe `recipe.yaml`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let words = ["[UNK]", "red", "blue", "a", "circle", "square", "left", "[BOS]", "[EOS]"];
        let vocabulary: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let entry = |id: &str, number| json!({"id": id, "ids": [number], "tokens": [id]});
        let template = json!([
            special("[BOS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[EOS]")
        ]);
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
            "post_processor": {
                "type": "TemplateProcessing", "single": template, "pair": template,
                "special_tokens": {"[BOS]": entry("[BOS]", 7), "[EOS]": entry("[EOS]", 8)},
            },
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        });
        let this = Self(folder);
        std::fs::write(this.path("tokenizer.json"), tokenizer.to_string()).unwrap();
        let set = small_set().display();
        let weights = repository().join("model/tests/weights/clip_whole.safetensors");
        let weights = weights.display();
        let recipe = format!(
            "name: clip
model:
  kind: dual_encoder
  image_size: 32
  x_encoder: {{family: clip, patch_size: 8, hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32, weights: {weights}}}
  y_encoder: {{family: clip_text, hidden_size: 12, num_layers: 2, num_heads: 2, intermediate_size: 32, vocab_size: 9, context_length: 6, max_target_tokens: 6, output_size: 8, tokenizer: {tokenizer}, weights: {weights}}}
evaluation:
  tasks:
    - name: colour
      shards: {set}/eval/heldout.tar
      frames: 2
      limit: 20
      kind: {{classification: {{field: colour, candidates: {set}/labels/colours.json}}}}
    - name: retrieval
      shards: {set}/eval/retrieval.tar
      limit: 20
      kind: retrieval
",
            tokenizer = this.path("tokenizer.json").display()
        );
        std::fs::write(this.path("recipe.yaml"), recipe).unwrap();
        this
    }

    /// Path of a file or run in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn launch(&self, run: &str, arguments: &[&str]) -> Output {
        let mut command = command("vljepa-launch");
        command.arg(self.path("recipe.yaml")).arg("--run").arg(self.path(run));
        command.args(arguments).output().unwrap()
    }

    fn complete(&self, run: &str, arguments: &[&str]) -> String {
        let output = self.launch(run, arguments);
        assert!(output.status.success(), "{}", text(&output));
        assert!(self.path(run).join("completed.json").exists(), "{}", text(&output));
        text(&output)
    }
}

fn job(arguments: &[&str], run: &Path, more: &[&str]) -> Output {
    command("vljepa-launch").args(arguments).arg(run).args(more).output().unwrap()
}

/// Scores of a run.
pub fn scores(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("scores.json")).unwrap()).unwrap()
}

#[test]
fn a_run_measures_its_tasks_with_the_same_scores_on_any_number_of_ranks() {
    let folder = Folder::new();
    let plan = text(&folder.launch("planned", &["--dry-run"]));
    for part in ["tasks", "2, and no training", "x_encoder's head", "11,268"] {
        assert!(plan.contains(part), "`{part}` is missing in: {plan}");
    }
    let said = folder.complete("one", &[]);
    assert!(said.contains("colour_top1") && said.contains("retrieval_r1"), "{said}");
    let one = scores(&folder.path("one"));
    assert_eq!(one["colour_top1"]["n"], 20);
    folder.complete("two", &["--set", "cluster.ranks_per_node=2"]);
    assert_eq!(scores(&folder.path("two")), one);
    let again = text(&folder.launch("one", &[]));
    assert!(again.contains("already complete"), "{again}");
    let report = std::fs::read_to_string(folder.path("one/report.html")).unwrap();
    assert!(report.contains("completed") && report.contains("retrieval_r1"), "{report}");

    std::fs::remove_file(folder.path("one/scores.json")).unwrap();
    let output = job(&["evaluate"], &folder.path("one"), &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(scores(&folder.path("one")), one);
    let export = folder.path("export");
    let output = job(&["export"], &folder.path("one"), &[export.to_str().unwrap()]);
    assert!(!output.status.success() && text(&output).contains("is a dual encoder"));
    assert!(!export.exists());
}

/// Similarities are cosines of f32 unit vectors that one library computed twice: equal except for
/// the order of sums, within 1e-6.
#[test]
fn search_ranks_clips_by_the_similarity_of_their_mean_frame_to_the_text() {
    let folder = Folder::new();
    folder.complete("run", &[]);
    let shards = small_set().join("eval/retrieval.tar");
    let wanted = "a Red circle";
    let output = job(
        &["search"],
        &folder.path("run"),
        &[shards.to_str().unwrap(), wanted, "--limit", "1000", "--json"],
    );
    assert!(output.status.success(), "{}", text(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let recipe = load(&folder.path("recipe.yaml"), &[]).unwrap().recipe;
    let (engine, _) = Engine::published(&recipe, Device::Host, &Collectives::Solo(Solo)).unwrap();
    // [BOS] a red circle [EOS]: CLIP's texts are in lower case.
    let words = |ids: Vec<i32>| {
        let ends = vec![0, i32::try_from(ids.len()).unwrap()];
        engine.texts(&Packed::new(Device::Host, ids, ends).unwrap()).unwrap().remove(0)
    };
    let (right, capital) = (words(vec![7, 3, 1, 4, 8]), words(vec![7, 3, 0, 4, 8]));
    let storage = Storage::new(StorageOptions::of(&recipe.data)).unwrap();
    let reader = vljepa_data::SampleReader::open(&storage, shards.to_str().unwrap(), None).unwrap();
    let options = vljepa_data::reader::LoadOptions {
        frames: 8,
        image_size: 32,
        preprocessing: recipe.model.x_encoder.preprocessing(),
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let (mut wrong_text, mut wrong_frames) = (0.0_f64, 0.0_f64);
    for index in 0..5 {
        let sample = reader.load(index, &options).unwrap();
        let embed = |frames: &[u8], count: usize| {
            let frames = Tensor::from_u8(frames.to_vec(), &[1, count, 32, 32, 3]);
            engine.clips(frames).unwrap().remove(0)
        };
        let clip = embed(&sample.frames, 8);
        let results = found["results"].as_array().unwrap();
        let result = results.iter().find(|result| result["key"] == sample.key.as_str()).unwrap();
        let score = result["score"].as_f64().unwrap();
        assert!((score - dot(&clip, &right)).abs() < 1e-6, "{result}");
        wrong_text = wrong_text.max((score - dot(&clip, &capital)).abs());
        let first = embed(&sample.frames[..32 * 32 * 3], 1);
        wrong_frames = wrong_frames.max((score - dot(&first, &right)).abs());
    }
    assert!(wrong_text > 1e-5, "a text with capitals would be noticed: {wrong_text}");
    assert!(wrong_frames > 1e-5, "the first frame alone would be noticed: {wrong_frames}");
}

#[test]
fn a_resnet_is_measured_like_a_vision_transformer() {
    let folder = Folder::new();
    let weights = repository().join("model/tests/weights/clip_resnet_whole.safetensors");
    let weights = weights.display();
    let x_encoder = format!(
        "model.x_encoder={{family: clip_resnet, width: 2, layers: [1, 2, 1, 1], num_heads: 4, \
         weights: {weights}}}"
    );
    let sizes = ["hidden_size=16", "output_size=12", &format!("weights={weights}")];
    let sets = sizes.map(|set| format!("model.y_encoder.{set}"));
    let sets: Vec<_> = sets.iter().chain([&x_encoder]).flat_map(|set| ["--set", set]).collect();
    let plan = text(&folder.launch("planned", &[&sets[..], &["--dry-run"]].concat()));
    // Positions of a pixel and the mean, queries, keys and values of 64 elements, a map to 12.
    let head = 2 * 64 + 3 * (64 * 64 + 64) + 12 * 65;
    assert!(plan.contains(&format!("{},{:03}", head / 1000, head % 1000)), "{plan}");
    folder.complete("resnet", &sets);
    let scores = scores(&folder.path("resnet"));
    assert!(scores["colour_top1"]["n"] == 20 && scores["retrieval_r1"]["n"] == 20, "{scores}");
    let said = text(&folder.launch("refused", &["--set", &x_encoder]));
    assert!(said.contains("c_proj.weight has shape [12, 64]"), "{said}");
}

#[test]
fn what_a_dual_encoder_does_not_have_is_refused_by_its_key() {
    let folder = Folder::new();
    for (set, key, why) in [
        ("model.predictor.num_heads=16", "model.predictor", "has no predictor"),
        ("loss.kind=l2", "loss", "is not trained"),
        ("model.y_encoder.update=train", "model.y_encoder.update", "is not trained"),
        ("model.y_encoder.projection=linear", "model.y_encoder.projection", "own embedding"),
        ("model.x_encoder.weights=null", "model.x_encoder.weights", "is not set"),
        ("evaluation.tasks=[]", "evaluation.tasks", "is empty"),
        ("evaluation.tasks.1.query=what?", "evaluation.tasks.1.query", "no queries"),
        ("model.kind=dual", "model.kind", "did you mean `dual_encoder`?"),
    ] {
        let said = text(&folder.launch("refused", &["--set", set]));
        assert!(said.contains(&format!("{key}:")) && said.contains(why), "{set}: {said}");
        assert!(!folder.path("refused").exists());
    }
    let other = repository().join("model/tests/weights/pe_whole.pt");
    let set = format!("model.x_encoder.weights={}", other.display());
    let said = text(&folder.launch("refused", &["--set", &set]));
    assert!(said.contains("model.x_encoder.weights") && said.contains("missing"), "{said}");
}
