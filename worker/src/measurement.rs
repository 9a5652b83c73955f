//! The run of a dual encoder, which has published weights and no training: measures the recipe's
//! tasks.

use vljepa_recipes::protocol::{FromWorker, Outcome, Phase};

use crate::checkpoint::State;
use crate::engine::Engine;
use crate::evaluation;
use crate::evaluation::embed::Embeds;
use crate::rank::session::Session;
use crate::training::record::{warn, write_record};

/// Loads the encoders, measures every task on all ranks, and writes the scores and the completion
/// record. Returns the outcome and the step, which is 0.
///
/// # Errors
/// Fails if a file does not hold its weights, or a task cannot be measured.
pub(crate) fn measure(session: &Session) -> anyhow::Result<(Outcome, u64)> {
    let state = State::default();
    session.control.at(state.step, Phase::Load);
    session.drills.at(state.step, Phase::Load)?;
    let ranks = &session.collectives;
    let (engine, files) =
        ranks.patiently(|| Engine::published(&session.recipe, session.device, ranks))?;
    for (path, imported) in files {
        tracing::info!("{}: {imported}", path.display());
    }
    session.control.at(state.step, Phase::Evaluation);
    session.drills.at(state.step, Phase::Evaluation)?;
    let model = Embeds::DualEncoder(&engine);
    let evaluated = evaluation::evaluate(session, &session.recipe, &session.run, model)?;
    anyhow::ensure!(evaluated.failures.is_empty(), "{}", evaluated.failures.join("; "));
    if session.collectives.rank() == 0 {
        session.generation.check()?;
        evaluation::write(&session.run, state.step, &evaluated)?;
        let values =
            evaluated.scores.into_iter().map(|(name, score)| (name, score.value)).collect();
        session.control.report(FromWorker::Scores { step: state.step, values });
        if let Err(error) = evaluation::write_showcase(&session.recipe, model, &session.run) {
            warn(session, format!("the report shows no samples: {error:#}"));
        }
        write_record(session, &state)?;
    }
    // No rank may exit before the record is written.
    session.collectives.patiently(|| session.collectives.barrier());
    Ok((Outcome::Completed, state.step))
}
