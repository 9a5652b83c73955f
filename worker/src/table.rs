//! The run of a table: measures the tasks of the recipe with the model of each row, on all ranks.
//!
//! A row is measured in a directory of its own, which keeps what its model gave. So a table that
//! was interrupted goes on, and one that is started again measures only what changed.

use vljepa_model::{VlJepa, Vlm};
use vljepa_recipes::protocol::{FromWorker, Outcome, Phase, RowRecord};
use vljepa_recipes::run_directory::atomic_write;
use vljepa_recipes::schema::{Init, ModelKind, Table};
use vljepa_recipes::{RowRecipe, is_absent, row_recipes, to_yaml};

use crate::checkpoint::{OtherRun, State};
use crate::engine::{Engine, Network};
use crate::evaluation;
use crate::inference::Loaded;
use crate::initial;
use crate::rank::session::Session;
use crate::training::record::{warn, write_record};

/// Measures the rows, and writes the scores of each and the completion record. A request to stop is
/// met before the next row. Returns the outcome and the step, which is 0.
///
/// # Errors
/// Fails if the weights of a row cannot be read. Tasks that cannot be measured are reported after
/// all rows were measured.
pub(crate) fn measure(session: &Session, table: &Table) -> anyhow::Result<(Outcome, u64)> {
    let state = State::default();
    session.control.at(state.step, Phase::Start);
    let rows = row_recipes(&session.recipe)
        .into_iter()
        .map(|row| row.map_err(|problem| anyhow::anyhow!("{}: {}", problem.key, problem.what)));
    let rows: Vec<RowRecipe> = rows.collect::<anyhow::Result<_>>()?;
    let left_out = left_out(session, table)?;
    let mut failures = Vec::new();
    for mut row in rows {
        if stops(session) {
            return Ok((Outcome::Stopped, state.step));
        }
        row.recipe.evaluation.tasks.retain(|task| !left_out.contains(&task.name));
        let failed = measure_row(session, &row, &left_out)?.into_iter();
        failures.extend(failed.map(|failure| format!("row {}: {failure}", row.name)));
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    if session.collectives.rank() == 0 {
        write_record(session, &state)?;
    }
    // No rank may exit before the record is written.
    session.collectives.patiently(|| session.collectives.barrier());
    Ok((Outcome::Completed, state.step))
}

/// Whether the run is to stop. Rank 0 decides, because the request may reach ranks between
/// different rows.
fn stops(session: &Session) -> bool {
    let requested = session.control.stop_requested();
    session.collectives.broadcast(vec![u8::from(requested)]) == [1]
}

/// Names of the tasks whose sets are not on the disk of rank 0, if the table leaves them out.
fn left_out(session: &Session, table: &Table) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<&str> = Vec::new();
    if session.collectives.rank() == 0 && table.skip_absent_sets {
        for task in session.recipe.evaluation.tasks.iter().filter(|task| is_absent(task)) {
            warn(session, format!("task `{}` is left out: its set is not on this disk", task.name));
            names.push(&task.name);
        }
    }
    Ok(serde_json::from_slice(&session.collectives.broadcast(serde_json::to_vec(&names)?))?)
}

/// Measures one row. Returns a line for each task that could not be measured.
fn measure_row(
    session: &Session,
    row: &RowRecipe,
    left_out: &[String],
) -> anyhow::Result<Vec<String>> {
    let RowRecipe { name, recipe, .. } = row;
    session.control.at(0, Phase::Load);
    session.drills.at(0, Phase::Load)?;
    let (loaded, step) = session
        .collectives
        .patiently(|| load(session, row))
        .map_err(|error| error.context(format!("table.rows.{name} cannot be measured")))?;
    session.control.at(0, Phase::Evaluation);
    session.drills.at(0, Phase::Evaluation)?;
    let model = loaded.embeds();
    let run = session.run.row(name);
    let evaluated = evaluation::evaluate(session, recipe, &run, model)?;
    loaded.trim()?;
    if session.collectives.rank() == 0 {
        session.generation.check()?;
        evaluation::write(&run, step.unwrap_or(0), &evaluated)?;
        if let Err(error) = evaluation::write_showcase(recipe, model, &run) {
            warn(session, format!("row {name} shows no samples: {error:#}"));
        }
        atomic_write(&run.recipe(), to_yaml(recipe)?.as_bytes())?;
        let record = RowRecord { step, left_out: left_out.to_vec() };
        atomic_write(&run.row_json(), &serde_json::to_vec_pretty(&record)?)?;
        let scores = evaluated.scores.into_iter();
        let values = scores.map(|(metric, score)| (format!("{name}.{metric}"), score.value));
        let values = values.collect();
        session.control.report(FromWorker::Scores { step: step.unwrap_or(0), values });
    }
    Ok(evaluated.failures)
}

/// Loads the model of a row. Also returns the step of its checkpoint.
fn load(session: &Session, row: &RowRecipe) -> anyhow::Result<(Loaded, Option<u64>)> {
    match row.recipe.model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => {
            let (engine, step) = trained::<VlJepa>(session, row)?;
            Ok((Loaded::VlJepa(Box::new(engine)), step))
        }
        ModelKind::Vlm => {
            let (engine, step) = trained::<Vlm>(session, row)?;
            Ok((Loaded::Vlm(Box::new(engine)), step))
        }
        ModelKind::DualEncoder => {
            let (engine, files) =
                Engine::published(&row.recipe, session.device, &session.collectives)?;
            for (path, imported) in files {
                tracing::info!("row {}: {}: {imported}", row.name, path.display());
            }
            Ok((Loaded::DualEncoder(Box::new(engine)), None))
        }
    }
}

/// Loads the weights that `init` names.
fn trained<M: Network>(
    session: &Session,
    row: &RowRecipe,
) -> anyhow::Result<(Engine<M>, Option<u64>)> {
    let mut engine = Engine::<M>::without_weights(&row.recipe, session.device, 1)?;
    let Some(Init::Run(run)) = &row.recipe.init else {
        engine.load_weights(&session.collectives)?;
        return Ok((engine, None));
    };
    let other = OtherRun::open(run, row.step, &session.collectives)?;
    for passed in &other.passed_over {
        warn(session, format!("row {}: a checkpoint does not verify: {passed}", row.name));
    }
    let Engine { model, parameters, .. } = &mut engine;
    initial::read_once(parameters, &session.collectives, |parameters| {
        other.load(model.layout(), parameters)
    })?;
    tracing::info!("row {}: weights of {}", row.name, other.checkpoint.display());
    Ok((engine, Some(other.step)))
}
