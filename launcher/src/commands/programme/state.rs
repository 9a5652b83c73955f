//! Which runs of a programme are complete, and which have a job in Slurm's queue.

use std::path::Path;
use std::time::SystemTime;

use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::{Init, Recipe};
use vljepa_recipes::{Programme, ProgrammeRun};

use crate::commands::status::Job;
use crate::platform::slurm::client;
use crate::platform::slurm::submit::Submission;
use crate::record::completion;

/// Whether each run of the programme is complete.
pub(super) fn complete(programme: &Programme) -> Vec<bool> {
    let mut complete = Vec::with_capacity(programme.runs.len());
    for run in &programme.runs {
        let needed = run.needs.iter().all(|need| complete[*need]);
        complete.push(is_complete(run, needed));
    }
    complete
}

/// Whether a run of this recipe is complete. A table is complete only if it was measured with the
/// same rows and tasks, and after all runs that it needs were complete.
fn is_complete(run: &ProgrammeRun, needs_are_complete: bool) -> bool {
    let Ok(directory) = RunDirectory::open(&run.directory) else { return false };
    let recipe = &run.loaded.recipe;
    if completion::check(&directory, recipe).is_err() || directory.accepts(&run.loaded).is_err() {
        return false;
    }
    if recipe.table.is_none() {
        return true;
    }
    let own = completed_at(&run.directory);
    let is_later = |need: &Path| completed_at(need) <= own;
    needs_are_complete
        && recipe.needs().into_iter().all(is_later)
        && directory.load_recipe().is_ok_and(|there| has_same_scores(&there.recipe, recipe))
}

/// Whether two recipes of a table give the same scores: they may differ in the cluster, the logging
/// and whatever else [`Recipe::computed`] resets, except for the rows and the tasks.
fn has_same_scores(there: &Recipe, here: &Recipe) -> bool {
    there.table == here.table
        && there.evaluation == here.evaluation
        && there.computed() == here.computed()
}

/// When the completion record of a run was written, or `None` if there is none.
fn completed_at(run: &Path) -> Option<SystemTime> {
    let record = RunDirectory::open(run).ok()?.completed();
    std::fs::metadata(record).ok()?.modified().ok()
}

/// Directory of the run from whose weights a complete run was trained, if that run was completed
/// after it: then its weights are no longer those that were read. Only the user can decide whether
/// the hours of the second training are spent again, so the run still counts as complete.
pub(super) fn replaced_init(run: &ProgrammeRun) -> Option<&Path> {
    let Some(Init::Run(init)) = &run.loaded.recipe.init else { return None };
    let time = |run: &Path| completion::time(&RunDirectory::open(run).ok()?);
    (time(init)? > time(&run.directory)?).then_some(init)
}

/// The newest submission of each run, or `None` if the run was never submitted.
pub(super) fn submissions(programme: &Programme) -> Vec<Option<Submission>> {
    let submission =
        |run: &ProgrammeRun| Submission::read(&RunDirectory::open(&run.directory).ok()?);
    programme.runs.iter().map(submission).collect()
}

/// The job of each submission. Slurm is asked once.
pub(super) async fn jobs(submissions: &[Option<Submission>]) -> Vec<Option<Job>> {
    let ids = || submissions.iter().map(|known| known.as_ref().map(|known| &known.job));
    let all: Vec<String> = ids().flatten().cloned().collect();
    let states = if all.is_empty() { None } else { client::job_states(&all).await };
    let state = |id: &String| states.as_ref().and_then(|states| states.get(id).cloned());
    ids().map(|id| id.map(|id| Job { state: state(id), id: id.clone() })).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Init, has_same_scores, replaced_init};

    #[test]
    fn a_run_whose_init_was_trained_again_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/paper.yaml");
        let runs = vljepa_recipes::load_programme(path.as_ref(), &[]).unwrap().runs;
        let mut run = runs.into_iter().find(|run| !run.needs.is_empty()).unwrap();
        let init = folder.path().join("init");
        run.directory = folder.path().join("run");
        run.loaded.recipe.init = Some(Init::Run(init.clone()));
        let complete = |run: &Path, time: &str| {
            std::fs::create_dir_all(run).unwrap();
            std::fs::write(run.join("recipe.yaml"), "").unwrap();
            let record = serde_json::json!({"step": 1, "time": time}).to_string();
            std::fs::write(run.join("completed.json"), record).unwrap();
        };
        complete(&run.directory, "2026-01-02T00:00:00Z");
        assert_eq!(replaced_init(&run), None, "the other run is gone");
        complete(&init, "2026-01-01T00:00:00Z");
        assert_eq!(replaced_init(&run), None);
        complete(&init, "2026-01-03T00:00:00Z");
        assert_eq!(replaced_init(&run), Some(&*init));
    }

    #[test]
    fn a_table_is_measured_again_for_other_rows_and_tasks_but_not_for_another_cluster() {
        let table = |sets: &[&str]| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/evaluate/table1.yaml");
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            vljepa_recipes::load(path.as_ref(), &sets).unwrap().recipe
        };
        let known = table(&[]);
        for same in ["cluster.slurm.partition=low", "logging.every_steps=7", "data.threads=3"] {
            assert!(has_same_scores(&known, &table(&[same])), "{same}");
        }
        for other in ["evaluation.tasks.0.limit=9", "seed=5", "table.skip_absent_sets=true"] {
            assert_ne!(known, table(&[other]), "{other}");
            assert!(!has_same_scores(&known, &table(&[other])), "{other}");
        }
    }
}
