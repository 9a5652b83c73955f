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
const UNSAFE_FILES: [&str; 12] = [
    "data/src/decode/jpeg/library.rs",
    "data/src/decode/video/open.rs",
    "kernels/src/compile/nvrtc.rs",
    "kernels/src/device/cuda/address_space.rs",
    "kernels/src/device/cuda/cublaslt.rs",
    "kernels/src/device/cuda/hardware.rs",
    "kernels/src/device/cuda/hardware/event.rs",
    "kernels/src/device/cuda/hardware/page_locked.rs",
    "kernels/src/device/host_gemm.rs",
    "kernels/src/library.rs",
    "launcher/src/doctor/adjtimex.rs",
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

#[expect(clippy::disallowed_methods, reason = "reads the dependency graph from cargo")]
fn metadata() -> serde_json::Value {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn crates_depend_only_in_the_written_direction() {
    let found = edges(&metadata());
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

/// Features of the dependencies that only tests have (`dev`), or of all others, by name.
fn features(metadata: &serde_json::Value, dev: bool) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let dependencies = packages.filter_map(|package| package["dependencies"].as_array()).flatten();
    for dependency in dependencies.filter(|d| (d["kind"] == "dev") == dev) {
        let name = dependency["name"].as_str().expect("a name").to_owned();
        let features = dependency["features"].as_array().expect("features").iter();
        found.entry(name).or_default().extend(features.map(|f| f.as_str().unwrap().to_owned()));
    }
    found
}

#[test]
fn tests_use_dependencies_with_the_features_of_the_programs() {
    let metadata = metadata();
    let of_programs = features(&metadata, false);
    // With other features, the dependency and all that depends on it would be compiled twice.
    for (name, of_tests) in features(&metadata, true) {
        if let Some(of_programs) = of_programs.get(&name) {
            let more: Vec<_> = of_tests.difference(of_programs).collect();
            assert!(more.is_empty(), "tests use {name} with {more:?}, which programs do not");
        }
    }
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
fn errors_say_their_cause_once() {
    let doubled = |text: &str| {
        let texts = text.split("#[error(").skip(1).filter_map(|text| text.split(")]").next());
        texts.filter(|text| text.contains("{source}")).count()
    };
    // `{error:#}` and reports add the text of the field `source` to that of the error.
    let example = concat!("#[err", "or(\"cannot read: {source}\")]");
    assert_eq!(doubled(example), 1);
    for path in crate_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(doubled(&text), 0, "{}: name the field `cause`", path.display());
    }
}

#[test]
fn every_recipe_and_every_programme_loads_checks_and_costs() {
    let (mut seen, mut programmes) = (0, 0);
    for entry in std::fs::read_dir(repository().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        if vljepa_recipes::is_programme(&path).unwrap() {
            let programme = vljepa_recipes::load_programme(&path, &[]);
            let programme = programme.unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
            assert!(programme.runs.len() > 1, "{}", path.display());
            programmes += 1;
        } else {
            let loaded = vljepa_recipes::load(&path, &[]);
            let loaded = loaded.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(!loaded.yaml.is_empty());
            seen += 1;
        }
    }
    assert!(seen >= 3 && programmes >= 1, "{seen} recipes, {programmes} programmes");
}

#[test]
fn every_evaluation_set_loads_and_can_be_measured_at_the_size_of_the_paper() {
    let mut sets = Vec::new();
    for entry in std::fs::read_dir(repository().join("recipes/evaluate/sets")).unwrap() {
        let path = entry.unwrap().path();
        let task = vljepa_recipes::load_set(&path);
        let task = task.unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
        let set = task.set.unwrap();
        assert_eq!(path.file_stem().unwrap().to_str(), Some(&*set.name));
        assert!(!set.root.exists(), "the test expects no copy of {}", set.name);
        sets.push(format!("{{set: {}}}", path.display()));
    }
    assert!(sets.len() >= 24, "{} sets", sets.len());
    let tasks = format!("evaluation.tasks=[{}]", sets.join(", "));
    // Selective decoding needs a decoder.
    let decoder = repository().join("recipes/decoder.yaml");
    let loaded = vljepa_recipes::load(&decoder, &[tasks]).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(loaded.recipe.evaluation.tasks.len(), sets.len());
    let missing = vljepa_recipes::check_files(&loaded.recipe);
    let roots = missing.iter().filter(|problem| problem.key.ends_with(".set.root"));
    assert_eq!(roots.count(), sets.len(), "a start asks for every set");
}

/// Phrases that hide who does what, or `None` behind "none".
const BANNED: [&str; 11] = [
    "is not to be had",
    " in words",
    " serves it",
    "as far as",
    "whoever",
    "nobody knows",
    "none when",
    "none where",
    "none if",
    "none for",
    "stands there",
];

/// Comment lines with their numbers.
fn comments(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| {
        let line = line.trim_start();
        line.starts_with("//")
    })
}

/// Headings of ARCHITECTURE.md that a comment cites: `(ARCHITECTURE.md, "One step")`.
fn cited(comment: &str) -> Option<&str> {
    comment.split_once("ARCHITECTURE.md, \"")?.1.split('"').next()
}

#[test]
fn comments_fit_100_columns_avoid_riddles_and_cite_headings_that_exist() {
    let architecture = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let mut wrong = String::new();
    let mut citations = 0;
    for path in crate_sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, comment) in comments(&text) {
            let mut say = |what: &str| wrong += &format!("{}:{number}: {what}\n", path.display());
            if comment.chars().count() > 100 {
                say("longer than 100 columns");
            }
            let lower = comment.to_lowercase();
            BANNED.iter().filter(|phrase| lower.contains(**phrase)).for_each(|phrase| say(phrase));
            if let Some(heading) = cited(comment) {
                citations += 1;
                if !architecture.lines().any(|line| line.trim_start_matches('#').trim() == heading)
                {
                    say("cites a heading that ARCHITECTURE.md does not have");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(citations >= 3, "comments cite the design");
}

/// Modules directly below `src` that `text` names after `crate::`.
fn named(text: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = BTreeSet::new();
    for part in text.split("crate::").skip(1) {
        let Some(list) = part.strip_prefix('{') else {
            found.insert(word(part));
            continue;
        };
        // `crate::{a::{b, c}, d}` names `a` and `d`.
        let mut depth = 0_usize;
        let mut first = 0;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' if depth > 0 => {}
                ',' | '}' => {
                    found.insert(word(&list[first..at]));
                    first = at + 1;
                }
                _ => {}
            }
            if c == '}' && depth == 0 && first == at + 1 {
                break;
            }
        }
    }
    found.remove("");
    found
}

/// Modules directly below the `src` of a crate, each with those that it names.
fn layers(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(src, &mut files);
    let mut layers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files {
        let inside = path.strip_prefix(src).unwrap();
        if inside.to_string_lossy().contains("tests") {
            continue;
        }
        let first = Path::new(inside.components().next().unwrap().as_os_str()).file_stem().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        layers
            .entry(first.to_string_lossy().into_owned())
            .or_default()
            .extend(named(&code.join("\n")));
    }
    layers.remove("lib");
    layers.remove("main");
    let modules: BTreeSet<String> = layers.keys().cloned().collect();
    for (name, uses) in &mut layers {
        uses.retain(|other| other != name && modules.contains(other));
    }
    layers
}

/// Modules that use each other, directly or through others.
fn circle(mut layers: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let lowest: Vec<String> = layers
            .iter()
            .filter(|(_, uses)| uses.iter().all(|other| !layers.contains_key(other)))
            .map(|(name, _)| name.clone())
            .collect();
        if lowest.is_empty() {
            return layers;
        }
        lowest.iter().for_each(|name| drop(layers.remove(name)));
    }
}

#[test]
fn modules_of_a_crate_use_each_other_in_one_direction() {
    for name in ["data", "launcher", "recipes", "worker"] {
        let layers = layers(&repository().join(name).join("src"));
        assert!(layers.values().any(|uses| !uses.is_empty()), "{name}: the search finds uses");
        let circle = circle(layers);
        assert!(circle.is_empty(), "{name}: modules use each other: {circle:?}");
    }
}

#[test]
fn a_circle_of_modules_would_be_seen() {
    let uses = |text| named(text).into_iter().collect::<Vec<_>>();
    assert_eq!(uses("use crate::a::{self, B};\ncrate::c::d();"), ["a", "c"]);
    assert_eq!(uses("use crate::{\n    a::{B, C},\n    d,\n};\nfn e() {}"), ["a", "d"]);
    let of = |pairs: [(&str, &str); 3]| {
        circle(pairs.map(|(a, b)| (a.to_owned(), BTreeSet::from([b.to_owned()]))).into())
    };
    assert!(of([("a", "b"), ("b", "c"), ("d", "c")]).is_empty());
    assert_eq!(of([("a", "b"), ("b", "c"), ("c", "b")]).len(), 3);
}
