//! Programmes: their keys, the order of their runs, and what is refused.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::mistakes::GOOD;
use super::{Programme, is_programme, load_programme};
use crate::load::{LoadError, load};

/// A folder with recipes `a.yaml`, `b.yaml` and `c.yaml`: b reads the run of a, and the table c
/// reads both.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let new = Self(folder);
        let runs = new.path("runs").display().to_string();
        let named = |name: &str| GOOD.replace("name: base", &format!("name: {name}\nruns: {runs}"));
        new.write("a.yaml", &named("a"));
        new.write("b.yaml", &format!("{}init: {{run: {runs}/a}}\n", named("b")));
        let rows = format!("{{one: {{run: {runs}/b}}, two: {{run: {runs}/a}}}}");
        new.write(
            "c.yaml",
            &format!("name: c\nruns: {runs}\ntable: {{of: table1, rows: {rows}}}\n"),
        );
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn load(&self, text: &str, sets: &[&str]) -> Result<Programme, LoadError> {
        self.write("all.yaml", text);
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        load_programme(&self.path("all.yaml"), &sets)
    }
}

fn names(programme: &Programme) -> Vec<&str> {
    programme.runs.iter().map(|run| &*run.loaded.recipe.name).collect()
}

fn needs(programme: &Programme) -> Vec<&[usize]> {
    programme.runs.iter().map(|run| &*run.needs).collect()
}

#[test]
fn runs_come_after_those_that_they_read() {
    let folder = Folder::new();
    let found = folder.load("name: all\nprogramme: [c.yaml, b.yaml, a.yaml]\n", &[]).unwrap();
    assert_eq!((found.name.as_str(), names(&found)), ("all", vec!["a", "b", "c"]));
    assert_eq!(needs(&found), [&[][..], &[0], &[0, 1]]);
    let at = |path: &str| found.maker(&folder.path(path));
    assert_eq!((at("runs/b"), at("runs/other/../b/."), at("runs/d")), (Some(1), Some(1), None));
    assert!(found.runs.iter().all(|run| run.needs_elsewhere.is_empty()));
}

#[test]
fn a_path_through_a_link_names_the_same_run() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("runs")).unwrap();
    std::os::unix::fs::symlink(folder.path("runs"), folder.path("link")).unwrap();
    let set = format!("init.run={}", folder.path("link/a").display());
    let text = "name: all\nprogramme: [a.yaml, {recipe: b.yaml, set: [\"SET\"]}]\n";
    let found = folder.load(&text.replace("SET", &set), &[]).unwrap();
    assert_eq!(needs(&found), [&[][..], &[0]]);
}

#[test]
fn keys_are_changed_by_the_programme_then_by_the_entry_then_by_flags() {
    let folder = Folder::new();
    let text = "
name: all
set: [seed=1, cluster.ranks_per_node=1]
programme:
  - a.yaml
  - {recipe: a.yaml, set: [name=other, seed=2], run: elsewhere}
";
    let found = folder.load(text, &["cluster.ranks_per_node=4"]).unwrap();
    let facts = |index: usize| {
        let run = &found.runs[index];
        (run.loaded.recipe.seed, run.loaded.recipe.cluster.ranks_per_node, run.name())
    };
    assert_eq!(facts(0), (1, 4, folder.path("runs/a").display().to_string()));
    assert_eq!(facts(1), (2, 4, "elsewhere".to_owned()));
}

#[test]
fn runs_that_no_entry_makes_are_named() {
    let folder = Folder::new();
    let found = folder.load("name: all\nprogramme: [c.yaml, b.yaml]\n", &[]).unwrap();
    assert_eq!(names(&found), ["b", "c"]);
    let elsewhere = [folder.path("runs/a")];
    assert!(found.runs.iter().all(|run| run.needs_elsewhere == elsewhere));
    let exported = "name: all\nprogramme: [{recipe: b.yaml, set: [init.run=null, init.export=x]}]";
    assert!(folder.load(exported, &[]).unwrap().runs[0].needs_elsewhere.is_empty());
}

#[test]
fn a_file_is_a_programme_or_a_recipe_and_each_is_refused_as_the_other() {
    let folder = Folder::new();
    folder.load("name: all\nprogramme: [a.yaml]\n", &[]).unwrap();
    let [all, a] = ["all.yaml", "a.yaml"].map(|name| folder.path(name));
    assert!(is_programme(&all).unwrap() && !is_programme(&a).unwrap());
    let error = is_programme(&folder.path("alll.yaml")).unwrap_err();
    assert!(format!("{error:?}").contains("all.yaml"), "{error:?}");
    folder.write("more.yaml", "extends: all.yaml\n");
    for recipe in ["all.yaml", "more.yaml"] {
        let error = load(&folder.path(recipe), &[]).unwrap_err();
        let [mistake] = error.mistakes()[..] else { panic!("{error:?}") };
        assert_eq!((mistake.file(), mistake.line), (all.to_str().unwrap(), 2));
        assert!(mistake.what.contains("a programme of runs"), "{}", mistake.what);
    }
}

#[test]
fn the_programme_of_the_paper_makes_every_ablation_and_evaluation_and_all_that_they_need() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = load_programme(&root.join("paper.yaml"), &[]).unwrap();
    for folder in ["ablations", "evaluate"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                // Some tables are measured together with their baselines.
                let stem = path.file_stem().unwrap().to_str().unwrap();
                let baselines = path.with_file_name(format!("{stem}_baselines.yaml"));
                let is_run = found.runs.iter().any(|run| run.file == path || run.file == baselines);
                assert!(is_run, "{} is not in paper.yaml", path.display());
            }
        }
    }
    assert!(found.runs.iter().all(|run| run.needs_elsewhere.is_empty()));
    let at = |run: &str| found.maker(Path::new(run)).unwrap();
    let needs = |run: &str| &found.runs[at(run)].needs;
    assert_eq!(needs("runs/pretrain"), &[0; 0]);
    assert_eq!(needs("runs/finetune"), &[at("runs/pretrain")]);
    assert_eq!(needs("runs/table1_baselines"), &[at("runs/pretrain"), at("runs/finetune")]);
    assert_eq!(needs("runs/figure4"), &[at("runs/decoder")]);
    assert_eq!(needs("runs/table5b").len(), 5);
}

/// The text of a programme, where its mistake is, and parts of what is said.
const MISTAKES: [(&str, usize, usize, [&str; 2]); 12] = [
    (
        "name: all\nprogramme: [a.yaml]\nstages: []\n",
        3,
        1,
        ["unknown key `stages`", "`name`, `set`"],
    ),
    ("name: all\nprograme: [a.yaml]\n", 2, 1, ["unknown key `programe`", "`programme`?"]),
    ("name: all\nprogramme: []\n", 2, 1, ["programme: is empty", "list recipes"]),
    ("name: all\nprogramme: a.yaml\n", 2, 12, ["programme: expected a list", ""]),
    ("programme: [a.yaml]\n", 1, 1, ["`name` is missing", "add"]),
    ("name: a b\nprogramme: [a.yaml]\n", 1, 7, ["`a b` is not a valid name", ""]),
    (
        "name: all\nprogramme:\n- aa.yaml\n",
        3,
        3,
        ["programme.0.recipe: there is no recipe", "`a.yaml`?"],
    ),
    (
        "name: all\nprogramme:\n- {recipe: a.yaml, sett: []}\n",
        3,
        20,
        ["programme.0: unknown key `sett`", "`set`?"],
    ),
    (
        "name: all\nprogramme:\n- {set: []}\n",
        3,
        3,
        ["programme.0: the key `recipe` is missing", ""],
    ),
    ("name: all\nprogramme:\n- 7\n", 3, 3, ["programme.0: expected keys and values", ""]),
    (
        "name: all\nprogramme:\n- a.yaml\n- {recipe: b.yaml, run: RUNS/./a}\n",
        4,
        3,
        ["programme.1: has the run directory", "run: DIR"],
    ),
    (
        "name: all\nprogramme:\n- c.yaml\n- {recipe: a.yaml, set: [\"init.run=RUNS/b\"]}\n- b.yaml\n",
        4,
        3,
        ["entry 1 (RUNS/a) needs entry 2 (RUNS/b) needs entry 1", "complete before"],
    ),
];

#[test]
fn mistakes_are_shown_where_they_were_written() {
    let folder = Folder::new();
    let runs = folder.path("runs").display().to_string();
    for (text, line, column, parts) in MISTAKES {
        let error = folder.load(&text.replace("RUNS", &runs), &[]).unwrap_err();
        let [mistake] = error.mistakes()[..] else { panic!("{text}: {error:?}") };
        let said = format!("{} | {}", mistake.what, mistake.help.as_deref().unwrap_or(""));
        assert_eq!((mistake.line, mistake.column), (line, column), "{text}: {said}");
        for part in parts {
            assert!(said.contains(&part.replace("RUNS", &runs)), "{part}: {said}");
        }
    }
}

#[test]
fn a_mistake_in_a_recipe_names_the_entry_and_the_recipe() {
    let folder = Folder::new();
    let text = "name: all\nprogramme: [a.yaml, {recipe: b.yaml, set: [stages.0.stepz=1]}]\n";
    let error = folder.load(text, &[]).unwrap_err();
    assert!(error.to_string().contains("entry 1 of the programme"), "{error}");
    let [mistake] = error.mistakes()[..] else { panic!("{error:?}") };
    assert_eq!(mistake.file(), "--set stages.0.stepz=1");
    let own = folder.path("runs/a").display().to_string();
    let itself = format!("name: all\nprogramme: [a.yaml]\nset: [\"init.run={own}\"]\n");
    let error = folder.load(&itself, &[]).unwrap_err();
    assert!(error.to_string().contains("need each other: entry 0"), "{error}");
    let missing = load_programme(Path::new("none.yaml"), &[]).unwrap_err();
    assert!(missing.to_string().contains("none.yaml"), "{missing}");
}
