//! Recipes of tables: short forms, mistakes and warnings.

use std::fs;
use std::path::Path;

use super::{LoadError, Loaded, load, to_yaml};
use crate::schema::{ModelKind, Recipe, XEncoder};
use crate::{is_absent, paper, row_recipes};

/// A recipe of Table 4 with a run and a dual encoder.
const GOOD: &str = "\
name: table4
table:
  of: table4
  rows:
    vl_jepa_base: {run: runs/a, step: 5}
    clip_l:
      model:
        kind: dual_encoder
        x_encoder: {family: clip, size: l14, weights: w}
        y_encoder: {family: clip_text, size: l14, weights: w, tokenizer: t}
evaluation:
  tasks:
    - {name: sugarcrepe_pp, shards: a.json, kind: triplets, parts: [replace_att, replace_obj, replace_rel, swap_att, swap_obj]}
    - {name: visla, shards: b.json, kind: triplets, parts: [generic, spatial]}
";

fn load_text(text: &str, sets: &[&str]) -> Result<Loaded, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, text).unwrap();
    load(&path, &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
}

fn names(recipe: &Recipe) -> Vec<&str> {
    recipe.table.as_ref().unwrap().rows.keys().map(String::as_str).collect()
}

#[test]
fn run_takes_the_place_of_the_rows_and_null_leaves_one_out() {
    let loaded = load_text(GOOD, &[]).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(names(&loaded.recipe), ["clip_l", "vl_jepa_base"]);
    let row = &loaded.recipe.table.as_ref().unwrap().rows["clip_l"];
    let model = row.model.as_ref().unwrap();
    let XEncoder::Clip(x) = &model.x_encoder else { panic!("not CLIP") };
    // The keys of the published model are filled in.
    assert_eq!((x.num_layers, model.image_size, model.embed_dim), (24, 224, 768));

    let one = load_text(GOOD, &["run=runs/b"]).unwrap().recipe;
    assert_eq!(names(&one), ["vl_jepa_base"]);
    let row = &one.table.as_ref().unwrap().rows["vl_jepa_base"];
    assert_eq!((row.run.as_deref(), row.step), (Some(Path::new("runs/b")), None));
    // A row that names the run keeps its name; another row is a warning.
    let two = GOOD.replace("    clip_l:", "    vl_jepa_sft: {run: runs/c, step: 7}\n    clip_l:");
    let own = load_text(&two, &["run=runs/c"]).unwrap();
    assert_eq!((names(&own.recipe), own.warnings), (vec!["vl_jepa_sft"], Vec::new()));
    let other = load_text(&two, &["run=runs/d"]).unwrap();
    assert_eq!(names(&other.recipe), ["vl_jepa_base"]);
    assert!(other.warnings[0].contains("so it is the row `vl_jepa_base`"), "{:?}", other.warnings);
    // A resolved recipe writes `run: null` for its dual encoder.
    let again = load_text(&loaded.yaml, &["run=runs/b"]).unwrap().recipe;
    assert_eq!(names(&again), ["vl_jepa_base"]);
    let less = load_text(GOOD, &["table.rows.clip_l=null"]).unwrap().recipe;
    assert_eq!(names(&less), ["vl_jepa_base"]);
    let below = load_text(GOOD, &["table.runs=runs/seed-1"]).unwrap();
    let run = |loaded: &Loaded| {
        loaded.recipe.table.as_ref().unwrap().rows["vl_jepa_base"].run.clone().unwrap()
    };
    assert_eq!(run(&below), Path::new("runs/seed-1/runs/a"));
    assert_eq!(load_text(&below.yaml, &[]).unwrap().recipe, below.recipe);
    let absolute = load_text(GOOD, &["table.runs=b", "table.rows.vl_jepa_base.run=/a"]).unwrap();
    assert_eq!(run(&absolute), Path::new("/a"));
    // The resolved recipe is the same recipe.
    assert_eq!(load_text(&loaded.yaml, &[]).unwrap().recipe, loaded.recipe);
    // Rows may change between two starts, the table may not.
    assert_eq!(load_text(GOOD, &["run=runs/b"]).unwrap().hash, loaded.hash);
    assert_ne!(load_text(GOOD, &["table.of=table1"]).unwrap().hash, loaded.hash);
}

#[test]
fn mistakes_in_a_table_are_shown_where_they_are() {
    #[rustfmt::skip]
    let rows = [
        ("of: table4", "of: table6", 3, "table.of: `table6` is no table of the paper", "did you mean"),
        ("  rows:", "  runs: [a]\n  rows:", 4, "`runs` is the folder that holds the runs of the rows", "write a path"),
        ("of: table4", "of: nothing", 3, "`nothing` is no table", "write one of figure3, figure4, imagenet, table1"),
        ("{run: runs/a, step: 5}", "{run: runs/a, export: e}", 5, "must name exactly one of", "keep the key"),
        ("{run: runs/a, step: 5}", "{step: 5}", 5, "must name exactly one of", ""),
        ("{run: runs/a, step: 5}", "{export: e, step: 5}", 5, "step: only a run has steps", "remove it"),
        ("{run: runs/a, step: 5}", "{rum: runs/a}", 5, "unknown key `rum`", "did you mean `run`?"),
        ("  rows:", "  columns: {visl: [a]}\n  rows:", 4, "table.columns.visl: table4 has no column `visl`", "did you mean `visla`?"),
        ("  rows:", "  columns: {visla: []}\n  rows:", 4, "table.columns.visla: is empty", "remove it"),
        ("step: 5}", "paper: vl_jepa_bas}", 5, "paper: the paper has no row `vl_jepa_bas`", "did you mean `vl_jepa_base`?"),
        ("kind: dual_encoder", "kind: vl_jepa", 8, "only a dual encoder has all its weights", "`kind: dual_encoder`"),
        ("family: clip_text", "family: pe_text", 10, "table.rows.clip_l.model.y_encoder.family: was not trained with this X-encoder", "`clip_text`"),
        ("family: clip,", "family: clup,", 9, "table.rows.clip_l.model.x_encoder.family: `clup` is not one of", "did you mean `clip`?"),
        ("name: visla", "name: sugarcrepe_pp", 14, "which task 0 gives too", "a name of its own"),
        ("evaluation:\n", "evaluation:\n  every_steps: 5\n", 12, "measured once, not after steps", "remove it"),
        ("name: table4", "name: table4\nseed: 1\nstages: [{name: a, steps: 1, batch: 1, frames: 2, mixture: {a: 1}, learning_rate: {peak: 1}}]", 3, "`stages` and `table` are both given", "remove it"),
        ("name: table4", "name: table4\nmodel: {image_size: 64}", 2, "the rows of a table have their own models", "remove it"),
        ("name: table4", "name: table4\nprecision: bf16", 2, "computes in f32 only", "device: cuda"),
    ];
    for (from, to, line, what, help) in rows {
        assert_eq!(GOOD.matches(from).count(), 1, "`{from}` must appear once");
        let error = load_text(&GOOD.replace(from, to), &[]).expect_err(to);
        let mistake = match error {
            LoadError::Mistake(mistake) => *mistake,
            other => panic!("`{to}`: {other:?}"),
        };
        assert!(mistake.what.contains(what), "`{to}`: {}", mistake.what);
        assert_eq!(mistake.line, line, "`{to}`: {}", mistake.what);
        let found = mistake.help.unwrap_or_default();
        assert!(found.contains(help), "`{to}`: {found}");
    }
    for (sets, what) in [
        (&["run=runs/b", "table.rows.vl_jepa_base=null"][..], "no row has one"),
        (&["table.rows={}"], "table.rows: is empty"),
    ] {
        let error = load_text(GOOD, sets).expect_err(what);
        let LoadError::Mistake(mistake) = error else { panic!("{error:?}") };
        let help = mistake.help.clone().unwrap_or_default();
        let said = format!("{mistake} {help}");
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn a_table_warns_of_rows_and_columns_that_are_not_compared() {
    let warnings = |edit: (&str, &str)| {
        assert_eq!(GOOD.matches(edit.0).count(), 1, "{}", edit.0);
        load_text(&GOOD.replace(edit.0, edit.1), &[]).unwrap().warnings
    };
    let one = |edit, what: &str| {
        let [found] = &warnings(edit)[..] else { panic!("{:?}", warnings(edit)) };
        assert!(found.contains(what), "{found}");
    };
    one(
        ("vl_jepa_base:", "vl_jepa_bas:"),
        "it is not compared, because the paper's table4 has no row of this name; did you mean `vl_jepa_base`?",
    );
    one(
        (", parts: [generic, spatial]", ""),
        "table4 has columns that no task measures: visla_generic, visla_spatial",
    );
    one((", tokenizer: t", ""), "table.rows.clip_l.model.y_encoder.tokenizer is not set");
    one(
        ("  rows:", "  columns: {visla: [my_visla]}\n  rows:"),
        "table4 has columns that no task measures: my_visla",
    );
    // A row that names its twin may have any name.
    assert!(warnings(("vl_jepa_base: {", "mine: {paper: vl_jepa_base, ")).is_empty());
}

#[test]
fn every_table_of_the_paper_has_a_recipe_whose_rows_are_the_papers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("evaluate");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let recipe = load(&path, &[]).unwrap().recipe;
        let table = recipe.table.as_ref().unwrap();
        let known = &paper::TABLES[&table.of];
        assert_eq!(load(&path, &[]).unwrap().warnings, Vec::<String>::new(), "{}", path.display());
        for name in table.rows.keys() {
            assert!(known.row(name).is_some(), "{}: {name}", path.display());
        }
        found.push(table.of.clone());
    }
    for name in paper::TABLES.keys() {
        assert!(found.contains(name), "{name} has no recipe");
    }
}

#[test]
fn a_row_is_measured_with_the_model_of_its_run_and_the_tasks_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
    let trained = load(&quickstart, &["model.x_encoder.weights=w".to_owned()]).unwrap();
    fs::write(run.join("recipe.yaml"), &trained.yaml).unwrap();
    let set = |run: &Path| format!("table.rows.vl_jepa_base.run={}", run.display());
    let table = load_text(GOOD, &[&set(&run)]).unwrap().recipe;
    let rows = row_recipes(&table);
    let [clip, jepa] = &rows[..] else { panic!("two rows") };
    let (clip, jepa) = (clip.as_ref().unwrap(), jepa.as_ref().unwrap());
    assert_eq!(clip.recipe.model.kind, ModelKind::DualEncoder);
    assert_eq!((clip.step, jepa.step), (None, Some(5)));
    assert_eq!(jepa.recipe.evaluation, table.evaluation);
    assert_eq!(jepa.recipe.stages, trained.recipe.stages);
    assert_eq!(jepa.recipe.model.predictor, trained.recipe.model.predictor);
    // A row's recipe can be read again; the measurement does not read its training data.
    let again = load_text(&to_yaml(&jepa.recipe).unwrap(), &[]).unwrap().recipe;
    assert_eq!(again, jepa.recipe);
    assert!(!jepa.recipe.data.sources.is_empty());
    assert!(jepa.read(table.table.as_ref().unwrap()).data.sources.is_empty());
    // The checkpoint brings all weights.
    assert_eq!(trained.recipe.model.x_encoder.weights(), Some(Path::new("w")));
    assert_eq!(jepa.recipe.model.x_encoder.weights(), None);
    assert_eq!(jepa.recipe.init.as_ref().unwrap().path(), run);
    assert!(!is_absent(&jepa.recipe.evaluation.tasks[0]));

    // The host has trained a model whose heads have no kernel on GPUs.
    let narrow = load(&quickstart, &["model.predictor.head_dim=8".to_owned()]).unwrap();
    let narrow_run = folder.path().join("narrow");
    fs::create_dir(&narrow_run).unwrap();
    fs::write(narrow_run.join("recipe.yaml"), &narrow.yaml).unwrap();
    let of_narrow = set(&narrow_run);
    let on_gpu = [of_narrow.as_str(), "device=cuda", "precision=bf16"];
    let problem = row_recipes(&load_text(GOOD, &on_gpu).unwrap().recipe)[1].clone().unwrap_err();
    assert_eq!(problem.key, "table.rows.vl_jepa_base.run");
    let said = "its model.predictor.head_dim: the predictor has heads of 8 elements";
    assert!(problem.what.starts_with(said) && problem.help.contains("null"), "{problem:?}");
    assert!(row_recipes(&load_text(GOOD, &[&of_narrow]).unwrap().recipe)[1].is_ok());

    let missing = load_text(GOOD, &[&set(&folder.path().join("none"))]).unwrap().recipe;
    let problem = row_recipes(&missing)[1].clone().unwrap_err();
    assert_eq!(problem.key, "table.rows.vl_jepa_base.run");
    assert!(problem.what.contains("not a run directory") && problem.help.contains("null"));
    // A question is nothing that a dual encoder can be asked: the task is at fault, in each row.
    let questions = "evaluation.tasks.1={name: gqa, shards: b.tar, kind: {question_answering: {candidates: [yes, 'no']}}}";
    let error = load_text(GOOD, &[questions]).unwrap_err().to_string();
    assert!(
        error.contains("evaluation.tasks.1.kind: a dual encoder reads no questions"),
        "{error}"
    );
}
