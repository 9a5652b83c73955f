//! Trained weights that a run starts from: the published files of the recipe's model, and those of
//! the key `init`.

use std::path::PathBuf;

use anyhow::Context;
use vljepa_model::weights::{self, Imported, Parts, Published, Source};
use vljepa_model::{ModelError, Parameters};
use vljepa_recipes::RunDirectory;
use vljepa_recipes::schema::Init;

use crate::checkpoint::OtherRun;
use crate::collectives::Collectives;

/// Sources of a run's first weights.
#[derive(Debug, Default)]
pub struct Initial {
    /// Files of weights, each with what was read of it. Empty on other ranks than rank 0.
    pub files: Vec<(PathBuf, Imported)>,
    /// Checkpoint of another run, if the recipe names a run.
    pub run: Option<OtherRun>,
}

/// Draws weights with `seed`, if it is given, and replaces them by those that the recipe names.
/// Rank 0 does so and sends the weights to the other ranks. The newest checkpoint of another run is
/// chosen by all ranks together.
///
/// # Errors
/// Fails if a file or checkpoint is missing or damaged, or does not hold the tensors of the model.
pub fn load(
    init: Option<&Init>,
    seed: Option<u64>,
    model: Parts<'_>,
    parameters: &mut Parameters,
    collectives: &Collectives,
) -> anyhow::Result<Initial> {
    let run = match init {
        Some(init @ Init::Run(run)) => {
            Some(OtherRun::open(run, None, collectives).context(init.key())?)
        }
        Some(Init::Export(_) | Init::Weights(_)) | None => None,
    };
    let files = read_once(parameters, collectives, |parameters| {
        if let Some(seed) = seed {
            parameters.initialise(model.layout(), seed)?;
        }
        let mut read = weights::load_published(model, parameters)?;
        let Some(init) = init else { return Ok(read) };
        let mut named = || -> anyhow::Result<()> {
            for file in files(init, model) {
                let imported = weights::load(model, parameters, file.source, &file.path)?;
                read.push((file.path.clone(), whole(imported, file)?));
            }
            run.as_ref().map_or(Ok(()), |run| run.load(model.layout(), parameters))
        };
        named().context(init.key())?;
        Ok(read)
    })?;
    Ok(Initial { files, run })
}

/// Lets rank 0 set parameters, and sends all of them to the other ranks: the network between ranks
/// is faster than a file system that they share. Returns the result of `read` on rank 0, and the
/// default on the other ranks.
///
/// # Errors
/// Fails on every rank if `read` fails on rank 0.
pub fn read_once<T: Default>(
    parameters: &mut Parameters,
    collectives: &Collectives,
    read: impl FnOnce(&mut Parameters) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let leads = collectives.rank() == 0;
    let said = if leads { read(parameters) } else { Ok(T::default()) };
    let failed = said.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
    let failed = collectives.broadcast(failed.into_bytes());
    let said = said?;
    if !failed.is_empty() {
        anyhow::bail!("{}", String::from_utf8_lossy(&failed));
    }
    let stream = parameters.trainable.view().device().compute_stream();
    collectives.broadcast_values(&stream, parameters.trainable.view_mut())?;
    collectives.broadcast_values(&stream, parameters.frozen.view_mut())?;
    parameters.refresh(&stream)?;
    Ok(said)
}

/// Whether the folder or file of `init` exists and, for a run, holds a checkpoint.
#[must_use]
pub fn is_there(init: &Init) -> bool {
    match init {
        Init::Run(run) => {
            RunDirectory::open(run).is_ok_and(|run| run.newest_checkpoint().is_some())
        }
        Init::Export(path) | Init::Weights(path) => path.exists(),
    }
}

/// Files that `init` names. Empty for a run.
#[must_use]
pub fn files(init: &Init, model: Parts<'_>) -> Vec<Published> {
    let key = init.key();
    match init {
        Init::Run(_) => Vec::new(),
        Init::Export(folder) => weights::exported(model, folder)
            .map(|(source, path)| Published { source, path, key })
            .collect(),
        Init::Weights(path) => {
            vec![Published { source: Source::Projections, path: path.clone(), key }]
        }
    }
}

/// Checks that the tensors of a file that `init` names are those of the model.
///
/// # Errors
/// Fails as [`load`] would.
pub fn check(model: Parts<'_>, file: Published) -> Result<(), ModelError> {
    let imported = weights::check(model, file.source, &file.path)?;
    whole(imported, file).map(drop)
}

/// Refuses a file with tensors that the model does not use. A published file may hold layers that
/// the model leaves out, but these files hold one model and no more.
fn whole(imported: Imported, file: Published) -> Result<Imported, ModelError> {
    if imported.unused.is_empty() {
        return Ok(imported);
    }
    Err(ModelError::UnusedTensors { path: file.path, names: imported.unused })
}
