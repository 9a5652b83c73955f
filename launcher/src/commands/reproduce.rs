//! `vljepa-launch reproduce RUN`: compares recipe, data and programs with those of a run, repeats
//! the run, and compares the losses.

use std::path::{Path, PathBuf};

use vljepa_recipes::Loaded;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::Recipe;

use super::train;
use crate::cli;
use crate::error::LaunchError;
use crate::programs::Programs;
use crate::record::comparison::{compare, not_expected};
use crate::record::provenance::RunRecord;
use crate::record::{completion, history};
use crate::{report, terminal};

/// Kind of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// Recipe or data: a difference makes it another run.
    Run,
    /// Programs or machine: a difference may change the rounding.
    Programs,
}

/// One fact of the recorded run and its value on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    name: String,
    about: About,
    recorded: Option<String>,
    here: Option<String>,
    /// Advice for the user if the values differ.
    advice: String,
}

impl Fact {
    fn verdict(&self) -> &'static str {
        match (&self.recorded, &self.here) {
            (Some(recorded), Some(here)) if recorded == here => "same",
            (Some(_), Some(_)) => "differs",
            (Some(_), None) => "missing",
            (None, Some(_)) => "not recorded",
            (None, None) => "not known",
        }
    }

    fn is_wrong(&self) -> bool {
        ["differs", "missing"].contains(&self.verdict())
    }
}

/// Compares the facts, repeats the run and compares the losses.
pub(crate) async fn reproduce(arguments: &cli::Reproduce) -> Result<u8, LaunchError> {
    let of = absolute(&arguments.of);
    let directory = RunDirectory::open(&of)?;
    let record = RunRecord::read(&directory).ok_or_else(|| LaunchError::Unreadable {
        path: directory.run_json(),
        why: "it is missing or damaged, so nothing is known about how the run was made".to_owned(),
    })?;
    let run_dir = arguments.run.as_deref().map_or_else(|| beside(&of), absolute);
    check_place(&run_dir, &of)?;
    // Relative paths in the recipe refer to the folder in which the run was started.
    if std::env::set_current_dir(&record.working_directory).is_err() {
        terminal::note(&format!(
            "warning: the run was started in {}, which does not exist here: relative paths refer to the current folder",
            record.working_directory.display()
        ));
    }
    let loaded = directory.load_recipe()?;
    let programs = Programs::find()?;
    let (here, _) =
        RunRecord::facts(&loaded.recipe, &loaded.hash, &programs, Default::default()).await;
    let facts = compare_facts(&record, &here, &loaded.recipe, &directory);
    show(&facts);
    let wrong = facts.iter().filter(|fact| fact.is_wrong() && fact.about == About::Run);
    let wrong: Vec<String> = wrong.map(|fact| fact.name.clone()).collect();
    if !wrong.is_empty() && !arguments.allow_differences {
        return Err(LaunchError::Differences { run: of, facts: wrong });
    }
    if arguments.dry_run {
        return Ok(0);
    }
    let recipe = loaded.recipe.clone();
    match start(loaded, &run_dir, &of).await? {
        0 => conclude(&directory, &run_dir, &recipe),
        code => Ok(code),
    }
}

async fn start(loaded: Loaded, run_dir: &Path, of: &Path) -> Result<u8, LaunchError> {
    let options = train::StartOptions {
        follow: true,
        reproduces: Some(of),
        ..train::StartOptions::default()
    };
    train::start(loaded, run_dir, options).await
}

/// Compares the metrics of both runs, writes `reproduction.json` and the report, and prints the
/// result.
fn conclude(of: &RunDirectory, run_dir: &Path, recipe: &Recipe) -> Result<u8, LaunchError> {
    let here = RunDirectory::open(run_dir)?;
    if completion::check(&here, recipe).is_err() {
        terminal::note(
            "the new run is not complete yet; give the same command again to compare the runs",
        );
        return Ok(0);
    }
    let records = [of, &here].map(RunRecord::read);
    let [Some(then), Some(now)] = &records else {
        return Err(LaunchError::Unreadable {
            path: here.run_json(),
            why: "it is missing or damaged".to_owned(),
        });
    };
    let mut comparison = compare(&history::metrics(of), &history::metrics(&here));
    of.path().clone_into(&mut comparison.of);
    comparison.not_expected = not_expected(then, now, recipe);
    let text = serde_json::to_vec_pretty(&comparison).map_err(|error| LaunchError::Start {
        what: "writing reproduction.json".to_owned(),
        why: error.to_string(),
    })?;
    atomic_write(&here.reproduction(), &text)?;
    report::write(&here)?;
    let whole = comparison.steps > 0 && comparison.equal == comparison.steps;
    if comparison.not_expected.is_empty() && !whole {
        return Err(LaunchError::NotReproduced { what: comparison.to_string() });
    }
    let word = if whole { "reproduced" } else { "compared" };
    terminal::result(&format!("{word}: {comparison}"));
    Ok(0)
}

/// Default directory of the new run: `<run>-reproduced` beside the original run.
fn beside(of: &Path) -> PathBuf {
    let mut name = of.file_name().unwrap_or_default().to_owned();
    name.push("-reproduced");
    of.with_file_name(name)
}

/// Checks that the directory of the new run holds no run, or an earlier part of this reproduction.
fn check_place(run_dir: &Path, of: &Path) -> Result<(), LaunchError> {
    let Ok(directory) = RunDirectory::open(run_dir) else { return Ok(()) };
    let reproduces = RunRecord::read(&directory).and_then(|record| record.reproduces);
    if reproduces.as_deref() == Some(of) {
        return Ok(());
    }
    let why =
        format!("holds a run that does not reproduce {}; choose another with --run", of.display());
    Err(LaunchError::Path { what: "the folder", path: run_dir.to_owned(), why })
}

/// All recorded facts with their values on this machine.
fn compare_facts(
    then: &RunRecord,
    now: &RunRecord,
    recipe: &Recipe,
    directory: &RunDirectory,
) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add =
        |about, name: &str, recorded: Option<&String>, here: Option<&String>, advice: String| {
            let (recorded, here) = (recorded.cloned(), here.cloned());
            facts.push(Fact { name: name.to_owned(), about, recorded, here, advice });
        };
    let advice = "restore recipe.yaml of the run, or use the build that wrote the file".to_owned();
    add(About::Run, "recipe", Some(&then.recipe_hash), Some(&now.recipe_hash), advice);
    for name in keys(&then.shards, &now.shards) {
        let hash = |record: &RunRecord| record.shards.get(&name).map(|list| list.hash.clone());
        let advice = format!(
            "restore the shards that data.sources.{name}.shards names; their names and sizes are compared"
        );
        let there = now.shards.get(&name).filter(|list| list.bytes > 0).and(hash(now));
        add(About::Run, &format!("shards of {name}"), hash(then).as_ref(), there.as_ref(), advice);
    }
    for key in keys(&then.files, &now.files) {
        let [recorded, here] = [then, now].map(|record| record.files.get(&key));
        let path = recorded.or(here).map(|file| file.path.clone()).unwrap_or_default();
        let advice = match path.parent() {
            Some(folder) if key == "init.run" => {
                format!("restore {}, and move newer checkpoints of that run away", folder.display())
            }
            _ => format!("restore {}", path.display()),
        };
        add(About::Run, &key, recorded.map(|f| &f.hash), here.map(|f| &f.hash), advice);
    }
    let commit = |record: &RunRecord| record.git.as_ref().map(|git| git.commit.clone());
    let recorded = commit(then);
    let advice =
        format!("git checkout {}, then build", recorded.as_deref().unwrap_or("the commit"));
    add(About::Programs, "commit", recorded.as_ref(), commit(now).as_ref(), advice);
    let diff = |record: &RunRecord| {
        let git = record.git.as_ref()?;
        Some(git.diff_hash.clone().unwrap_or_else(|| "none".to_owned()))
    };
    let advice = format!("git stash, then git apply {}", directory.source_diff().display());
    add(About::Programs, "diff of the sources", diff(then).as_ref(), diff(now).as_ref(), advice);
    for name in keys(&then.binaries, &now.binaries) {
        let advice = "build the recorded commit with the same compiler and features".to_owned();
        add(About::Programs, &name, then.binaries.get(&name), now.binaries.get(&name), advice);
    }
    for name in keys(&then.versions, &now.versions) {
        let advice = "install the recorded version, or expect different rounding".to_owned();
        add(About::Programs, &name, then.versions.get(&name), now.versions.get(&name), advice);
    }
    let advice = "another processor may round differently".to_owned();
    add(About::Programs, "processor", Some(&then.host.cpu), Some(&now.host.cpu), advice);
    let sizes = then.attempts.iter().map(|attempt| attempt.world_size.to_string());
    let mut sizes: Vec<String> = sizes.collect();
    sizes.dedup();
    let (recorded, here) = (sizes.join(", "), recipe.cluster.world_size().to_string());
    let advice = "sums over another number of ranks round differently".to_owned();
    add(About::Programs, "ranks", Some(&recorded), Some(&here), advice);
    facts
}

fn keys<A, B>(
    a: &std::collections::BTreeMap<String, A>,
    b: &std::collections::BTreeMap<String, B>,
) -> Vec<String> {
    let mut keys: Vec<String> = a.keys().chain(b.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

fn show(facts: &[Fact]) {
    let short = |value: &Option<String>| {
        let Some(value) = value else { return "–".to_owned() };
        let hash = value.len() >= 40 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hash { value[..12].to_owned() } else { value.chars().take(40).collect() }
    };
    let mut rows = vec![["fact", "recorded", "here", ""].map(str::to_owned).to_vec()];
    rows.extend(facts.iter().map(|fact| {
        let verdict = fact.verdict().to_owned();
        vec![fact.name.clone(), short(&fact.recorded), short(&fact.here), verdict]
    }));
    terminal::result(&terminal::table(&rows));
    for fact in facts.iter().filter(|fact| fact.is_wrong()) {
        terminal::result(&format!("{} {}: {}", fact.name, fact.verdict(), fact.advice));
    }
}

fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.canonicalize().unwrap_or(path)
}
