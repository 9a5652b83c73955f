//! Weights of another run's checkpoint, for a run that starts from them or a table that measures
//! them.
//!
//! Parameters are matched by name, because a parameter that one run trains may be frozen in the
//! other. A Y-decoder that the other run does not have keeps its initial weights. It needs no
//! Y-encoder beside the one that makes the targets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vljepa_kernels::Device;
use vljepa_model::{Layout, ModelError, Parameter, ParameterId, Parameters, VlJepa, Vlm};
use vljepa_recipes::protocol::FileEntry;
use vljepa_recipes::schema::ModelKind;
use vljepa_recipes::{Recipe, RunDirectory};

use super::load::{self, PartFile, PartFiles};
use super::{FROZEN, FROZEN_TENSOR, TENSORS};
use crate::collectives::Collectives;
use crate::error::WorkerError;

/// Beginning of the names of a Y-decoder's parameters.
const DECODER: &str = "y_decoder.";
/// Prefix of the names of a Y-encoder that a moving average follows.
const TRAINED: &str = "y_trained.";

/// Checkpoint of another run that verifies.
#[derive(Debug)]
pub struct OtherRun {
    /// Folder of the checkpoint.
    pub checkpoint: PathBuf,
    /// Step of the checkpoint.
    pub step: u64,
    /// Name and reason of each newer checkpoint that does not verify.
    pub passed_over: Vec<String>,
    /// Parameters of the other run's model.
    layout: Layout,
    /// Parts of the checkpoint.
    parts: Vec<FileEntry>,
    /// File with the parameters that the other run never trains.
    frozen: PathBuf,
}

impl OtherRun {
    /// Finds the checkpoint of `step` in the run directory `run`, or the newest one that verifies,
    /// the same on every rank.
    ///
    /// # Errors
    /// Fails if there is no run or no such checkpoint that verifies, if the checkpoint does not
    /// belong to the recipe of its run, or if the file of the frozen parameters is damaged.
    pub fn open(run: &Path, step: Option<u64>, collectives: &Collectives) -> anyhow::Result<Self> {
        let directory = RunDirectory::open(run)?;
        let loaded = directory.load_recipe()?;
        let layout = layout(&loaded.recipe)?;
        let folder = directory.checkpoints();
        let (found, passed_over) = match step {
            Some(step) => (Some(load::of_step(&folder, step, collectives)?), Vec::new()),
            None => load::newest(&folder, collectives)?,
        };
        let Some((name, manifest)) = found else {
            anyhow::ensure!(
                passed_over.is_empty(),
                "no checkpoint of {} verifies: {}",
                run.display(),
                passed_over.join("; ")
            );
            return Err(WorkerError::NoCheckpoint { run: run.display().to_string() }.into());
        };
        load::fits(&name, &manifest, &loaded.hash, &layout)
            .with_context(|| folder.display().to_string())?;
        let frozen = folder.join(FROZEN);
        let hash = manifest.frozen.unwrap_or_default();
        anyhow::ensure!(
            layout.frozen_len == 0 || load::has_hash(&frozen, &hash, collectives),
            "{} is missing or damaged; restore it, or continue that run, which makes it again",
            frozen.display()
        );
        let (checkpoint, step, parts) = (folder.join(name), manifest.state.step, manifest.files);
        Ok(Self { checkpoint, step, passed_over, layout, parts, frozen })
    }

    /// Checks that the run has the parameters of `layout`, with their shapes, and no others, except
    /// for a Y-decoder and what it does not need.
    ///
    /// # Errors
    /// Names the parameters that are missing, have another shape or would not be used.
    pub fn check(&self, layout: &Layout) -> Result<(), ModelError> {
        let path = || self.checkpoint.clone();
        let (mut theirs, mut missing) = (self.parameters(), Vec::new());
        let averages = layout.parameters.iter().any(|p| p.name.starts_with(TRAINED));
        if has_decoder(layout) && !averages {
            theirs.retain(|name, _| !name.starts_with(TRAINED));
        }
        for wanted in &layout.parameters {
            match theirs.remove(&*wanted.name) {
                None if self.lacks(wanted) => {}
                None => missing.push(wanted.name.clone()),
                Some(found) if found.shape != wanted.shape => {
                    return Err(ModelError::MisshapenTensor {
                        path: path(),
                        name: wanted.name.clone(),
                        found: found.shape.clone(),
                        needed: wanted.shape.clone(),
                    });
                }
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            return Err(ModelError::MissingTensors { path: path(), names: missing });
        }
        if !theirs.is_empty() {
            let names = theirs.into_keys().map(str::to_owned).collect();
            return Err(ModelError::UnusedTensors { path: path(), names });
        }
        Ok(())
    }

    /// Fills `parameters`, whose layout is `layout`, with the weights of the checkpoint. Of several
    /// ranks, let one call this ([`crate::initial::read_once`]).
    ///
    /// # Errors
    /// Fails in the same cases as [`Self::check`], before a parameter is changed, and if a file
    /// cannot be read.
    pub fn load(&self, layout: &Layout, parameters: &mut Parameters) -> anyhow::Result<()> {
        self.check(layout)?;
        let theirs = self.parameters();
        let mut parts = PartFiles::new(&self.checkpoint, &self.parts);
        let frozen = (self.layout.frozen_len > 0).then(|| PartFile::open(&self.frozen));
        let frozen = frozen.transpose()?;
        for (index, wanted) in layout.parameters.iter().enumerate() {
            if self.lacks(wanted) {
                continue;
            }
            let (from, len) = (theirs[&*wanted.name], [wanted.range.len()]);
            let into = parameters.view_mut(layout, ParameterId(index)).part(0, &len);
            match &frozen {
                Some(frozen) if !from.trainable => {
                    frozen.read(FROZEN_TENSOR, from.range.start, into)?;
                }
                _ => parts.read(TENSORS[0], from.range.clone(), into)?,
            }
        }
        let device = parameters.trainable.view().device();
        parameters.refresh(&device.compute_stream())?;
        Ok(())
    }

    /// Whether a parameter belongs to a Y-decoder that the other run does not have.
    fn lacks(&self, parameter: &Parameter) -> bool {
        parameter.name.starts_with(DECODER) && !has_decoder(&self.layout)
    }

    fn parameters(&self) -> BTreeMap<&str, &Parameter> {
        self.layout.parameters.iter().map(|p| (p.name.as_str(), p)).collect()
    }
}

/// Parameters of a recipe's model.
fn layout(recipe: &Recipe) -> anyhow::Result<Layout> {
    let Recipe { model, loss, .. } = recipe;
    match model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => {
            Ok(VlJepa::new(model, loss, Device::Host)?.layout().clone())
        }
        ModelKind::Vlm => Ok(Vlm::new(model, Device::Host)?.layout().clone()),
        ModelKind::DualEncoder => {
            anyhow::bail!("the run has a dual encoder, which has no checkpoints")
        }
    }
}

fn has_decoder(layout: &Layout) -> bool {
    layout.parameters.iter().any(|parameter| parameter.name.starts_with(DECODER))
}
