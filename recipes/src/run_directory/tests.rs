//! Tests of run directories on a real disk.

use std::fs;
use std::path::Path;

use super::{Found, RunDirectory, RunDirectoryError, append_line, atomic_write};
use crate::{Loaded, load};

fn loaded(sets: &[&str]) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
    load(&path, &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_run_is_made_once_and_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("runs/quickstart");
    assert!(matches!(RunDirectory::open(&root), Err(RunDirectoryError::NoRun { .. })));
    let (run, found) = RunDirectory::create(&root, &loaded(&[])).unwrap();
    assert_eq!(found, Found::New);
    assert_eq!(run.load_recipe().unwrap().hash, loaded(&[]).hash);
    let (_, found) = RunDirectory::create(&root, &loaded(&[])).unwrap();
    assert_eq!(found, Found::Existing { changes: Vec::new() });
    assert_eq!(RunDirectory::open(&root).unwrap(), run);
    assert_eq!(run.checkpoint(500), root.join("checkpoints/step-00000500"));
    assert_eq!(run.log(3, 2), root.join("logs/rank-0003-attempt-2.log"));
}

#[test]
fn keys_that_change_no_step_may_change_and_others_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    RunDirectory::create(folder.path(), &loaded(&[])).unwrap();
    let other = loaded(&["cluster.ranks_per_node=1", "data.cache_mib=1", "stages.0.micro_batch=8"]);
    let (run, found) = RunDirectory::create(folder.path(), &other).unwrap();
    let Found::Existing { changes } = found else { panic!("{found:?}") };
    assert_eq!(
        changes,
        [
            "  cluster.ranks_per_node: 2 → 1",
            "  data.cache_mib: 512 → 1",
            "  stages.0.micro_batch: null → 8"
        ]
    );
    assert_eq!(run.load_recipe().unwrap().recipe, other.recipe);

    let other = loaded(&["seed=7", "cluster.ranks_per_node=2", "stages.0.batch=64"]);
    let error = RunDirectory::create(folder.path(), &other).unwrap_err();
    let RunDirectoryError::OtherRecipe { differences, .. } = &error else { panic!("{error:?}") };
    assert_eq!(differences, &["  seed: 0 → 7", "  stages.0.batch: 128 → 64"]);
}

#[test]
fn folders_that_cannot_hold_a_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = RunDirectory::create(folder.path(), &loaded(&[])).unwrap_err();
    assert!(matches!(error, RunDirectoryError::Foreign { .. }));
    let below_a_file = folder.path().join("thesis.tex/run");
    let error = RunDirectory::create(&below_a_file, &loaded(&[])).unwrap_err();
    assert!(matches!(&error, RunDirectoryError::Io { help, .. } if help.contains("--set runs")));
    // Not even root can create a folder in /proc.
    let error = RunDirectory::create("/proc/vljepa".as_ref(), &loaded(&[])).unwrap_err();
    assert!(error.to_string().contains("cannot make /proc/vljepa/logs"), "{error}");
}

#[test]
fn one_process_at_a_time_holds_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = RunDirectory::create(folder.path(), &loaded(&[])).unwrap();
    let lock = run.lock().unwrap();
    let error = run.lock().unwrap_err();
    let process = format!("by process {}", std::process::id());
    assert!(error.to_string().contains(&process), "{error}");
    drop(lock);
    run.lock().unwrap();
}

#[test]
fn atomic_writes_replace_whole_files_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    atomic_write(&path, b"old").unwrap();
    atomic_write(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    // A folder blocks the file: the write fails, and no temporary file remains.
    let blocked = folder.path().join("blocked");
    fs::create_dir_all(blocked.join("inner")).unwrap();
    atomic_write(&blocked, b"x").unwrap_err();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn events_and_lines_are_appended_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = RunDirectory::create(folder.path(), &loaded(&[])).unwrap();
    run.append_event("start", serde_json::json!({"attempt": 1})).unwrap();
    run.append_event("stop", serde_json::json!("asked")).unwrap();
    append_line(&run.metrics(), &serde_json::json!({"step": 1})).unwrap();
    let text = fs::read_to_string(run.events()).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["attempt"]), (&"start".into(), &1.into()));
    assert_eq!(lines[1]["value"], "asked");
    assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(fs::read_to_string(run.metrics()).unwrap(), "{\"step\":1}\n");
}

#[test]
fn a_line_cut_short_costs_itself_and_not_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    append_line(&path, &serde_json::json!({"step": 1})).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}{{\"step\": 2, \"wor")).unwrap();
    append_line(&path, &serde_json::json!({"step": 3})).unwrap();
    append_line(&path, &serde_json::json!({"step": 4})).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let parsed: Vec<u64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64())
        .collect();
    assert_eq!(parsed, [1, 3, 4], "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn a_full_disk_is_an_error_that_says_what_to_do() {
    let error = append_line(Path::new("/dev/full"), &1).unwrap_err();
    let RunDirectoryError::Io { help, .. } = &error else { panic!("{error:?}") };
    assert!(help.contains("the disk is full"), "{error}");
}
