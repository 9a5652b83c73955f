//! Observations of runs with real workers: intervals of every rank, rates, memory, traces, and the
//! reproduction of a run.

use serde_json::Value;

use crate::breakage::SmallDisk;
use crate::programs::{Trial, command, text};

const EIGHT_STEPS: &str = "
stages:
  - {name: one, steps: 8, batch: 8, frames: 2, mixture: {questions: 1}, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 2, trace: {first_step: 3, steps: 2, ranks: [1]}}
checkpoints: {every_steps: 4}
cluster: {ranks_per_node: 2}
";

fn json(path: std::path::PathBuf) -> Value {
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_run_shows_its_ranks_rates_and_traces_and_is_reproduced_bit_for_bit() {
    let trial = Trial::new(EIGHT_STEPS);
    trial.complete("run", &[]);
    let run = trial.path("run");

    let table = json(run.join("ranks.json"));
    assert_eq!((table["step"].as_u64(), table["reported"].as_u64()), (Some(8), Some(2)));
    let rows = table["slowest"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{table}");
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(number("work_s") > 0.0 && number("tflops") > 0.0, "{row}");
        assert!(number("memory_mib") > 1.0 && !row["host"].as_str().unwrap().is_empty(), "{row}");
    }
    for phase in ["data", "forward", "collective", "backward", "optimizer"] {
        assert!(table["phases"][phase]["max_s"].as_f64().unwrap() > 0.0, "{phase}: {table}");
    }

    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    for line in metrics.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["tflops"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["memory_mib"].as_u64().unwrap() > 1, "{line}");
        assert!(line.get("mfu").is_none(), "the host has no known peak: {line}");
        let data = &line["data"];
        assert!(
            data["prefetch_batches"].as_u64().unwrap() >= data["ready_batches"].as_u64().unwrap()
        );
    }
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    let images = &first["data"]["kinds"]["image"];
    assert!(first["data"]["kinds"].get("video").is_none(), "no clip is read: {first}");
    // Two steps were made of rank 0's four rows each, and later rows may have been read ahead.
    assert!((8..=32).contains(&images["samples"].as_u64().unwrap()), "{images}");
    assert!(images["bytes"].as_u64().unwrap() > 8 * 200, "{images}");
    for part in ["read", "decode", "resize", "tokenise"] {
        assert!(images["seconds"][part].as_f64().unwrap() > 0.0, "{part}: {images}");
    }
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for text in [
        "TFLOP/s per rank",
        "batches ready",
        "data read, MB/s per rank",
        "decode, ms",
        "No fault ended an attempt",
        "2 checkpoints",
    ] {
        assert!(page.contains(text), "`{text}` is missing");
    }

    let mut traces: Vec<_> = std::fs::read_dir(run.join("traces"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    traces.sort();
    assert_eq!(traces, ["rank-0001-step-3.json", "rank-0001-step-4.json"]);
    let trace = json(run.join("traces/rank-0001-step-3.json"));
    let names: Vec<&str> = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["name"].as_str())
        .collect();
    // A checkpoint follows the fourth step, which has number 3.
    for phase in ["step 3", "data", "forward", "collective", "backward", "optimizer", "checkpoint"]
    {
        assert!(names.contains(&phase), "{phase} is missing in {names:?}");
    }

    let again = command("vljepa-launch").args(["reproduce"]).arg(&run).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));
    let verdict =
        "reproduced: 4 of 4 logged steps have the same loss and gradient norm, bit for bit";
    assert!(text(&again).contains(verdict), "{}", text(&again));
    assert!(!text(&again).contains("cannot be expected"), "{}", text(&again));
    assert_eq!(trial.losses("run"), trial.losses("run-reproduced"));
}

#[test]
fn a_full_disk_under_metrics_and_events_is_said_and_ends_nothing() {
    let trial = Trial::new(EIGHT_STEPS);
    trial.complete("undisturbed", &[]);
    let (place, run) = (trial.path("disk"), trial.path("run"));
    let _disk = SmallDisk::mount(&place, 1);
    std::fs::create_dir_all(&run).unwrap();
    std::fs::copy(trial.path("undisturbed/recipe.yaml"), run.join("recipe.yaml")).unwrap();
    for name in ["metrics.jsonl", "events.jsonl", "tensorboard"] {
        std::os::unix::fs::symlink(place.join(name), run.join(name)).unwrap();
    }
    std::fs::create_dir(place.join("tensorboard")).unwrap();
    std::fs::write(place.join("ballast"), vec![1_u8; 2 << 20]).unwrap_err();
    let output = trial.launch("run", &[]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in
        ["warning: events.jsonl", "metrics are not written", "No space left", "complete: 8 steps"]
    {
        assert!(said.contains(part), "`{part}` is missing in {said}");
    }
    assert_eq!(said.matches("metrics are not written").count(), 1, "{said}");
    for buffer in ["weights", "first_moment", "second_moment"] {
        let [a, b] = ["undisturbed", "run"].map(|run| trial.buffer(run, 8, buffer));
        assert!(a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits()), "{buffer} differs");
    }
}
