//! What a run tells its user: warnings, and the record of its completion.

use vljepa_recipes::clock;
use vljepa_recipes::protocol::FromWorker;
use vljepa_recipes::run_directory::atomic_write;

use crate::checkpoint::State;
use crate::rank::session::Session;

/// Writes the completion record, which alone marks the run as successful.
pub(crate) fn write_record(session: &Session, state: &State) -> anyhow::Result<()> {
    let record = serde_json::json!({
        "step": state.step,
        "samples": state.samples,
        "bad_samples": state.bad_samples,
        "recipe_hash": session.recipe_hash,
        "time": clock::now_text(),
    });
    session.generation.check()?;
    atomic_write(&session.run.completed(), &serde_json::to_vec_pretty(&record)?)?;
    Ok(())
}

/// Warns the user: in this rank's log, and through the supervisor if this is rank 0.
pub(crate) fn warn(session: &Session, text: String) {
    tracing::warn!("{text}");
    if session.collectives.rank() == 0 {
        session.control.report(FromWorker::Warning { text });
    }
}
