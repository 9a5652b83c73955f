//! Rules of the workspace: the allowed dependencies between crates, the files that may contain
//! `unsafe`, and a header in each file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::repository;

/// Each crate of the workspace and the crates that it may depend on.
const DIRECTION: [(&str, &[&str]); 7] = [
    ("recipes", &[]),
    ("kernels", &[]),
    ("data", &["recipes"]),
    ("model", &["kernels", "recipes"]),
    ("worker", &["data", "kernels", "model", "recipes"]),
    ("launcher", &["recipes"]),
    ("tests", &["data", "kernels", "launcher", "model", "recipes", "worker"]),
];

/// Files that contain `unsafe`. No other file may.
const UNSAFE_FILES: [&str; 9] = [
    "kernels/src/compile/nvrtc.rs",
    "kernels/src/device/cuda/address_space.rs",
    "kernels/src/device/cuda/cublaslt.rs",
    "kernels/src/device/cuda/hardware.rs",
    "kernels/src/device/cuda/hardware/event.rs",
    "kernels/src/device/cuda/hardware/page_locked.rs",
    "kernels/src/device/host_gemm.rs",
    "kernels/src/library.rs",
    "worker/src/collectives/nccl/library.rs",
];

fn edges(metadata: &serde_json::Value) -> BTreeMap<String, BTreeSet<String>> {
    let own = |name: &str| name.strip_prefix("vljepa-").map(str::to_owned);
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .filter_map(|package| {
            let dependencies = package["dependencies"].as_array()?.iter();
            let uses = dependencies.filter_map(|d| own(d["name"].as_str()?)).collect();
            Some((own(package["name"].as_str()?)?, uses))
        })
        .collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "reads the dependency graph from cargo")]
fn crates_depend_only_in_the_written_direction() {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = edges(&serde_json::from_slice(&output.stdout).unwrap());
    let written: BTreeMap<String, BTreeSet<String>> = DIRECTION
        .iter()
        .map(|(name, uses)| ((*name).to_owned(), uses.iter().map(|u| (*u).to_owned()).collect()))
        .collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>());
    for (name, uses) in &found {
        let forbidden: Vec<_> = uses.difference(&written[name]).collect();
        assert!(forbidden.is_empty(), "{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn a_forbidden_edge_would_be_seen() {
    let metadata = serde_json::json!({"packages": [
        {"name": "vljepa-recipes", "dependencies": [{"name": "vljepa-kernels"}, {"name": "serde"}]},
    ]});
    assert!(edges(&metadata)["recipes"].contains("kernels"));
    assert_eq!(edges(&metadata)["recipes"].len(), 1);
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn crate_sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (name, _) in DIRECTION {
        sources(&repository().join(name), &mut files);
    }
    assert!(files.len() > 50, "the search finds the workspace");
    files
}

#[test]
fn unsafe_stands_only_where_it_is_listed() {
    // Written in two parts, so that this file does not contain the word.
    let word = concat!("unsafe", " {");
    for path in crate_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(repository()).unwrap().to_string_lossy().into_owned();
        assert_eq!(text.contains(word), UNSAFE_FILES.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for path in crate_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not start with `//! `", path.display());
    }
}

#[test]
fn every_recipe_loads_checks_and_costs() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repository().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let loaded = vljepa_recipes::load(&path, &[]);
            let loaded = loaded.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(!loaded.yaml.is_empty());
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} recipes");
}
