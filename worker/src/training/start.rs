//! Weights with which a run starts.

use vljepa_recipes::protocol::FromWorker;

use crate::checkpoint::{self, CheckpointFolder, OtherRun};
use crate::engine::{Engine, Network};
use crate::initial::Initial;
use crate::rank::session::Session;
use crate::training::record::warn;

/// Sets the weights of a new run, and reports which they are.
pub(super) fn initialise<M: Network>(
    session: &Session,
    engine: &mut Engine<M>,
) -> anyhow::Result<()> {
    let Initial { files, run } = engine.initialise(&session.collectives)?;
    for (path, imported) in files {
        tracing::info!("{}: {imported}", path.display());
    }
    let Some(OtherRun { checkpoint, passed_over, .. }) = run else { return Ok(()) };
    for passed in passed_over {
        warn(session, format!("a checkpoint of `init.run` does not verify: {passed}"));
    }
    tracing::info!("starting from the weights in {}", checkpoint.display());
    if session.collectives.rank() == 0 {
        session.control.report(FromWorker::Initialised { checkpoint });
    }
    Ok(())
}

/// Writes the parameters that are never trained, once per run, and returns the file's hash on every
/// rank. Returns `None` if the model has none.
pub(super) fn save_frozen<M: Network>(
    session: &Session,
    engine: &Engine<M>,
    checkpoints: &CheckpointFolder,
) -> anyhow::Result<Option<String>> {
    if engine.parameters.frozen.shape()[0] == 0 {
        return Ok(None);
    }
    let mut hash = String::new();
    if session.collectives.rank() == 0 {
        std::fs::create_dir_all(&checkpoints.folder)?;
        hash = checkpoint::save_frozen(&checkpoints.folder, &engine.parameters.frozen)?;
    }
    Ok(Some(String::from_utf8(session.collectives.broadcast(hash.into_bytes()))?))
}
