//! Tables of the paper: rows measured on any number of ranks, kept, changed and collected.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::dual_encoder::Folder;
use crate::programs::{Trial, command, small_set, text, wait_until};
use crate::resume::{signal, workers};

/// One step per checkpoint, and the questions of the small set under the name of GQA.
fn trial() -> Trial {
    let set = small_set().display();
    Trial::new(&format!(
        "
stages:
  - {{name: one, steps: 2, batch: 8, frames: 4, mixture: {{clips: 1}}, mixing: batch, learning_rate: {{peak: 1e-3}}}}
checkpoints: {{every_steps: 1, keep: 2}}
cluster: {{ranks_per_node: 1}}
evaluation:
  tasks:
    - {{name: gqa, shards: {set}/eval/exists.tar, frames: 2, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
    - {{name: pope, shards: {set}/eval/exists.tar, frames: 2, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
"
    ))
}

/// Writes the recipe of Table 2 with these rows.
fn write_table(trial: &Trial, rows: &str) {
    let set = small_set().display();
    let recipe = format!(
        "name: table
table:
  of: table2
  rows:
{rows}
evaluation:
  tasks:
    - {{name: gqa, shards: {set}/eval/exists.tar, frames: 2, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
    - {{name: pope, shards: {set}/eval/exists.tar, frames: 2, limit: 40, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
"
    );
    std::fs::write(trial.path("table.yaml"), recipe).unwrap();
}

fn launch(trial: &Trial, run: &str, sets: &[&str]) -> Output {
    let mut command = command("vljepa-launch");
    command.arg(trial.path("table.yaml")).arg("--run").arg(trial.path(run));
    for set in sets {
        command.args(["--set", set]);
    }
    command.output().unwrap()
}

fn complete(trial: &Trial, run: &str, sets: &[&str]) -> String {
    let output = launch(trial, run, sets);
    assert!(output.status.success(), "{}", text(&output));
    assert!(trial.path(run).join("completed.json").exists(), "{}", text(&output));
    text(&output)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn own<'a>(table: &'a Value, name: &str) -> &'a Value {
    table["own"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap()
}

/// Inodes of the kept files of a row.
fn kept(run: &Path, row: &str) -> Vec<(std::ffi::OsString, u64)> {
    use std::os::unix::fs::MetadataExt;
    let kept = run.join("rows").join(row).join("evaluations/kept");
    let folder = std::fs::read_dir(kept).unwrap().next().unwrap().unwrap();
    let files = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
    let mut all: Vec<_> =
        files.map(|file| (file.file_name(), file.metadata().unwrap().ino())).collect();
    all.sort();
    all
}

#[test]
fn a_table_measures_runs_and_exports_on_any_number_of_ranks_and_keeps_what_it_knows() {
    let trial = trial();
    trial.complete("trained", &[]);
    let export = trial.path("export");
    let mut exporting = command("vljepa-launch");
    let output = exporting.arg("export").arg(trial.path("trained")).arg(&export).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let run = trial.path("trained").display().to_string();
    write_table(
        &trial,
        &format!(
            "    vl_jepa_sft: {{run: {run}}}
    half: {{run: {run}, step: 1}}
    whole: {{export: {}}}",
            export.display()
        ),
    );
    let mut plan = command("vljepa-launch");
    let plan = text(&plan.arg(trial.path("table.yaml")).arg("--dry-run").output().unwrap());
    assert!(plan.contains("2 tasks for each of 3 rows") && plan.contains("VL-JEPA_SFT"), "{plan}");
    let said = complete(&trial, "one", &[]);
    for part in [
        "VL-JEPA_SFT",
        "61.5",
        "GQA",
        "half",
        "table2 has columns that no task measures",
        "16 samples seen",
    ] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    let table = json(&trial.path("one/table.json"));
    complete(&trial, "two", &["cluster.ranks_per_node=2"]);
    let mut two = json(&trial.path("two/table.json"));
    assert_eq!(two["own"], table["own"], "scores have the same bits on two ranks");

    // The table's scores are those that the run measures itself.
    let itself = json(&trial.path("trained/scores.json"));
    let row = own(&table, "vl_jepa_sft");
    assert_eq!(row["metrics"]["gqa"]["value"], itself["gqa"]["value"]);
    assert_eq!(row["metrics"]["gqa"]["measured"], itself["gqa"]["measured"]);
    assert_eq!((&row["step"], &row["samples"]), (&Value::from(2), &Value::from(16)));
    let cells = &row["points"][0]["cells"];
    let gqa = itself["gqa"]["value"].as_f64().unwrap() * 100.0;
    assert_eq!(cells[0]["value"].as_f64().unwrap().to_bits(), gqa.to_bits());
    assert_eq!(cells[0]["difference"].as_f64().unwrap().to_bits(), (gqa - 61.5).to_bits());
    // TallyQA and POPEv2 are not measured.
    assert!(cells[1]["value"].is_null() && cells[3]["value"].is_null());
    // The export holds the weights of the newest checkpoint, the earlier one holds others.
    assert_eq!(own(&table, "whole")["metrics"], row["metrics"]);
    assert_ne!(
        own(&table, "half")["metrics"]["gqa"]["measured"],
        row["metrics"]["gqa"]["measured"]
    );
    assert_eq!(own(&table, "half")["samples"], 8);

    // A second start asks the models nothing that is kept, and measures what changed.
    let before = kept(&trial.path("one"), "vl_jepa_sft");
    let said = complete(&trial, "one", &["table.rows.half=null", "evaluation.tasks.1.limit=30"]);
    assert!(said.contains("evaluation.tasks.1.limit: 40 → 30"), "{said}");
    let after = kept(&trial.path("one"), "vl_jepa_sft");
    assert!(before.iter().all(|file| after.contains(file)) && after.len() > before.len());
    two = json(&trial.path("one/table.json"));
    assert_eq!(two["own"].as_array().unwrap().len(), 2);
    assert_eq!(own(&two, "vl_jepa_sft")["metrics"]["pope"]["n"], 30);
    assert_eq!(own(&two, "vl_jepa_sft")["metrics"]["gqa"], row["metrics"]["gqa"]);

    let page = std::fs::read_to_string(trial.path("one/report.html")).unwrap();
    let markdown = std::fs::read_to_string(trial.path("one/table.md")).unwrap();
    for part in ["VL-JEPA_SFT", "Qwen-VL-7B", "59.3"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(markdown.contains("| VL-JEPA_SFT |") && markdown.contains("61.5"), "{markdown}");
    // The page can be made again when the run is gone; its samples are then unknown.
    std::fs::remove_dir_all(trial.path("trained")).unwrap();
    let again = command("vljepa-launch").arg("report").arg(trial.path("one")).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));
    let later = json(&trial.path("one/table.json"));
    assert_eq!(own(&later, "vl_jepa_sft")["metrics"], own(&two, "vl_jepa_sft")["metrics"]);
}

#[test]
fn a_row_that_cannot_be_measured_stops_the_table_before_it_starts() {
    let trial = trial();
    trial.complete("trained", &[]);
    let run = trial.path("trained").display().to_string();
    let rows = |rows: &str| write_table(&trial, rows);
    let refused = |sets: &[&str], parts: &[&str]| {
        let output = launch(&trial, "table", sets);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        for part in parts {
            assert!(text(&output).contains(part), "`{part}` is missing in: {}", text(&output));
        }
        assert!(!trial.path("table").exists());
    };
    rows(&format!("    vl_jepa_sft: {{run: {run}, step: 7}}"));
    refused(&[], &["table.rows.vl_jepa_sft.run", "step-00000007: does not exist", "1, 2"]);
    rows("    vl_jepa_sft: {run: /nowhere}");
    refused(&[], &["table.rows.vl_jepa_sft.run", "/nowhere is not a run directory", "null"]);
    // A plan is also made where the run is not.
    let plan = command("vljepa-launch").arg(trial.path("table.yaml")).arg("--dry-run").output();
    let plan = plan.unwrap();
    assert!(
        plan.status.success() && text(&plan).contains("cannot be measured yet"),
        "{}",
        text(&plan)
    );
    rows("    vl_jepa_sft: {export: /nowhere}");
    refused(&[], &["table.rows.vl_jepa_sft.export", "has no recipe.yaml", "vljepa-launch export"]);
    rows(&format!("    vl_jepa_sft: {{run: {run}}}"));
    // A set that is not here is an error, unless the table leaves it out.
    let set = trial.path("set.yaml");
    std::fs::write(
        &set,
        "name: tallyqa\nsource: here\nroot: /nowhere\nformat: {tally_qa: {questions: test.json, images: \"{image}\"}}\ntask: {frames: 2, kind: {question_answering: {}}}\n",
    )
    .unwrap();
    let absent = format!("evaluation.tasks.1={{set: {}}}", set.display());
    refused(&[&absent], &["evaluation.tasks.1.set.root: there is no folder /nowhere"]);
    let skip = "table.skip_absent_sets=true";
    refused(
        &[&absent, skip, &format!("evaluation.tasks.0={{set: {}, name: gqa}}", set.display())],
        &["no set of the table is on this disk"],
    );
    let said = complete(&trial, "table", &[&absent, skip]);
    assert!(said.contains("task `tallyqa` is left out"), "{said}");
    let table = json(&trial.path("table/table.json"));
    assert_eq!(own(&table, "vl_jepa_sft")["left_out"], serde_json::json!(["tallyqa"]));
    // A start that is refused leaves the records of the table before it.
    let refused = launch(&trial, "table", &["table.rows.vl_jepa_sft.run=/nowhere"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    for record in ["completed.json", "rows/vl_jepa_sft/row.json"] {
        assert!(trial.path("table").join(record).exists(), "{record}");
    }
    // Commands on weights name the reason why a table has none.
    let output =
        command("vljepa-launch").arg("evaluate").arg(trial.path("table")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("is a table, which has no weights of its own"));
}

#[test]
fn a_killed_table_goes_on_with_the_rows_that_it_has_measured() {
    let trial = trial();
    trial.complete("trained", &[]);
    let run = trial.path("trained").display().to_string();
    // Rows enough for the kill to come before the last one.
    let row = |name: char| format!("    {name}: {{run: {run}}}\n");
    write_table(&trial, &('a'..='h').map(row).collect::<String>());
    let mut launcher = command("vljepa-launch");
    launcher.arg(trial.path("table.yaml")).arg("--run").arg(trial.path("table"));
    let mut child = launcher.spawn().unwrap();
    let row = trial.path("table/rows/a/row.json");
    wait_until(&mut child, Duration::from_secs(120), "the first row", || row.exists());
    for worker in workers(&trial.path("table")) {
        kill(worker, Signal::SIGKILL).unwrap();
    }
    assert!(child.wait().unwrap().success(), "the supervisor starts the worker again");
    let table = json(&trial.path("table/table.json"));
    assert_eq!(own(&table, "a")["metrics"], own(&table, "h")["metrics"]);
    let events = std::fs::read_to_string(trial.path("table/events.jsonl")).unwrap();
    assert!(events.contains("\"restart\""), "{events}");
}

#[test]
fn a_table_stops_before_the_next_row_and_goes_on_later() {
    let trial = trial();
    trial.complete("trained", &[]);
    let run = trial.path("trained").display().to_string();
    // Rows enough for the request to come before the last one.
    let row = |number: usize| format!("    row_{number:02}: {{run: {run}}}\n");
    write_table(&trial, &(0..60).map(row).collect::<String>());
    let start = || {
        let mut launcher = command("vljepa-launch");
        launcher.arg(trial.path("table.yaml")).arg("--run").arg(trial.path("table"));
        launcher.args(["--set", "cluster.ranks_per_node=2"]);
        launcher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = start();
    let first = trial.path("table/rows/row_00/row.json");
    wait_until(&mut child, Duration::from_secs(120), "the first row", || first.exists());
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("stopped; what was measured is kept"), "{}", text(&output));
    let measured = || (0..60).filter(|n| row_json(&trial, *n).exists()).count();
    assert!(measured() < 60 && !trial.path("table/completed.json").exists());
    let kept = kept(&trial.path("table"), "row_00");
    let output = start().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(measured(), 60);
    assert_eq!(self::kept(&trial.path("table"), "row_00"), kept, "nothing was computed again");
}

fn row_json(trial: &Trial, number: usize) -> std::path::PathBuf {
    trial.path(&format!("table/rows/row_{number:02}/row.json"))
}

#[test]
fn a_table_without_tasks_shows_what_the_runs_have_measured_themselves() {
    let trial = trial();
    let table = |of: &str, rows: &str| {
        let recipe = format!("name: table\ntable:\n  of: {of}\n  rows:\n{rows}\n");
        std::fs::write(trial.path("table.yaml"), recipe).unwrap();
    };
    let run = trial.path("trained").display().to_string();
    let rows = format!(
        "    vl_jepa_sft: {{run: {run}}}\n    qwen_vl_7b: {{run: {}}}",
        trial.path("later").display()
    );
    table("table2", &rows);
    let output = launch(&trial, "collected", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("no run of this table has measured scores"),
        "{}",
        text(&output)
    );
    trial.complete("trained", &["evaluation.every_steps=1"]);
    let output = launch(&trial, "collected", &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("not measured yet"), "{}", text(&output));
    let collected = json(&trial.path("collected/table.json"));
    let scores = json(&trial.path("trained/scores.json"));
    assert_eq!(own(&collected, "vl_jepa_sft")["metrics"], scores);
    assert!(own(&collected, "qwen_vl_7b")["points"][0]["cells"][0]["value"].is_null());
    // Samples of the run that a run started from count too.
    let init = format!("init.run={run}");
    trial.complete("further", &[&init]);
    let further = trial.path("further").display().to_string();
    table("table2", &format!("    vl_jepa_sft: {{run: {further}}}"));
    assert!(launch(&trial, "further-table", &[]).status.success());
    let both = json(&trial.path("further-table/table.json"));
    assert_eq!(own(&both, "vl_jepa_sft")["samples"], 32);
    assert_eq!(own(&collected, "vl_jepa_sft")["samples"], 16);
    // The rows of an earlier step.
    table("table2", &format!("    vl_jepa_sft: {{run: {run}, step: 1}}"));
    let output = launch(&trial, "earlier", &[]);
    assert!(output.status.success(), "{}", text(&output));
    let earlier = json(&trial.path("earlier/table.json"));
    let of_step = json(&trial.path("trained/evaluations/step-00000001.json"));
    assert_eq!(own(&earlier, "vl_jepa_sft")["metrics"], of_step);
    assert_ne!(of_step, scores);
}

#[test]
fn a_published_dual_encoder_is_a_row_of_a_table() {
    let folder = Folder::new();
    let recipe = std::fs::read_to_string(folder.path("recipe.yaml")).unwrap();
    let (_, model) = recipe.split_once("model:\n").unwrap();
    let (model, evaluation) = model.split_once("evaluation:\n").unwrap();
    let model: String = model.lines().map(|line| format!("        {line}\n")).collect();
    let evaluation = evaluation.replace("name: colour", "name: ssv2");
    let evaluation = evaluation.replace("name: retrieval", "name: msrvtt");
    let table = format!(
        "name: table\ntable:\n  of: table1\n  rows:\n    clip_l:\n      model:\n{model}evaluation:\n{evaluation}"
    );
    std::fs::write(folder.path("table.yaml"), table).unwrap();
    let launch = |recipe: &str, run: &str| {
        let mut command = command("vljepa-launch");
        let output =
            command.arg(folder.path(recipe)).arg("--run").arg(folder.path(run)).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    launch("recipe.yaml", "itself");
    launch("table.yaml", "table");
    let itself = json(&folder.path("itself/scores.json"));
    let table = json(&folder.path("table/table.json"));
    let row = own(&table, "clip_l");
    assert_eq!(row["metrics"]["ssv2_top1"], itself["colour_top1"]);
    assert_eq!(row["metrics"]["msrvtt_r1"], itself["retrieval_r1"]);
    assert!(row["step"].is_null() && row["samples"].is_null());
    assert_eq!(row["parameters"]["trained"], 0);
    // Samples of an earlier start are not shown beside other tasks.
    let samples = folder.path("table/rows/clip_l/samples.json");
    assert!(samples.exists(), "the retrieval task shows samples");
    let mut again = command("vljepa-launch");
    again.arg(folder.path("table.yaml")).arg("--run").arg(folder.path("table"));
    let only = "evaluation.tasks.1={name: k400, shards: SET/eval/heldout.tar, limit: 20, kind: {classification: {field: colour, candidates: SET/labels/colours.json}}}";
    let only = only.replace("SET", small_set().to_str().unwrap());
    let output = again.args(["--set", &only]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(!samples.exists());
    // One of eight sets is no mean.
    assert!(row["points"][0]["cells"][0]["value"].is_null());
}

#[test]
fn several_tables_become_a_page_of_claims_and_other_runs_are_refused() {
    let trial = trial();
    trial.complete("trained", &[]);
    let run = trial.path("trained").display().to_string();
    let collected = |name: &str, of: &str, row: &str| {
        let recipe = format!(
            "name: {name}\ntable:\n  of: {of}\n  runs: {}\n  rows:\n    {row}\n",
            trial.path("").display()
        );
        std::fs::write(trial.path("table.yaml"), recipe).unwrap();
        let output = launch(&trial, name, &[]);
        assert!(output.status.success(), "{}", text(&output));
        trial.path(name)
    };
    let row = "pretraining: {run: trained, note: eight samples}\n    no_pretraining: {run: trained}\n  columns: {vqa: [gqa]}";
    let first = collected("one", "table5a", row);
    // Other sets than the paper's are not compared with the printed values of its baselines.
    let row_of_other_sets = "vl_jepa_sft: {run: trained}\n  columns: {gqa: [gqa], pope: [pope]}";
    let second = collected("two", "table2", row_of_other_sets);
    let paper = |tables: &[&Path], options: &[&str]| {
        command("vljepa-launch").arg("paper").args(tables).args(options).output().unwrap()
    };
    let page = trial.path("paper.html");
    let output = paper(&[&first, &second], &["--html", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("0 reproduced, 1 not reproduced"), "{}", text(&output));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("eight samples") && page.contains("Visual question answering"));
    let again = collected("again", "table5a", row);
    let output = paper(&[&first, &again], &["--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["tables"][0]["seeds"], 2);
    let claims = found["claims"].as_array().unwrap();
    let claim = claims.iter().find(|claim| claim["id"] == "pretraining").unwrap();
    let holds_in = &claim["comparisons"][0]["holds_in"];
    assert_eq!((&claim["verdict"], holds_in), (&"not_reproduced".into(), &0.into()));

    let other = collected("other", "table5a", "pretraining: {run: trained}");
    for (wrong, why) in [
        (&[Path::new(&run)][..], "holds no table of the paper"),
        (&[&trial.path("nothing")], "nothing"),
        (&[&first, &first], "is named twice"),
        (&[&first, &other], "has other rows"),
    ] {
        let refused = paper(wrong, &[]);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
        assert!(text(&refused).contains(why), "{}", text(&refused));
    }
    // The runs of the rows are gone.
    std::fs::remove_dir_all(&run).unwrap();
    let empty = paper(&[&second], &[]);
    assert!(text(&empty).contains("no run of this table has measured scores"), "{}", text(&empty));
}
