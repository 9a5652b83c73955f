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
    /// Files of weights, each with what was read of it.
    pub files: Vec<(PathBuf, Imported)>,
    /// Checkpoint of another run, if the recipe names a run.
    pub run: Option<OtherRun>,
}

/// Replaces random weights by those that the recipe names. Every rank reads the same files. The
/// newest checkpoint of another run is chosen by all ranks together.
///
/// # Errors
/// Fails if a file or checkpoint is missing or damaged, or does not hold the tensors of the model.
pub fn load(
    init: Option<&Init>,
    model: Parts<'_>,
    parameters: &mut Parameters,
    collectives: &Collectives,
) -> anyhow::Result<Initial> {
    let mut initial = Initial { files: weights::load_published(model, parameters)?, run: None };
    let Some(init) = init else { return Ok(initial) };
    let mut read = || -> anyhow::Result<()> {
        for file in files(init, model) {
            let imported = weights::load(model, parameters, file.source, &file.path)?;
            initial.files.push((file.path.clone(), whole(imported, file)?));
        }
        if let Init::Run(run) = init {
            let run = OtherRun::open(run, None, collectives)?;
            run.load(model.layout(), parameters)?;
            initial.run = Some(run);
        }
        Ok(())
    };
    read().context(init.key())?;
    Ok(initial)
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
