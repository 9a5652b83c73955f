//! Mistakes as data: each row makes one edit to a valid recipe and states what the report must say,
//! and where.

use std::fs;
use std::path::Path;

use super::mistakes::{CONTRADICTIONS, GOOD, KEYS_AND_TYPES, Row, SET, SETS, SYNTAX};
use super::{LoadError, Loaded, Mistake, is_programme, load, load_resolved, load_yaml};
use crate::schema::{Init, Recipe};

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
        LoadError::Unreadable { .. } | LoadError::Entry { .. } | LoadError::Resolve { .. } => {
            panic!("{error:?}")
        }
    }
}

fn check(rows: &[Row]) {
    let mut failures = String::new();
    for &(from, to, line, column, what, help) in rows {
        assert_eq!(GOOD.matches(from).count(), 1, "`{from}` must appear once");
        let wanted = format!("{line}:{column} {what} | {help}");
        let error = match load_text(&GOOD.replace(from, to), &[]) {
            Ok(_) => {
                failures += &format!("`{to}` was accepted; wanted {wanted}\n");
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
    check(KEYS_AND_TYPES);
}

#[test]
fn what_is_not_yaml_is_shown_where_it_breaks() {
    check(SYNTAX);
}

#[test]
fn contradictions_across_keys_are_shown_at_the_key_that_can_change() {
    check(CONTRADICTIONS);
}

#[test]
fn a_loss_without_negatives_has_none_to_mask() {
    let text = GOOD.replace("mask_equal_targets: true", "{kind: cosine, mask_equal_targets: true}");
    let text = text
        .replace("loss:\n  {", "loss: {")
        .replace("  y_encoder:\n", "  y_encoder:\n    update: frozen\n    projection: none\n");
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
        ("stages.0.steps=abc", 16, "found the string `abc`", ""),
        ("stages.3.steps=5", 8, "`3` is not an index into a list of length 1", ""),
        ("stages.first.steps=5", 8, "`first` is not an index into a list of length 1", ""),
        ("stages.0.stepz=5", 10, "unknown key `stepz`", "`steps`"),
        ("stages.0.batch=1", 16, "smaller than the 2 ranks", "raise `batch`"),
        ("name.x=1", 6, "cannot be a key of the string `base`", ""),
        ("loss.mask_equal_targets=yes", 25, "found the string `yes`", "write `true`"),
        ("seed", 1, "the `=` is missing", "key.of.the.recipe=value"),
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
    assert_eq!((recipe.name.as_str(), recipe.model.predictor.num_layers()), ("child", 3));
    assert_eq!(recipe.model.predictor.head_dim, 16);

    // The report shows a line of the base if the base's value is wrong, and one of the child
    // otherwise.
    let child = write("below/child.yaml", "extends: ../base.yaml\ncluster: {ranks_per_node: 9}\n");
    let found = mistakes(load(&child, &[]).unwrap_err());
    assert!(found[0].file().ends_with("base.yaml"));
    assert_eq!(found[0].line, 27);
    let child = write("below/child.yaml", "extends: ../base.yaml\nloss:\n  knd: l2\n");
    let found = mistakes(load(&child, &[]).unwrap_err());
    assert!(found[0].file().ends_with("child.yaml"));
    assert_eq!((found[0].line, found[0].column), (3, 3));

    for (text, what) in [
        ("extends: self.yaml\n", "extends itself"),
        ("extends: nothing.yaml\n", "there is no recipe"),
        ("extends: [base.yaml]\n", "expected a string, found a list"),
        ("extends: ring.yaml\n", "extends itself"),
    ] {
        write("ring.yaml", "extends: self.yaml\n");
        let found = mistakes(load(&write("self.yaml", text), &[]).unwrap_err());
        assert!(found[0].what.contains(what), "{}", found[0].what);
    }
}

#[test]
fn init_names_one_source_of_weights_and_an_extending_recipe_can_name_another() {
    let of = |sets: &[&str]| load_text(GOOD, sets).map(|loaded| loaded.recipe.init);
    let run = || Some(Init::Run("runs/a".into()));
    assert_eq!(of(&[]).unwrap(), None);
    assert_eq!(of(&["init.run=runs/a"]).unwrap(), run());
    assert_eq!(of(&["init={export: b}", "init.export=", "init.run=runs/a"]).unwrap(), run());
    assert_eq!(of(&["init={weights: c}", "init="]).unwrap(), None);
    assert!(of(&["init={export: b}", "init.run=runs/a"]).is_err());
    // It changes what is trained, so it enters the hash.
    let hash = |sets: &[&str]| load_text(GOOD, sets).unwrap().hash;
    assert_eq!(hash(&["init="]), hash(&[]));
    assert_ne!(hash(&["init.run=runs/a"]), hash(&[]));
    assert_ne!(hash(&["init.run=runs/a"]), hash(&["init.export=runs/a"]));
}

#[test]
fn a_source_that_is_null_is_left_out_and_an_extending_recipe_can_bring_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = |name: &str, base: &Path, source: &str| {
        let path = folder.path().join(name);
        let text =
            format!("extends: {}\ndata: {{sources: {{action100m: {source}}}}}\n", base.display());
        fs::write(&path, text).unwrap();
        path
    };
    let names = |path: &Path, sets: &[String]| -> Vec<String> {
        let recipe = load(path, sets).unwrap().recipe;
        recipe.data.sources.into_keys().collect()
    };
    let pretrain = recipes.join("pretrain.yaml");
    let without = write("without.yaml", &pretrain, "null");
    // Both video stages draw from it.
    let error = mistakes(load(&without, &[]).unwrap_err());
    assert!(error[0].what.contains("action100m"), "{}", error[0].what);
    let images = ["stages.1.mixture={datacomp: 1}", "stages.2.mixture={datacomp: 1}"];
    assert_eq!(names(&without, &images.map(str::to_owned)), ["datacomp", "yfcc100m"]);
    let source = "{shards: clips.tar, visual: video, targets: [{from: caption}]}";
    let again = write("again.yaml", &without, source);
    assert_eq!(names(&again, &[]), ["action100m", "datacomp", "yfcc100m"]);
}

#[test]
fn init_that_brings_all_weights_excludes_those_of_the_encoders() {
    let encoder = "model.y_encoder.weights=gemma.safetensors";
    for init in ["init.run=runs/a", "init.export=b"] {
        let found = mistakes(load_text(GOOD, &[encoder, init]).unwrap_err());
        let [Mistake { what, help, .. }] = &found[..] else { panic!("{found:?}") };
        let key = init.split('=').next().unwrap();
        let wanted = format!("model.y_encoder.weights: would have no effect: `{key}` brings all");
        assert!(what.starts_with(&wanted), "{what}");
        assert!(help.as_ref().unwrap().contains("`weights: null`"), "{help:?}");
    }
    load_text(GOOD, &[encoder, "init.weights=projections.safetensors"]).unwrap();
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
        ("- a\n- b\n", "a recipe must be keys and values, found a list"),
        ("a text", "a recipe must be keys and values, found the string `a text`"),
        ("name: a\n---\nname: b\n", "not YAML"),
    ] {
        let found = mistakes(load_text(text, &[]).unwrap_err());
        assert!(found[0].what.contains(what), "{text}: {}", found[0].what);
    }
    assert!(load(Path::new("/dev/zero"), &[]).unwrap_err().to_string().contains("not a file"));
}

#[test]
fn a_key_that_has_its_default_does_not_enter_the_hash() {
    let loaded = load_text(GOOD, &[]).unwrap();
    let text = |yaml: &str| load_text(yaml, &[]).unwrap().hash;
    let without: Vec<&str> =
        loaded.yaml.lines().filter(|line| !line.trim().starts_with("field: null")).collect();
    assert!(without.len() < loaded.yaml.lines().count(), "{}", loaded.yaml);
    assert_eq!(text(&without.join("\n")), loaded.hash, "as recorded before the key was added");
    let action = load_text(GOOD, &["data.sources.clips.targets.0.field=action"]).unwrap();
    assert_ne!(action.hash, loaded.hash);
    // Runs outlive changes of the schema and of the libraries.
    assert_eq!(&loaded.hash[..16], "3c6e2733e19d9ea6");
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
    let of_text = load_yaml(&loaded.yaml).unwrap();
    assert_eq!((&of_text.yaml, &of_text.hash), (&loaded.yaml, &loaded.hash));
    let wrong = load_yaml("nonsense: 1").unwrap_err().to_string();
    assert!(wrong.contains("nonsense"), "{wrong}");
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
                // Files of sets and of rates are no recipes.
                if !path.ends_with("evaluate/sets") && !path.ends_with("rates") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "yaml") && !is_programme(&path).unwrap()
            {
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
        for device in [["device=host", "precision=f32"], ["device=cuda", "precision=bf16"]] {
            load(&path, &device.map(str::to_owned)).unwrap();
        }
    }
}

/// Renders the report for a terminal without colours.
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

/// The two sides of the controlled comparison differ in what they predict, and in nothing else.
#[test]
fn both_sides_of_the_controlled_comparison_see_the_same_samples_in_the_same_order() {
    let recipe = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        load(&path, &[]).unwrap().recipe
    };
    let (jepa, vlm) = (recipe("controlled_vl_jepa.yaml"), recipe("controlled_vlm.yaml"));
    assert_eq!((&jepa.data, jepa.seed), (&vlm.data, vlm.seed));
    assert_eq!((&jepa.stages, &jepa.optimizer), (&vlm.stages, &vlm.optimizer));
    assert_eq!(jepa.evaluation.tasks, vlm.evaluation.tasks);
    assert_eq!(jepa.model.x_encoder, vlm.model.x_encoder);
    assert_eq!(jepa.model.image_size, vlm.model.image_size);
    assert_eq!((&jepa.model.language_model, jepa.model.embed_dim), (&None, 1024));
    let trainable = |recipe: &Recipe| crate::cost::parameters(&recipe.model).trainable;
    let [jepa, vlm] = [trainable(&jepa), trainable(&vlm)];
    // Paper, abstract: "50% fewer trainable parameters".
    assert!(jepa * 2 < vlm, "{jepa} of {vlm}");
}

/// Dotted keys of two resolved recipes that differ.
fn differences(a: &serde_json::Value, b: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    let (Some(left), Some(right)) = (a.as_object(), b.as_object()) else {
        if a != b {
            found.push(at.to_owned());
        }
        return;
    };
    for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
        let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        let null = serde_json::Value::Null;
        let [a, b] = [left, right].map(|map| map.get(key).unwrap_or(&null));
        differences(a, b, &at, found);
    }
}

#[test]
fn each_row_of_table_5_changes_one_thing_of_its_base() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ablations");
    let json = |name: &str| {
        let loaded = load(&folder.join(name).with_extension("yaml"), &[]).unwrap();
        serde_json::to_value(loaded.recipe).unwrap()
    };
    // A text encoder brings its own files and sizes, and its own width if it is not projected.
    let y_encoder = &["model.y_encoder", "model.embed_dim"][..];
    let (loss, layers) = (&["loss.kind"][..], &["model.predictor.layers"][..]);
    let multiplier = &["optimizer.multipliers.y_encoder"][..];
    let run = &["init", "model.x_encoder.weights", "model.predictor.weights"][..];
    let rows = [
        ("a_pretraining", "base", &[run, &["model.y_encoder.weights"]].concat()[..]),
        ("b_multiplier_1", "base", multiplier),
        ("b_multiplier_0_1", "base", multiplier),
        ("b_multiplier_0_01", "base", multiplier),
        ("b_multiplier_0", "base", multiplier),
        ("c_info_nce", "base", y_encoder),
        ("c_cosine", "c_info_nce", loss),
        ("c_l1", "c_info_nce", loss),
        ("c_l2", "c_info_nce", loss),
        ("d_layers_0_2", "base", layers),
        ("d_layers_0_4", "base", layers),
        ("d_layers_0_8", "base", layers),
        ("d_layers_0_16", "base", layers),
        ("d_causal", "base", &["model.predictor.attention"]),
        ("d_random", "base", &["model.predictor.weights"]),
        ("e_embedding_gemma", "base", &["model.y_encoder.update"]),
        ("e_qwen3_0_6b", "e_embedding_gemma", &y_encoder[..1]),
        ("e_qwen3_4b", "e_embedding_gemma", &y_encoder[..1]),
        ("e_qwen3_8b", "e_embedding_gemma", &y_encoder[..1]),
        ("e_pe_b", "e_embedding_gemma", &y_encoder[..1]),
        ("e_pe_l", "e_embedding_gemma", &y_encoder[..1]),
        ("e_pe_g", "e_embedding_gemma", &y_encoder[..1]),
    ];
    assert_eq!(fs::read_dir(&folder).unwrap().count(), rows.len() + 1);
    for (row, base, keys) in rows {
        let mut found = Vec::new();
        differences(&json(row), &json(base), "", &mut found);
        found.retain(|key| key != "name");
        assert!(!found.is_empty(), "{row}");
        let expected = |key: &String| keys.iter().any(|start| key.starts_with(start));
        assert!(found.iter().all(expected), "{row}: {found:?}");
    }
}

/// Loads a recipe with one task, beside a set file with an edit.
fn with_set(edit: (&str, &str), task: &str) -> Result<Loaded, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(SET.matches(edit.0).count(), 1, "`{}` must appear once", edit.0);
    fs::create_dir(folder.path().join("sets")).unwrap();
    fs::write(folder.path().join("sets/tiny.yaml"), SET.replace(edit.0, edit.1)).unwrap();
    let (head, _) = GOOD.split_once("    - name: motion\n").unwrap();
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, format!("{head}    - {task}\ncluster: {{ranks_per_node: 2}}\n")).unwrap();
    load(&path, &["evaluation.tasks.0.limit=3".to_owned()])
}

#[test]
fn a_task_takes_its_keys_from_the_file_of_its_set_and_may_change_them() {
    let same = ("name: tiny", "name: tiny");
    let loaded = with_set(same, "{set: sets/tiny.yaml}").unwrap();
    let [task] = &loaded.recipe.evaluation.tasks[..] else { panic!("one task") };
    assert_eq!((task.name.as_str(), task.frames, task.limit), ("tiny", Some(2), Some(3)));
    assert_eq!(task.set.as_ref().unwrap().expect.samples, Some(398));
    assert_eq!(task.metrics(), ["tiny"]);
    // The resolved recipe holds the set itself.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolved.yaml");
    fs::write(&path, &loaded.yaml).unwrap();
    assert_eq!(load_resolved(&path).unwrap().recipe, loaded.recipe);
    let changed = "{set: sets/tiny.yaml, name: other, frames: 4}";
    let task = &with_set(same, changed).unwrap().recipe.evaluation.tasks[0];
    assert_eq!((task.name.as_str(), task.frames), ("other", Some(4)));
}

#[test]
fn mistakes_in_a_set_are_shown_in_its_file_and_those_of_the_task_in_the_recipe() {
    for &(from, to, task, file, what, help) in SETS {
        let found = mistakes(with_set((from, to), task).expect_err(task));
        let shown: Vec<_> = found.iter().map(|m| (m.file(), &m.what, &m.help)).collect();
        let right = |m: &Mistake| {
            m.file().ends_with(file)
                && m.what.contains(what)
                && m.help.as_deref().unwrap_or("").contains(help)
        };
        let is_right = found.len() == 1 && right(&found[0]);
        assert!(is_right, "wanted {file}: {what} | {help}, found {shown:?}");
    }
}
