//! Mistakes as data: a recipe that is right, one edit, and what the report must say and where.

use std::fs;
use std::path::Path;

use super::{LoadError, Loaded, Mistake, load, load_resolved};

const GOOD: &str = "\
name: base
model:
  image_size: 32
  x_encoder: {patch_size: 8, hidden_size: 64, num_layers: 2, num_heads: 4, intermediate_size: 256}
  predictor:
    num_heads: 4
    num_kv_heads: 2
    head_dim: 16
    tokenizer: tokenizer.json
  y_encoder:
    tokenizer: tokenizer.json
data:
  sources:
    clips:
      shards: clips.tar
      visual: video
      targets:
        - {from: caption, query: describe}
    images:
      shards: images-{000000..000003}.tar
      visual: image
      targets:
        - from: questions
stages:
  - name: all
    steps: 100
    batch: 8
    frames: 4
    mixture: {clips: 2, images: 1}
    learning_rate:
      peak: 1e-3
      warmup_steps: 10
optimizer:
  clip_norm: 1.0
loss:
  mask_equal_targets: true
evaluation:
  tasks:
    - name: motion
      shards: eval.tar
      kind:
        classification:
          field: motion
          candidates: [left, right]
cluster:
  ranks_per_node: 2
";

fn load_text(text: &str, sets: &[&str]) -> Result<Loaded, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, text).unwrap();
    load(&path, &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
}

fn mistakes(error: LoadError) -> Vec<Mistake> {
    match error {
        LoadError::Mistake(mistake) => vec![*mistake],
        LoadError::Mistakes { mistakes } => mistakes,
        LoadError::Unreadable { .. } | LoadError::Resolve { .. } => panic!("{error:?}"),
    }
}

/// What is replaced, by what, the line and column shown, a part of what is said and of the help.
type Row = (&'static str, &'static str, usize, usize, &'static str, &'static str);

fn check(rows: &[Row]) {
    let mut failures = String::new();
    for &(from, to, line, column, what, help) in rows {
        assert_eq!(GOOD.matches(from).count(), 1, "`{from}` must be there once");
        let wanted = format!("{line}:{column} {what} | {help}");
        let error = match load_text(&GOOD.replace(from, to), &[]) {
            Ok(_) => {
                failures += &format!("`{to}` was taken; wanted {wanted}\n");
                continue;
            }
            Err(error) => error,
        };
        let found = mistakes(error);
        let right = |m: &Mistake| {
            (m.line, m.column) == (line, column)
                && m.what.contains(what)
                && m.help.as_deref().unwrap_or("").contains(help)
        };
        if found.len() != 1 || !right(&found[0]) {
            let shown =
                |m: &Mistake| format!("  {}:{} {} | {:?}\n", m.line, m.column, m.what, m.help);
            let found: String = found.iter().map(shown).collect();
            failures += &format!("`{to}`\n wanted\n  {wanted}\n found\n{found}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn the_recipe_that_the_rows_edit_is_right() {
    let loaded = load_text(GOOD, &[]).unwrap();
    assert_eq!(loaded.recipe.stages[0].batch, 8);
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn mistakes_of_keys_and_types_are_shown_where_they_are() {
    check(&[
        (
            "num_kv_heads: 2",
            "num_kv_head: 2",
            7,
            5,
            "unknown key `num_kv_head`",
            "did you mean `num_kv_heads`?",
        ),
        (
            "    learning_rate:",
            "    learning_rat:",
            30,
            5,
            "unknown key `learning_rat`",
            "`learning_rate`",
        ),
        ("optimizer:", "optimiser:", 33, 1, "unknown key `optimiser`", "did you mean `optimizer`?"),
        (
            "name: base",
            "colour: base\nname: base",
            1,
            1,
            "unknown key `colour`",
            "the keys here are `name`",
        ),
        (
            "batch: 8",
            "batch: eight",
            27,
            12,
            "stages.0.batch: expected a whole number, 0 or more, found the text `eight`",
            "",
        ),
        ("batch: 8", "batch: '8'", 27, 12, "found the text `8`", "has no quotes: `8`"),
        ("batch: 8", "batch: 8.5", 27, 12, "found the number 8.5", ""),
        ("batch: 8", "batch: -8", 27, 12, "found the number -8", ""),
        ("batch: 8", "batch: [8]", 27, 5, "found a list", ""),
        ("batch: 8", "batch:", 27, 5, "found nothing", "give the key a value"),
        ("name: base", "name: 7", 1, 7, "name: expected a text, found the number 7", "quotes"),
        (
            "mask_equal_targets: true",
            "mask_equal_targets: yes",
            36,
            23,
            "found the text `yes`",
            "write `true`",
        ),
        (
            "mask_equal_targets: true",
            "mask_equal_targets: off",
            36,
            23,
            "found the text `off`",
            "write `false`",
        ),
        (
            "mask_equal_targets: true",
            "mask_equal_targets: 1",
            36,
            23,
            "expected `true` or `false`",
            "",
        ),
        ("    steps: 100\n", "", 25, 5, "stages.0: the key `steps` is missing", "add `steps: …`"),
        (
            "visual: video",
            "visual: vide",
            16,
            15,
            "`vide` is not one of `image`, `video`",
            "did you mean `video`?",
        ),
        ("from: questions", "from: question", 23, 17, "`question` is not one of", "`questions`"),
        (
            "        classification:\n",
            "        clasification:\n",
            42,
            9,
            "`clasification` is not",
            "`classification`",
        ),
        ("          field: motion\n", "", 42, 9, "the key `field` is missing", ""),
        (
            "candidates: [left, right]",
            "candidates: 5",
            44,
            23,
            "a list of labels or the path of a JSON file",
            "",
        ),
        (
            "candidates: [left, right]",
            "candidates: [left, 5]",
            44,
            30,
            "candidates.1: expected a text",
            "quotes",
        ),
        ("clip_norm: 1.0", "betas: [0.9]", 34, 3, "expected a list of length 2", ""),
        ("clip_norm: 1.0", "betas: [0.9, 0.95, 0.99]", 34, 3, "expected 2 values, found 3", ""),
        (
            "mixture: {clips: 2, images: 1}",
            "mixture: [clips]",
            29,
            5,
            "expected keys and values, found a list",
            "",
        ),
    ]);
}

#[test]
fn what_is_not_yaml_is_shown_where_it_breaks() {
    check(&[
        (
            "    steps: 100\n",
            "    steps: 100\n    steps: 200\n",
            27,
            5,
            "`steps` is there twice",
            "keep one",
        ),
        ("    batch: 8\n", "\tbatch: 8\n", 27, 1, "not YAML", "this is a tab"),
        ("name: base", "name: 'base", 2, 1, "not YAML", ""),
    ]);
}

#[test]
fn contradictions_across_keys_are_shown_at_the_key_that_can_change() {
    check(&[
        ("name: base", "name: a/b", 1, 7, "`a/b` is not a name", "letters, digits"),
        (
            "batch: 8",
            "batch: 1",
            27,
            12,
            "a batch of 1 is smaller than the 2 ranks",
            "raise `batch`",
        ),
        ("batch: 8", "batch: 0", 27, 12, "is 0", ""),
        (
            "frames: 4",
            "frames: 5",
            28,
            13,
            "5 frames do not divide into tubelets of 2",
            "such as 6",
        ),
        (
            "image_size: 32",
            "image_size: 33",
            3,
            15,
            "33 pixels do not divide into patches of 8",
            "such as 32",
        ),
        (
            "hidden_size: 64",
            "hidden_size: 66",
            4,
            43,
            "66 does not divide among 4 heads",
            "such as 68",
        ),
        ("hidden_size: 64", "hidden_size: 16", 4, 73, "three rotary axes", "at least 6"),
        ("head_dim: 16", "head_dim: 15", 8, 15, "15 is odd", "even"),
        ("num_kv_heads: 2", "num_kv_heads: 3", 7, 19, "4 query heads do not divide among 3", ""),
        ("num_heads: 4\n", "num_heads: 0\n", 6, 16, "is 0", "at least 1"),
        (
            "    tokenizer: tokenizer.json\n  y_enc",
            "    max_query_tokens: 0\n    tokenizer: tokenizer.json\n  y_enc",
            9,
            23,
            "is 0",
            "",
        ),
        (
            "    tokenizer: tokenizer.json\n  y_enc",
            "  y_enc",
            5,
            3,
            "model.predictor.tokenizer: is not set, and data.sources.clips has queries",
            "tokenizer.json",
        ),
        (
            "  y_encoder:\n    tokenizer: tokenizer.json\n",
            "",
            2,
            1,
            "model.y_encoder.tokenizer: is not set",
            "",
        ),
        (
            "{clips: 2, images: 1}",
            "{clip: 2, images: 1}",
            29,
            21,
            "stages.0.mixture.clip: is no source",
            "did you mean `clips`?",
        ),
        ("{clips: 2, images: 1}", "{clips: 0, images: 0}", 29, 5, "all weights are 0", ""),
        ("{clips: 2, images: 1}", "{}", 29, 5, "names no source", ""),
        (
            "{clips: 2, images: 1}",
            "{clips: 4000000000, images: 1}",
            29,
            5,
            "add up to 4000000001",
            "small numbers",
        ),
        (
            "visual: image\n",
            "visual: image\n      frames: 2\n",
            26,
            5,
            "source `images` has 2 frames and the stage 4",
            "mixing: batch",
        ),
        ("    frames: 4\n", "    frames: 4\n    micro_batch: 0\n", 29, 18, "is 0", "whole share"),
        (
            "warmup_steps: 10",
            "warmup_steps: 101",
            32,
            21,
            "101 steps of warm-up in a stage of 100",
            "",
        ),
        ("warmup_steps: 10", "final_fraction: 1.5", 32, 23, "1.5 is no share of the peak", ""),
        ("peak: 1e-3", "peak: 0", 31, 13, "is 0", "above 0"),
        (
            "name: base",
            "name: base\nprecision: bf16",
            2,
            12,
            "computes in f32 only",
            "device: cuda",
        ),
        (
            "clip_norm: 1.0",
            "multipliers: {y_encodr: 0.1}",
            34,
            27,
            "is no parameter group",
            "`y_encoder`",
        ),
        ("clip_norm: 1.0", "multipliers: {predictor: -1}", 34, 28, "is -1", "0 or more"),
        ("clip_norm: 1.0", "betas: [0.9, 1.0]", 34, 16, "1 is no decay rate", ""),
        ("clip_norm: 1.0", "weight_decay: -0.1", 34, 17, "is -0.1", ""),
        (
            "  mask_equal_targets: true",
            "  kind: l2",
            36,
            9,
            "collapses to one point",
            "trainable: false",
        ),
        (
            "  mask_equal_targets: true",
            "  temperature: {initial_logit_scale: 100}",
            36,
            38,
            "is above max_scale 100",
            "ln(1/0.07)",
        ),
        (
            "from: questions",
            "from: questions\n          query: what?",
            24,
            18,
            "bring their own query",
            "remove",
        ),
        (
            "{from: caption, query: describe}",
            "{from: caption, kind: x}",
            18,
            33,
            "captions have no kind",
            "",
        ),
        (
            "{from: caption, query: describe}",
            "{from: caption, weight: 0}",
            17,
            7,
            "all weights are 0",
            "",
        ),
        (
            "shards: clips.tar",
            "shards: s3://bucket/clips.tar",
            15,
            15,
            "`s3://` cannot be read",
            "",
        ),
        (
            "images-{000000..000003}.tar",
            "images-{3..0}.tar",
            20,
            15,
            "counts backwards",
            "a range is",
        ),
        (
            "    - name: motion\n",
            "    - name: motion\n      limit: 0\n",
            40,
            14,
            "is 0",
            "take all",
        ),
        (
            "    - name: motion\n",
            "    - name: motion\n      frames: 3\n",
            40,
            15,
            "3 frames do not divide",
            "",
        ),
        (
            "candidates: [left, right]",
            "candidates: red",
            44,
            23,
            "`red` is not named as a JSON file",
            "a list",
        ),
        (
            "candidates: [left, right]",
            "candidates: [left]",
            44,
            11,
            "1 to choose from",
            "at least 2",
        ),
        ("candidates: [left, right]", "candidates: [left, left]", 44, 30, "there twice", ""),
        ("  ranks_per_node: 2", "  nodes: 2", 46, 10, "this machine is one node, not 2", "slurm"),
        (
            "  ranks_per_node: 2",
            "  scheduler: slurm\n  slurm: {time_limit: 2 days}",
            47,
            23,
            "`2 days` is not a time of Slurm's",
            "2-00:00:00",
        ),
        (
            "  ranks_per_node: 2",
            "  scheduler: slurm\n  slurm: {time_limit: '5'}",
            47,
            3,
            "300 s ahead of a limit of 300 s",
            "",
        ),
        (
            "  ranks_per_node: 2",
            "  scheduler: slurm\n  slurm: {extra: [exclusive]}",
            47,
            19,
            "`exclusive` is not an option",
            "--option",
        ),
        ("cluster:\n", "checkpoints: {every_steps: 0}\ncluster:\n", 45, 28, "is 0", "500"),
        ("evaluation:\n", "evaluation:\n  every_steps: -1\n", 38, 16, "found the number -1", ""),
    ]);
}

#[test]
fn a_loss_without_negatives_has_none_to_mask() {
    let text = GOOD.replace("mask_equal_targets: true", "{kind: cosine, mask_equal_targets: true}");
    let text = text
        .replace("loss:\n  {", "loss: {")
        .replace("  y_encoder:\n", "  y_encoder:\n    trainable: false\n");
    let found = mistakes(load_text(&text, &[]).unwrap_err());
    assert_eq!(found.len(), 1);
    assert!(found[0].what.contains("only InfoNCE has negatives to mask"), "{}", found[0].what);
}

#[test]
fn all_contradictions_are_reported_together() {
    let text = GOOD.replace("batch: 8", "batch: 1").replace("frames: 4", "frames: 5");
    let found = mistakes(load_text(&text, &[]).unwrap_err());
    assert_eq!(found.iter().map(|m| m.line).collect::<Vec<_>>(), [27, 28]);
}

#[test]
fn flags_change_the_recipe_and_their_mistakes_name_the_flag() {
    let loaded = load_text(
        GOOD,
        &[
            "stages.0.steps=7",
            "stages.0.learning_rate.warmup_steps=2",
            "loss.temperature.max_scale=50",
            "name=other",
        ],
    );
    let recipe = loaded.unwrap().recipe;
    assert_eq!((recipe.stages[0].steps, recipe.name.as_str()), (7, "other"));
    assert!((recipe.loss.temperature.max_scale - 50.0).abs() < f32::EPSILON);
    for (set, column, what, help) in [
        ("stages.0.steps=abc", 16, "found the text `abc`", ""),
        ("stages.3.steps=5", 8, "`3` is no item of a list of 1", ""),
        ("stages.first.steps=5", 8, "`first` is no item of a list of 1", ""),
        ("stages.0.stepz=5", 10, "unknown key `stepz`", "`steps`"),
        ("stages.0.batch=1", 16, "smaller than the 2 ranks", "raise `batch`"),
        ("name.x=1", 6, "would be a key of the text `base`", ""),
        ("loss.mask_equal_targets=yes", 25, "found the text `yes`", "write `true`"),
        ("seed", 1, "there is no `=`", "key.of.the.recipe=value"),
        ("a..b=1", 3, "a key is empty", ""),
        ("extends=x.yaml", 1, "cannot change `extends`", ""),
        ("seed=[1", 6, "not YAML", ""),
        ("stages=", 1, "found nothing", "give the key a value"),
    ] {
        let found = mistakes(load_text(GOOD, &[set]).expect_err(set));
        let mistake = &found[0];
        assert_eq!(mistake.file(), format!("--set {set}"), "{}", mistake.what);
        assert_eq!((mistake.line, mistake.column), (1, column), "{set}: {}", mistake.what);
        assert!(mistake.what.contains(what), "{set}: {}", mistake.what);
        assert!(mistake.help.as_deref().unwrap_or("").contains(help), "{set}: {:?}", mistake.help);
    }
}

#[test]
fn extending_merges_maps_replaces_lists_and_points_into_the_right_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    write("base.yaml", GOOD);
    let child = write(
        "below/child.yaml",
        "extends: ../base.yaml\nname: child\nmodel: {predictor: {num_layers: 3}}\n",
    );
    let recipe = load(&child, &[]).unwrap().recipe;
    assert_eq!((recipe.name.as_str(), recipe.model.predictor.num_layers), ("child", 3));
    assert_eq!(recipe.model.predictor.head_dim, 16);

    // The base's line is shown where the base's value is at fault, the child's where the child's is.
    let child = write("below/child.yaml", "extends: ../base.yaml\ncluster: {ranks_per_node: 9}\n");
    let found = mistakes(load(&child, &[]).unwrap_err());
    assert!(found[0].file().ends_with("base.yaml"));
    assert_eq!(found[0].line, 27);
    let child = write("below/child.yaml", "extends: ../base.yaml\nloss:\n  knd: l2\n");
    let found = mistakes(load(&child, &[]).unwrap_err());
    assert!(found[0].file().ends_with("child.yaml"));
    assert_eq!((found[0].line, found[0].column), (3, 3));

    for (text, what) in [
        ("extends: self.yaml\n", "leads back to itself"),
        ("extends: nothing.yaml\n", "there is no recipe"),
        ("extends: [base.yaml]\n", "expected a text, found a list"),
        ("extends: ring.yaml\n", "leads back to itself"),
    ] {
        write("ring.yaml", "extends: self.yaml\n");
        let found = mistakes(load(&write("self.yaml", text), &[]).unwrap_err());
        assert!(found[0].what.contains(what), "{}", found[0].what);
    }
}

#[test]
fn what_is_no_recipe_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("good.yaml"), GOOD).unwrap();
    fs::write(path("bytes.yaml"), b"name: \xff\xfe").unwrap();
    for (name, reason, help) in [
        ("god.yaml", "there is no such file", "did you mean `good.yaml`?"),
        ("", "it is a folder", "good.yaml"),
        ("bytes.yaml", "it is not UTF-8 text (byte 6)", ""),
        ("good.yaml/x", "Not a directory", ""),
    ] {
        let error = load(&path(name), &[]).unwrap_err();
        let LoadError::Unreadable { reason: found, help: advice, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(found.contains(reason), "{found}");
        assert!(advice.as_deref().unwrap_or("").contains(help), "{advice:?}");
    }
    for (text, what) in [
        ("", "the recipe is empty"),
        ("# only a comment\n\n", "the recipe is empty"),
        ("- a\n- b\n", "a recipe is keys and values, found a list"),
        ("a text", "a recipe is keys and values, found the text `a text`"),
        ("name: a\n---\nname: b\n", "not YAML"),
    ] {
        let found = mistakes(load_text(text, &[]).unwrap_err());
        assert!(found[0].what.contains(what), "{text}: {}", found[0].what);
    }
    assert!(load(Path::new("/dev/zero"), &[]).unwrap_err().to_string().contains("not a file"));
}

#[test]
fn the_resolved_recipe_loads_to_itself_and_its_hash_ignores_where_runs_are_written() {
    let loaded = load_text(GOOD, &["runs=elsewhere"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, &loaded.yaml).unwrap();
    let again = load_resolved(&path).unwrap();
    assert_eq!(again.recipe, loaded.recipe);
    assert_eq!((&again.yaml, &again.hash), (&loaded.yaml, &loaded.hash));
    assert_eq!(load_text(GOOD, &[]).unwrap().hash, loaded.hash);
    assert_ne!(load_text(GOOD, &["seed=1"]).unwrap().hash, loaded.hash);
}

#[test]
fn every_recipe_of_the_folder_loads_costs_and_resolves_to_itself() {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                found.push(path);
            }
        }
    }
    assert!(found.len() >= 3, "{found:?}");
    for path in found {
        let loaded = load(&path, &[]).map_err(miette::Report::new).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{}", path.display());
        let cost = crate::cost::cost(&loaded.recipe);
        assert_eq!(cost.stages.len(), loaded.recipe.stages.len());
        assert!(
            cost.stages.iter().all(|stage| stage.operations > 0.0 && stage.memory.total() > 0.0)
        );
        let again = load_text(&loaded.yaml, &[]).unwrap();
        assert_eq!(again.recipe, loaded.recipe, "{}", path.display());
    }
}

/// The report as a terminal without colours shows it.
fn report(error: LoadError) -> String {
    let handler =
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor());
    let mut text = String::new();
    handler.with_width(100).render_report(&mut text, &error).unwrap();
    text
}

#[test]
fn reports_show_file_line_snippet_caret_and_help() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.yaml");
    fs::write(&path, GOOD.replace("    learning_rate:", "    learning_rat:")).unwrap();
    let shown = report(load(&path, &[]).unwrap_err());
    assert_eq!(shown.replace(&path.display().to_string(), "r.yaml"), LEARNING_RAT);
    let shown = report(load_text(GOOD, &["stages.0.batch=1"]).unwrap_err());
    assert_eq!(shown, BATCH_FLAG);
}

const LEARNING_RAT: &str = "  \
  × stages.0: unknown key `learning_rat`
    ╭─[r.yaml:30:5]
 29 │     mixture: {clips: 2, images: 1}
 30 │     learning_rat:
    ·     ──────┬─────
    ·           ╰── unknown key
 31 │       peak: 1e-3
    ╰────
  help: did you mean `learning_rate`?
";
const BATCH_FLAG: &str = "  \
  × stages.0.batch: a batch of 1 is smaller than the 2 ranks
   ╭─[--set stages.0.batch=1:1:16]
 1 │ stages.0.batch=1
   ·                ┬
   ·                ╰── here
   ╰────
  help: every rank needs a sample: raise `batch`, or lower cluster.nodes × ranks_per_node
";
