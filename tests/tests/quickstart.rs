//! Runs the README's commands unchanged. The first one trains the quickstart's model, survives the
//! kill of a rank, and must reach the scores of `GATES`. Then an excerpt of the miniature.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use vljepa_data::order::ORDER_VERSION;
use vljepa_kernels::Device;
use vljepa_worker::checkpoint::CheckpointFolder;
use vljepa_worker::collectives::{Collectives, Solo};
use vljepa_worker::engine::Engine;
use vljepa_worker::evaluation::embed::{Embedder, Embeds};
use vljepa_worker::evaluation::metrics;
use vljepa_worker::rank::drill::Drills;
use vljepa_worker::rank::generation::Generation;

/// Each metric with its smallest and largest allowed value, as fractions.
///
/// The smallest values lie below the minimum over five seeds of the committed record
/// (`worker/benches/runs/2026-11-27-xeon-2core/quickstart.json`). The margin is two standard
/// deviations of 200 to 480 samples and some room for the rounding of other machines. Controls with
/// six classes must be within four standard deviations (480 samples) of chance, 1/6.
const GATES: [(&str, f64, f64); 14] = [
    ("motion_heldout_top1", 0.90, 1.0),
    ("motion_single_frame_top1", 0.09, 0.24),
    ("motion_reversed_flipped", 0.90, 1.0),
    ("motion_collapsed_top1", 0.09, 0.24),
    ("colour_heldout_top1", 0.97, 1.0),
    ("shape_heldout_top1", 0.60, 1.0),
    ("text_to_video_r1", 0.90, 1.0),
    ("text_to_video_r5", 0.97, 1.0),
    ("text_to_video_collapsed_r1", 0.0, 0.02),
    ("text_to_video_collapsed_r5", 0.0, 0.05),
    ("vqa_exists", 0.85, 1.0),
    ("vqa_count", 0.85, 1.0),
    ("vqa_colour", 0.70, 1.0),
    ("triplets", 0.97, 1.0),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate")
}

fn failures(scores: &BTreeMap<String, serde_json::Value>) -> Vec<String> {
    let mut failed = Vec::new();
    for (metric, least, greatest) in GATES {
        let value = scores.get(metric).and_then(|score| score["value"].as_f64());
        if value.is_none_or(|value| !(least..=greatest).contains(&value)) {
            failed.push(format!("{metric} is {value:?}, needs {least} to {greatest}"));
        }
    }
    failed
}

#[test]
fn scores_of_chance_would_fail_every_gate_but_the_controls() {
    let scores = GATES.map(|(metric, _, _)| {
        let guess = if metric.starts_with("text_to_video") { 0.005 } else { 1.0 / 6.0 };
        (metric.to_owned(), serde_json::json!({"value": guess}))
    });
    let controls = GATES.iter().filter(|(_, _, greatest)| *greatest < 1.0).count();
    assert_eq!(controls, 4);
    assert_eq!(failures(&BTreeMap::from(scores)).len(), GATES.len() - controls);
}

/// Returns the README's commands that start a program of the workspace.
fn readme_commands() -> Vec<String> {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("README.md");
    let lines = readme.lines().filter(|line| line.starts_with("target/release/"));
    lines.map(str::to_owned).collect()
}

/// Runs the README's commands unchanged, except that what they write goes beside `run`.
#[expect(clippy::disallowed_methods, reason = "runs the README's commands")]
fn run_readme_commands(run: &Path) {
    let tests = std::env::current_exe().expect("the test binary's path");
    let programs = tests.parent().and_then(Path::parent).expect("target/release/deps");
    let [weights, prepared, runs] =
        ["weights", "prepared", "runs"].map(|name| run.with_file_name(name));
    let commands = readme_commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in commands {
        let line = command
            .replace("target/release/", &format!("{}/", programs.display()))
            .replace("runs/quickstart", &run.display().to_string())
            .replace("weights/quickstart", &weights.display().to_string())
            .replace("datasets/prepared", &prepared.display().to_string())
            .replace("name=further", &format!("name=further --set runs={}", runs.display()));
        let output = Command::new("bash")
            .args(["-c", &line])
            .current_dir(repository())
            .stdin(Stdio::null())
            .output()
            .expect("bash runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {said}");
    }
}

/// Held by a script, because both scripts write the same data set.
static SCRIPT: Mutex<()> = Mutex::new(());

/// Runs a script of the repository and returns what it printed.
#[expect(clippy::disallowed_methods, reason = "runs the README's commands")]
#[expect(clippy::print_stdout, reason = "readers of the tests' output look for the scores")]
fn run_script(script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("bash");
    command.arg(script).args(arguments).current_dir(repository()).stdin(Stdio::null());
    // Cargo describes this crate to its tests. With these variables, the script would build anew
    // what depends on ring, whose build script reads them.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start)) {
            command.env_remove(&*name);
        }
    }
    let output = command.output().expect("bash runs");
    let said = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
    let said = said.join("\n");
    assert!(output.status.success(), "{said}");
    println!("{said}");
    said
}

#[test]
fn the_first_command_trains_survives_a_kill_and_passes_its_gates() {
    let _script = SCRIPT.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let run: PathBuf = folder.path().join("quickstart");
    let said = run_script("recipes/quickstart.sh", &[&run]);

    assert!(run.join("completed.json").exists(), "{said}");
    assert!(said.contains("kill -9"), "one rank was killed: {said}");
    let second = vljepa_recipes::RunDirectory::open(&run).unwrap().log(1, 2);
    assert!(second.exists(), "both ranks started a second time: {said}");

    let scores = std::fs::read(run.join("scores.json")).unwrap();
    let failed = failures(&serde_json::from_slice(&scores).unwrap());
    assert!(failed.is_empty(), "{}\n{said}", failed.join("\n"));

    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("data:image/png;base64,"), "the report shows real samples");
    for outside in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(
            !report.contains(outside),
            "the report must be self-contained, but has `{outside}`"
        );
    }
    run_readme_commands(&run);
    let decoder = run.with_file_name("quickstart-decoder");
    let scores = std::fs::read(decoder.join("scores.json")).unwrap();
    let scores: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&scores).unwrap();
    let value = |metric: &str| scores[metric]["value"].as_f64().unwrap();
    // A text without meaning has a CIDEr of 0, the most frequent one of 1.1; the longest and the
    // shortest motions differ by a factor of 14.
    let (cider, saving) = (value("stream_adaptive_cider"), value("stream_saving"));
    println!("adaptive decoding of the stream: CIDEr {cider:.2}, saving {saving:.2}");
    assert!(cider > 3.0 && saving >= 2.0, "CIDEr {cider}, saving {saving}");
    let (named, recognised) = named_where_recognised(&decoder).unwrap();
    println!("the caption is right for {named} of {recognised} clips that are classified right");
    // Of 200 clips.
    assert!(recognised > 130, "{recognised}");
    assert!(named * 10 >= recognised * 9, "{named} of {recognised}");
}

#[test]
fn an_excerpt_of_the_miniature_computes_tables_and_a_verdict_on_each_claim() {
    let _script = SCRIPT.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let options = [Path::new("--excerpt"), Path::new("--runs"), folder.path()];
    let said = run_script("recipes/miniature.sh", &options);
    let page = std::fs::read_to_string(folder.path().join("paper.html")).unwrap();
    for claim in &*vljepa_recipes::claims::CLAIMS {
        assert!(said.contains(&claim.claim) && page.contains(&claim.place), "{}", claim.id);
    }
    // The excerpt has no run of Table 5e.
    for table in ["table1", "table3", "table4", "table5a", "table5c", "figure3", "figure4"] {
        let json = folder.path().join("0").join(table).join("table.json");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        let rows = json["own"].as_array().unwrap();
        let measured = rows.iter().filter(|row| !row["metrics"].as_object().unwrap().is_empty());
        assert!(measured.count() >= 1, "{table}");
        assert!(page.contains(json["title"].as_str().unwrap()), "{table}");
    }
    assert!(!folder.path().join("0/table5e/table.json").exists());
}

/// Of the clips outside of training whose shape, colour and motion classification gets right: the
/// number of those whose caption names all three, and the number of all.
fn named_where_recognised(run: &Path) -> Result<(usize, usize), Box<dyn Error>> {
    // The recipe's paths start at the repository.
    std::env::set_current_dir(repository())?;
    let run = vljepa_recipes::RunDirectory::open(run)?;
    let loaded = run.load_recipe()?;
    let (mut engine, mut training) = Engine::for_training(&loaded.recipe, Device::Host)?;
    let checkpoints = CheckpointFolder {
        folder: run.checkpoints(),
        recipe_hash: loaded.hash,
        order_version: ORDER_VERSION,
        drills: Drills::default(),
        generation: Generation::default(),
    };
    let found = engine.restore(&mut training, &checkpoints, None, &Collectives::Solo(Solo))?;
    assert!(found.name.is_some(), "{:?}", found.passed_over);
    let embedder = Embedder::new(&loaded.recipe, Embeds::VlJepa(&engine))?;
    let reader = embedder.reader("datasets/quickstart/eval/retrieval.tar", None)?;
    let options = embedder.load_options(None);
    let samples: Vec<_> =
        (0..reader.len()).map(|i| reader.load(i, &options)).collect::<Result<_, _>>()?;
    let asked: Vec<_> = samples.iter().map(|sample| (sample, "describe the video")).collect();
    let predicted = embedder.samples(&asked)?;
    let captions = embedder.captions(&predicted)?;

    let mut attributes = Vec::new();
    for field in ["shape", "colour", "motion"] {
        let file = repository().join(format!("datasets/quickstart/labels/{field}s.json"));
        let texts: BTreeMap<String, Vec<String>> = serde_json::from_slice(&std::fs::read(file)?)?;
        let embedding = |of: &Vec<String>| Ok(metrics::mean_direction(&embedder.texts(of)?));
        let embeddings =
            texts.values().map(embedding).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        attributes.push((field, texts.into_keys().collect::<Vec<_>>(), embeddings));
    }
    let (mut named, mut recognised) = (0, 0);
    for ((sample, predicted), caption) in samples.iter().zip(&predicted).zip(&captions) {
        let truth: Vec<String> = attributes
            .iter()
            .map(|(field, ..)| Ok(sample.texts.field(field)?.ok_or("no field")?.to_owned()))
            .collect::<Result<_, Box<dyn Error>>>()?;
        let right = attributes.iter().zip(&truth).all(|((_, labels, embeddings), truth)| {
            labels[metrics::ranked(predicted, embeddings)[0].0] == *truth
        });
        recognised += usize::from(right);
        named += usize::from(right && metrics::names_all(caption, &truth));
    }
    Ok((named, recognised))
}
