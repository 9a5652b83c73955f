//! Checks of all runs of a programme before the first one starts.

use std::path::Path;

use vljepa_recipes::check::Problem;
use vljepa_recipes::protocol::Inputs;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::{Init, Recipe, Scheduler};
use vljepa_recipes::{Programme, ProgrammeRun, check_files_with, row_recipes_with, to_yaml};

use crate::commands::jobs::path_error;
use crate::commands::{preflight, train};
use crate::error::{FileProblem, LaunchError};
use crate::programs::{Programs, needs};
use crate::record::completion;
use crate::terminal;

/// Scheduler of all runs.
///
/// # Errors
/// If the runs have different ones.
pub(super) fn scheduler(programme: &Programme) -> Result<Scheduler, LaunchError> {
    let of = |run: &ProgrammeRun| run.loaded.recipe.cluster.scheduler;
    let first = |scheduler| programme.runs.iter().find(|run| of(run) == scheduler);
    match (first(Scheduler::Local), first(Scheduler::Slurm)) {
        (Some(local), Some(slurm)) => {
            Err(LaunchError::Schedulers { local: local.name(), slurm: slurm.name() })
        }
        (_, Some(_)) => Ok(Scheduler::Slurm),
        (_, None) => Ok(Scheduler::Local),
    }
}

/// Refuses a programme if one of its directories holds a run of another recipe, or other files.
pub(super) fn directories(programme: &Programme) -> Result<(), LaunchError> {
    for run in &programme.runs {
        if run.directory.as_os_str().is_empty() {
            let what = "an entry of the programme has an empty run directory: the recipe";
            let why = "needs `run: DIR` with the name of a folder";
            return Err(path_error(what, &run.file, why));
        }
        match RunDirectory::open(&run.directory) {
            Ok(directory) => directory.accepts(&run.loaded)?,
            Err(_) => RunDirectory::is_free(&run.directory)?,
        }
    }
    Ok(())
}

/// Checks the runs at the indices `starting`, and returns the programs. `complete` says which runs
/// are complete: the others have directories that do not exist yet, or that are unfinished.
pub(super) async fn all(
    programme: &Programme,
    starting: &[usize],
    complete: &[bool],
) -> Result<Programs, LaunchError> {
    let mut found = Found::default();
    for index in starting {
        let run = &programme.runs[*index];
        if let Ok(directory) = RunDirectory::open(&run.directory) {
            drop(train::lock(&directory, train::BRIEF_LOCK_TIMEOUT).await?);
        }
        found.extend(run, missing_needs(run));
    }
    found.refuse()?;
    let mut found = Found::default();
    for index in starting {
        let run = &programme.runs[*index];
        found.extend(run, missing_files(programme, run, complete));
    }
    found.refuse()?;
    let programs = Programs::find()?;
    let mut found = Found::default();
    for index in starting {
        let run = &programme.runs[*index];
        needs::check(&run.loaded.recipe, &programs).await?;
        found.add(run, inputs(programme, run, complete, &programs, false).await?);
    }
    found.refuse()?;
    Ok(programs)
}

/// Checks the files of all runs that exist on this machine, for a dry run.
pub(super) async fn present(programme: &Programme, complete: &[bool]) -> Result<(), LaunchError> {
    scheduler(programme)?;
    directories(programme)?;
    for run in &programme.runs {
        for Problem { key, what, .. } in missing_needs(run) {
            terminal::note(&format!("warning: {key} of {}: {what}", run.name()));
        }
        if RunDirectory::open(&run.directory).is_ok_and(|directory| directory.is_in_use()) {
            terminal::note(&format!("warning: the run in {} is in use", run.name()));
        }
    }
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(error) => {
            terminal::note(&format!("warning: the recipes' files were not checked: {error}"));
            return Ok(());
        }
    };
    let mut found = Found::default();
    for run in &programme.runs {
        found.add(run, inputs(programme, run, complete, &programs, true).await?);
    }
    found.refuse()
}

/// A problem for each directory that the run reads, that no run of the programme makes, and that
/// does not hold a complete run.
fn missing_needs(run: &ProgrammeRun) -> Vec<Problem> {
    let problem = |need: &std::path::PathBuf| {
        let why = match RunDirectory::open(need) {
            Err(_) => "it holds no run".to_owned(),
            Ok(_) => format!("its run is not complete: {}", completion::check_run(need).err()?),
        };
        Some(Problem {
            key: key_of(&run.loaded.recipe, need),
            what: format!("no run of the programme makes {}, and {why}", need.display()),
            help: "add the recipe of that run to the programme, or train it first".to_owned(),
        })
    };
    run.needs_elsewhere.iter().filter_map(problem).collect()
}

/// Key of the recipe that names a run.
fn key_of(recipe: &Recipe, need: &Path) -> String {
    let rows = recipe.table.iter().flat_map(|table| &table.rows);
    let row = rows.into_iter().find(|(_, row)| row.run.as_deref() == Some(need));
    row.map_or_else(|| "init.run".to_owned(), |(name, _)| format!("table.rows.{name}.run"))
}

/// Recipe of the run in a directory if that run is not complete.
fn awaited(programme: &Programme, complete: &[bool], directory: &Path) -> Option<Recipe> {
    let maker = programme.maker(directory).filter(|maker| !complete[*maker])?;
    Some(programme.runs[maker].loaded.recipe.clone())
}

/// Whether a start would not read `init`: the run has a checkpoint, or waits for that run.
fn skips_init(programme: &Programme, run: &ProgrammeRun, complete: &[bool]) -> bool {
    let resumes = RunDirectory::open(&run.directory)
        .is_ok_and(|directory| directory.newest_checkpoint().is_some());
    let waits = match &run.loaded.recipe.init {
        Some(Init::Run(directory)) => awaited(programme, complete, directory).is_some(),
        Some(Init::Export(_) | Init::Weights(_)) | None => false,
    };
    resumes || waits
}

/// Files that do not exist.
fn missing_files(programme: &Programme, run: &ProgrammeRun, complete: &[bool]) -> Vec<Problem> {
    let recipe = &run.loaded.recipe;
    let init = recipe.init.clone().filter(|_| !skips_init(programme, run, complete));
    let awaited = |directory: &Path| awaited(programme, complete, directory);
    check_files_with(&Recipe { init, ..recipe.clone() }, &awaited)
}

/// Lets the worker check the files of a run. A row of a table whose run is awaited is checked with
/// the recipe of that run.
async fn inputs(
    programme: &Programme,
    run: &ProgrammeRun,
    complete: &[bool],
    programs: &Programs,
    skip_missing: bool,
) -> Result<Inputs, LaunchError> {
    let recipe = &run.loaded.recipe;
    let Some(table) = &recipe.table else {
        let resumes = skips_init(programme, run, complete);
        let yaml = &run.loaded.yaml;
        return preflight::inputs(yaml, programs, skip_missing, resumes).await;
    };
    if recipe.evaluation.tasks.is_empty() {
        return Ok(Inputs::default());
    }
    let awaited = |directory: &Path| awaited(programme, complete, directory);
    let rows = row_recipes_with(recipe, &awaited).into_iter().flatten();
    let later: Vec<_> = rows.filter(|row| row.is_awaited).collect();
    let mut found = Inputs::default();
    for row in &later {
        let yaml = to_yaml(&row.recipe)?;
        let of_row = preflight::inputs(&yaml, programs, skip_missing, true).await?;
        found.problems.extend(of_row.problems.into_iter().map(|problem| row.problem(problem)));
        found.warnings.extend(of_row.warnings);
    }
    let mut now = table.clone();
    now.rows.retain(|name, _| later.iter().all(|row| row.name != *name));
    if !now.rows.is_empty() {
        let yaml = to_yaml(&Recipe { table: Some(now), ..recipe.clone() })?;
        let of_rows = preflight::inputs(&yaml, programs, skip_missing, false).await?;
        found.problems.extend(of_rows.problems);
        found.warnings.extend(of_rows.warnings);
    }
    Ok(found)
}

/// Problems and warnings with the names of the runs that have them. Many runs may read the same
/// file.
#[derive(Debug, Default)]
struct Found {
    problems: Vec<(Problem, Vec<String>)>,
    warnings: Vec<(String, Vec<String>)>,
}

impl Found {
    fn extend(&mut self, run: &ProgrammeRun, problems: Vec<Problem>) {
        problems.into_iter().for_each(|problem| name(&mut self.problems, problem, run));
    }

    fn add(&mut self, run: &ProgrammeRun, Inputs { problems, warnings }: Inputs) {
        self.extend(run, problems);
        warnings.into_iter().for_each(|warning| name(&mut self.warnings, warning, run));
    }

    fn warning_lines(&self) -> Vec<String> {
        let line = |(warning, runs): &(String, Vec<String>)| {
            format!("warning of {}: {warning}", named(runs))
        };
        self.warnings.iter().map(line).collect()
    }

    /// Prints each warning once, and fails if there are problems.
    fn refuse(self) -> Result<(), LaunchError> {
        self.warning_lines().iter().for_each(|line| terminal::note(line));
        if self.problems.is_empty() {
            return Ok(());
        }
        let problem = |(Problem { key, what, help }, runs): (Problem, Vec<String>)| FileProblem {
            key: format!("{key} of {}", named(&runs)),
            what,
            help,
        };
        Err(LaunchError::Files { problems: self.problems.into_iter().map(problem).collect() })
    }
}

/// Adds the name of a run to those that have `what`, once.
fn name<T: PartialEq>(all: &mut Vec<(T, Vec<String>)>, what: T, run: &ProgrammeRun) {
    match all.iter_mut().find(|(known, _)| *known == what) {
        Some((_, runs)) if runs.last() == Some(&run.name()) => {}
        Some((_, runs)) => runs.push(run.name()),
        None => all.push((what, vec![run.name()])),
    }
}

/// The first name, and how many others there are.
fn named(runs: &[String]) -> String {
    let first = runs.first().map_or("", String::as_str);
    match runs.len() {
        0 | 1 => first.to_owned(),
        2 => format!("{first} and of another run"),
        count => format!("{first} and of {} other runs", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::Programme;

    use super::{
        Found, Inputs, LaunchError, Problem, ProgrammeRun, Scheduler, directories, missing_needs,
        scheduler,
    };

    fn paper(sets: &[&str]) -> Programme {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/paper.yaml");
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        vljepa_recipes::load_programme(path.as_ref(), &sets).unwrap()
    }

    fn problem(key: &str) -> Problem {
        Problem { key: key.to_owned(), what: "is missing".to_owned(), help: String::new() }
    }

    #[test]
    fn a_problem_of_many_runs_is_named_once() {
        let runs: Vec<ProgrammeRun> = paper(&[]).runs;
        let mut found = Found::default();
        for run in &runs[..3] {
            found.extend(run, vec![problem("data.sources.a.shards")]);
        }
        found.extend(&runs[1], vec![problem("model.x_encoder.weights")]);
        let Err(LaunchError::Files { problems }) = found.refuse() else { panic!("refused") };
        let keys: Vec<&str> = problems.iter().map(|problem| &*problem.key).collect();
        let of = |run: &ProgrammeRun| run.name();
        assert_eq!(
            keys[0],
            format!("data.sources.a.shards of {} and of 2 other runs", of(&runs[0]))
        );
        assert_eq!(keys[1..], [format!("model.x_encoder.weights of {}", of(&runs[1]))]);
        assert!(Found::default().refuse().is_ok());
    }

    #[test]
    fn a_warning_of_many_runs_is_named_once() {
        let runs: Vec<ProgrammeRun> = paper(&[]).runs;
        let mut found = Found::default();
        for run in &runs[..3] {
            // A table has the same warning for each of its rows.
            let warnings = vec!["few shards".to_owned(), "few shards".to_owned()];
            found.add(run, Inputs { warnings, ..Inputs::default() });
        }
        let first = runs[0].name();
        assert_eq!(
            found.warning_lines(),
            [format!("warning of {first} and of 2 other runs: few shards")]
        );
        assert!(found.refuse().is_ok());
    }

    #[test]
    fn a_directory_that_cannot_hold_the_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut programme = paper(&[]);
        for (index, run) in programme.runs.iter_mut().enumerate() {
            run.directory = folder.path().join(index.to_string());
        }
        directories(&programme).unwrap();
        let last = programme.runs.last().unwrap().directory.clone();
        std::fs::create_dir(&last).unwrap();
        directories(&programme).unwrap();
        std::fs::write(last.join("thesis.tex"), "").unwrap();
        let error = directories(&programme).unwrap_err().to_string();
        assert!(error.contains("contains other files"), "{error}");
        std::fs::remove_dir_all(&last).unwrap();
        std::fs::write(&last, "").unwrap();
        let error = directories(&programme).unwrap_err().to_string();
        assert!(error.contains("is a file"), "{error}");
        programme.runs.last_mut().unwrap().directory = "".into();
        let error = directories(&programme).unwrap_err().to_string();
        assert!(error.contains("empty run directory"), "{error}");
    }

    #[test]
    fn all_runs_have_one_scheduler() {
        assert_eq!(scheduler(&paper(&[])).unwrap(), Scheduler::Slurm);
        let mut mixed = paper(&["cluster.scheduler=slurm"]);
        mixed.runs[1].loaded.recipe.cluster.scheduler = Scheduler::Local;
        let error = scheduler(&mixed).unwrap_err().to_string();
        assert!(error.contains(&mixed.runs[1].name()), "{error}");
        let rest = mixed.runs.drain(1..2).collect();
        let local = Programme { runs: rest, ..mixed };
        assert_eq!(scheduler(&local).unwrap(), Scheduler::Local);
    }

    #[test]
    fn a_run_that_no_entry_makes_is_named_with_the_key_that_names_it() {
        let runs = paper(&[]).runs;
        let mut table =
            runs.into_iter().find(|run| run.loaded.recipe.name == "table1_baselines").unwrap();
        assert!(missing_needs(&table).is_empty());
        // A folder with a recipe and no completion record holds a run that is not complete.
        let half = tempfile::tempdir().unwrap();
        std::fs::write(half.path().join("recipe.yaml"), &table.loaded.yaml).unwrap();
        table.needs_elsewhere =
            vec!["runs/finetune".into(), "runs/pretrain".into(), half.path().to_owned()];
        let found = missing_needs(&table);
        assert_eq!(found[0].key, "table.rows.vl_jepa_sft.run");
        assert!(found[1].what.contains("runs/pretrain"), "{found:?}");
        assert!(found[2].what.contains("its run is not complete"), "{found:?}");
        let record = serde_json::json!({"step": table.loaded.recipe.total_steps()});
        std::fs::write(half.path().join("completed.json"), record.to_string()).unwrap();
        assert_eq!(missing_needs(&table).len(), 2);
    }
}
