//! `vljepa-launch plan`: its text, its JSON and its page, what it refuses, and rates that this
//! machine measures.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::programs::{command, program, repository, text};

/// Runs `vljepa-launch plan` in an empty folder, where none of a recipe's shards exist.
#[expect(clippy::disallowed_methods, reason = "tests run the programs")]
fn plan(folder: &Path, recipe: &str, more: &[&str]) -> Output {
    let mut command = std::process::Command::new(program("vljepa-launch"));
    let recipe = repository().join("recipes").join(recipe);
    command.current_dir(folder).arg("plan").arg(recipe).args(more).output().unwrap()
}

/// Returns the plan of a recipe as JSON.
pub fn json(folder: &Path, recipe: &str, more: &[&str]) -> Value {
    let output = plan(folder, recipe, &[more, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Compares a text with a committed one. The text of a failure is written for a look and a copy.
pub fn is_golden(name: &str, found: &str) {
    let path = repository().join("tests/golden/plan").join(name);
    let written = std::env::temp_dir().join(format!("vljepa-plan-{name}"));
    std::fs::write(&written, found).unwrap();
    let golden = std::fs::read_to_string(&path).unwrap();
    let changed: Vec<&str> = found.lines().filter(|line| !golden.contains(line)).collect();
    assert!(
        golden == found,
        "the plan has changed; if that is right, copy {} to {}\n{}",
        written.display(),
        path.display(),
        changed.join("\n")
    );
}

#[test]
fn the_plan_of_the_paper_s_pretraining_is_the_committed_text() {
    let folder = tempfile::tempdir().unwrap();
    let output = plan(folder.path(), "pretrain.yaml", &["--gpus", "8..4096"]);
    assert!(output.status.success(), "{}", text(&output));
    is_golden("pretrain.txt", &String::from_utf8(output.stdout).unwrap());
    let finetuning = plan(folder.path(), "finetune.yaml", &[]);
    assert!(finetuning.status.success(), "{}", text(&finetuning));
    is_golden("finetune.txt", &String::from_utf8(finetuning.stdout).unwrap());
}

#[test]
fn a_plan_has_days_for_each_reading_and_terms_that_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let found = json(folder.path(), "pretrain.yaml", &[]);
    let days = |name: &str| found["days"][name]["value"].as_f64().unwrap();
    let three = ["as_written", "video_batch_15360", "video_batch_24576"].map(days);
    assert!(three.windows(2).all(|pair| pair[0] < pair[1]), "{three:?}");
    for stage in found["plan"]["stages"].as_array().unwrap() {
        let terms = stage["budget"].as_object().unwrap();
        let sum: f64 = terms.values().map(|term| term["value"].as_f64().unwrap()).sum();
        let step = stage["step_s"]["value"].as_f64().unwrap();
        assert!((sum / step - 1.0).abs() < 1e-9, "{sum} {step}");
        let least = stage["least_hours"].as_f64().unwrap();
        assert!(least < stage["hours"]["value"].as_f64().unwrap());
    }
    // A number of GPUs is the same as its number of nodes.
    let of_gpus = json(folder.path(), "pretrain.yaml", &["--gpus", "64"]);
    let of_nodes = json(folder.path(), "pretrain.yaml", &["--set", "cluster.nodes=8"]);
    assert_eq!(of_gpus["plan"], of_nodes["plan"]);
    assert_ne!(of_gpus["plan"], found["plan"]);
}

#[test]
fn a_dry_run_has_the_same_times_and_the_floor_below_them() {
    let folder = tempfile::tempdir().unwrap();
    let planned = plan(folder.path(), "pretrain.yaml", &[]);
    let recipe = repository().join("recipes/pretrain.yaml");
    let mut dry = command("vljepa-launch");
    let dry = dry.current_dir(folder.path()).arg(recipe).arg("--dry-run").output().unwrap();
    let (planned, dry) = (text(&planned), text(&dry));
    for line in
        planned.lines().filter(|line| line.starts_with("at least") || line.starts_with("training"))
    {
        assert!(dry.contains(line), "{line}\n{dry}");
    }
    assert!(dry.contains("at least") && dry.contains("GPU-hours"), "{dry}");
}

#[test]
fn what_cannot_be_planned_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let rates = folder.path().join("rates.yaml");
    let of_h200 = std::fs::read_to_string(repository().join("recipes/rates/h200.yaml")).unwrap();
    std::fs::write(&rates, of_h200.replace("launch_us:", "lunch_us:")).unwrap();
    let rates = rates.to_str().unwrap();
    for (recipe, more, said) in [
        (
            "pretrain.yaml",
            &["--gpus", "12"][..],
            &["neither whole nodes of 8", "multiple of 8"][..],
        ),
        ("pretrain.yaml", &["--gpus", "12..13"], &["neither whole nodes of 8"]),
        ("pretrain.yaml", &["--gpus", "16384"], &["12288 samples of a batch of stage video-8"]),
        ("pretrain.yaml", &["--gpus", "0"], &["not a number of GPUs"]),
        ("pretrain.yaml", &["--rates", rates], &["lunch_us", "launch_us", "rates.yaml"]),
        ("pretrain.yaml", &["--rates", "none.yaml"], &["none.yaml"]),
        ("pretrain.yaml", &["--set", "stages.0.stepz=1"], &["stepz", "steps"]),
        ("quickstart.yaml", &["--json"], &["needs stages, and rates", "--rates FILE"]),
        ("dual_encoder.yaml", &["--json"], &["needs stages"]),
    ] {
        let output = plan(folder.path(), recipe, more);
        let words = text(&output);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {words}");
        for part in said {
            assert!(words.replace('\n', " ").contains(part), "{part}: {words}");
        }
    }
    // Without times the rest of the plan is shown.
    let host = plan(folder.path(), "quickstart.yaml", &[]);
    assert!(host.status.success() && text(&host).contains("GFLOP/sample"), "{}", text(&host));
}

#[test]
fn the_page_of_a_plan_has_its_stages_and_rates_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("plan.html");
    let arguments = ["--gpus", "8..4096", "--html", page.to_str().unwrap()];
    let output = plan(folder.path(), "pretrain.yaml", &arguments);
    assert!(output.status.success(), "{}", text(&output));
    let html = std::fs::read_to_string(&page).unwrap();
    for part in ["video-32", "memory_bound_tb_per_s", "GPU-hours", "<svg", "prepared"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script") && html.contains("default-src 'none'"));
}

/// Rates that this machine measures are a complete table, and give a recipe of the host its times.
#[test]
fn a_recipe_of_the_host_has_times_with_rates_that_this_machine_measured() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = repository().join("recipes/quickstart.yaml");
    let measured = command("vljepa-worker").arg("rates").arg(&recipe).output().unwrap();
    assert!(measured.status.success(), "{}", text(&measured));
    let rates = folder.path().join("rates.yaml");
    std::fs::write(&rates, &measured.stdout).unwrap();
    let arguments = ["--rates", rates.to_str().unwrap()];
    let found = json(folder.path(), "quickstart.yaml", &arguments);
    assert_eq!(found["rates"]["device"], "host");
    let measured = found["rates"]["measured"].as_u64().unwrap();
    assert!(measured >= 10, "{measured} rates were measured");
    let step = found["plan"]["stages"][0]["step_s"]["value"].as_f64().unwrap();
    assert!(step > 0.0 && step.is_finite(), "{step} s");
    // A host of half the speed takes longer.
    let text = std::fs::read_to_string(&rates).unwrap();
    let mut slow = vljepa_recipes::load_rates(&rates).unwrap();
    slow.products_tflops.values.iter_mut().for_each(|(_, rate)| *rate /= 2.0);
    assert_ne!(slow.to_yaml().unwrap(), text);
    std::fs::write(&rates, slow.to_yaml().unwrap()).unwrap();
    let slower = json(folder.path(), "quickstart.yaml", &arguments);
    assert!(slower["plan"]["stages"][0]["step_s"]["value"].as_f64().unwrap() > step);
}
