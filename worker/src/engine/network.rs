//! What an engine needs of a kind of model.

use vljepa_kernels::{Device, Stream};
use vljepa_model::weights::Parts;
use vljepa_model::{DualEncoder, Layout, ModelError, Parameters, VlJepa, Vlm};
use vljepa_recipes::Recipe;

/// A model that an [`Engine`](super::Engine) holds.
pub trait Network: Sized + std::fmt::Debug {
    /// Builds the model of a recipe, without weights.
    ///
    /// # Errors
    /// Fails if the recipe's sizes do not make a model.
    fn build(recipe: &Recipe, device: Device) -> Result<Self, ModelError>;

    /// Names, shapes and offsets of all parameters.
    fn layout(&self) -> &Layout;

    /// Parts whose weights have published names.
    fn parts(&self) -> Parts<'_>;

    /// Starts what is trained with the weights of its moving average, if the model has one.
    ///
    /// # Errors
    /// Fails if the device fails.
    fn start_from_average(&self, _: &Stream, _: &mut Parameters) -> Result<(), ModelError> {
        Ok(())
    }

    /// Updates a moving average after a step, if the model has one.
    ///
    /// # Errors
    /// Fails if the device fails.
    fn move_average(&self, _: &Stream, _: &mut Parameters) -> Result<(), ModelError> {
        Ok(())
    }
}

impl Network for VlJepa {
    fn build(recipe: &Recipe, device: Device) -> Result<Self, ModelError> {
        Self::new(&recipe.model, &recipe.loss, device)
    }

    fn layout(&self) -> &Layout {
        self.layout()
    }

    fn parts(&self) -> Parts<'_> {
        self.into()
    }

    fn start_from_average(
        &self,
        stream: &Stream,
        parameters: &mut Parameters,
    ) -> Result<(), ModelError> {
        self.start_from_average(stream, parameters)
    }

    fn move_average(&self, stream: &Stream, parameters: &mut Parameters) -> Result<(), ModelError> {
        self.move_average(stream, parameters)
    }
}

impl Network for Vlm {
    fn build(recipe: &Recipe, device: Device) -> Result<Self, ModelError> {
        Self::new(&recipe.model, device)
    }

    fn layout(&self) -> &Layout {
        self.layout()
    }

    fn parts(&self) -> Parts<'_> {
        self.into()
    }
}

impl Network for DualEncoder {
    fn build(recipe: &Recipe, device: Device) -> Result<Self, ModelError> {
        Self::new(&recipe.model, device)
    }

    fn layout(&self) -> &Layout {
        self.layout()
    }

    fn parts(&self) -> Parts<'_> {
        self.into()
    }
}
