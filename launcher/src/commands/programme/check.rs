//! Checks of all runs of a programme before the first one starts.

use std::path::Path;

use vljepa_recipes::check::Problem;
use vljepa_recipes::protocol::Inputs;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::{Init, Recipe, Scheduler};
use vljepa_recipes::{Programme, ProgrammeRun, check_files_with, row_recipes_with, to_yaml};

use crate::commands::{preflight, train};
use crate::error::{FileProblem, LaunchError};
use crate::programs::{Programs, needs};
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

/// Refuses a programme if one of its directories holds a run of another recipe.
pub(super) fn directories(programme: &Programme) -> Result<(), LaunchError> {
    for run in &programme.runs {
        if let Ok(directory) = RunDirectory::open(&run.directory) {
            directory.accepts(&run.loaded)?;
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
        let inputs = inputs(programme, run, complete, &programs, false).await?;
        found.extend(run, inputs);
    }
    found.refuse()?;
    Ok(programs)
}

/// Checks the files of all runs that exist on this machine, for a dry run.
pub(super) async fn present(programme: &Programme, complete: &[bool]) -> Result<(), LaunchError> {
    scheduler(programme)?;
    for problem in programme.runs.iter().flat_map(missing_needs) {
        let Problem { key, what, .. } = problem;
        terminal::note(&format!("warning: {key}: {what}"));
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
        let inputs = inputs(programme, run, complete, &programs, true).await?;
        found.extend(run, inputs);
    }
    found.refuse()
}

/// A problem for each directory that the run reads, that no run of the programme makes, and that is
/// not on this disk.
fn missing_needs(run: &ProgrammeRun) -> Vec<Problem> {
    let missing = run.needs_elsewhere.iter().filter(|need| RunDirectory::open(need).is_err());
    let problem = |need: &std::path::PathBuf| Problem {
        key: key_of(&run.loaded.recipe, need),
        what: format!("no run of the programme makes {}, and it holds no run", need.display()),
        help: "add the recipe of that run to the programme, or train it first".to_owned(),
    };
    missing.map(problem).collect()
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

/// Lets the worker check the files of a run, and prints its warnings. A row of a table whose run is
/// awaited is checked with the recipe of that run.
async fn inputs(
    programme: &Programme,
    run: &ProgrammeRun,
    complete: &[bool],
    programs: &Programs,
    skip_missing: bool,
) -> Result<Vec<Problem>, LaunchError> {
    let recipe = &run.loaded.recipe;
    let Some(table) = &recipe.table else {
        let resumes = skips_init(programme, run, complete);
        let yaml = &run.loaded.yaml;
        return Ok(shown(preflight::inputs(yaml, programs, skip_missing, resumes).await?));
    };
    if recipe.evaluation.tasks.is_empty() {
        return Ok(Vec::new());
    }
    let awaited = |directory: &Path| awaited(programme, complete, directory);
    let rows = row_recipes_with(recipe, &awaited).into_iter().flatten();
    let (later, mut found): (Vec<_>, Vec<Problem>) =
        (rows.filter(|row| row.is_awaited).collect(), Vec::new());
    for row in &later {
        let yaml = to_yaml(&row.recipe)?;
        let problems = shown(preflight::inputs(&yaml, programs, skip_missing, true).await?);
        found.extend(problems.into_iter().map(|problem| row.problem(problem)));
    }
    let mut now = table.clone();
    now.rows.retain(|name, _| later.iter().all(|row| row.name != *name));
    if !now.rows.is_empty() {
        let yaml = to_yaml(&Recipe { table: Some(now), ..recipe.clone() })?;
        found.extend(shown(preflight::inputs(&yaml, programs, skip_missing, false).await?));
    }
    Ok(found)
}

/// Prints the warnings, and returns the problems.
fn shown(Inputs { problems, warnings }: Inputs) -> Vec<Problem> {
    for warning in warnings {
        terminal::note(&format!("warning: {warning}"));
    }
    problems
}

/// Problems with the names of the runs that have them. Many runs may read the same file.
#[derive(Debug, Default)]
struct Found(Vec<(Problem, Vec<String>)>);

impl Found {
    fn extend(&mut self, run: &ProgrammeRun, problems: Vec<Problem>) {
        for problem in problems {
            match self.0.iter_mut().find(|(known, _)| *known == problem) {
                Some((_, runs)) => runs.push(run.name()),
                None => self.0.push((problem, vec![run.name()])),
            }
        }
    }

    fn refuse(self) -> Result<(), LaunchError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let problem = |(Problem { key, what, help }, runs): (Problem, Vec<String>)| {
            let others = match runs.len() {
                0 | 1 => String::new(),
                2 => " and of another run".to_owned(),
                count => format!(" and of {} other runs", count - 1),
            };
            let first = runs.into_iter().next().unwrap_or_default();
            FileProblem { key: format!("{key} of {first}{others}"), what, help }
        };
        Err(LaunchError::Files { problems: self.0.into_iter().map(problem).collect() })
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::Programme;

    use super::{Found, LaunchError, Problem, ProgrammeRun, Scheduler, missing_needs, scheduler};

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
        table.needs_elsewhere = vec!["runs/finetune".into(), "runs/pretrain".into()];
        let found = missing_needs(&table);
        assert_eq!(found[0].key, "table.rows.vl_jepa_sft.run");
        assert!(found[1].what.contains("runs/pretrain"), "{found:?}");
    }
}
