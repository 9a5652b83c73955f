//! Which runs of a programme are complete, and which have a job in Slurm's queue.

use std::path::Path;
use std::time::SystemTime;

use vljepa_recipes::run_directory::RunDirectory;
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
        && directory.load_recipe().is_ok_and(|there| there.recipe == *recipe)
}

/// When the completion record of a run was written, or `None` if there is none.
fn completed_at(run: &Path) -> Option<SystemTime> {
    let record = RunDirectory::open(run).ok()?.completed();
    std::fs::metadata(record).ok()?.modified().ok()
}

/// The newest job of each run, or `None` if the run was never submitted. Slurm is asked once.
pub(super) async fn jobs(programme: &Programme) -> Vec<Option<Job>> {
    let submitted =
        |run: &ProgrammeRun| Some(Submission::read(&RunDirectory::open(&run.directory).ok()?)?.job);
    let ids: Vec<Option<String>> = programme.runs.iter().map(submitted).collect();
    let all: Vec<String> = ids.iter().flatten().cloned().collect();
    let states = if all.is_empty() { None } else { client::job_states(&all).await };
    let state = |id: &String| states.as_ref().and_then(|states| states.get(id).cloned());
    ids.into_iter().map(|id| id.map(|id| Job { state: state(&id), id })).collect()
}
