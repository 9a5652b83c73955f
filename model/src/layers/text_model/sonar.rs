//! Layers of SONAR's text encoder.

use vljepa_kernels::Device;
use vljepa_kernels::activation::Activation;
use vljepa_kernels::attention::Mask;
use vljepa_recipes::schema;

use super::{Plain, Positions, Sinusoids, Stack, TextModel};
use crate::LayoutBuilder;
use crate::parameters::root;

impl TextModel {
    /// Registers the layers of SONAR's text encoder: plain blocks with `ReLU`, attention in both
    /// directions, embeddings times √d, fixed positions.
    #[must_use]
    pub fn sonar(
        layout: &mut LayoutBuilder,
        name: &str,
        recipe: &schema::Sonar,
        device: Device,
    ) -> Self {
        let d = recipe.hidden_size;
        let blocks = Plain {
            hidden: d,
            layers: recipe.num_layers,
            heads: recipe.num_heads,
            intermediate: recipe.intermediate_size,
            eps: recipe.layer_norm_eps,
            activation: Activation::Relu,
            mask: Mask::Full,
            rotates: false,
        };
        let stack = Stack::plain(layout, name, blocks);
        let embedding_scale = root(d);
        let shape = [recipe.vocab_size, d];
        let embedding =
            layout.add_table(format!("{name}.embedding.weight"), shape, embedding_scale);
        Self {
            embedding,
            embedding_scale,
            positions: Positions::Sinusoids(Sinusoids::new(device, d)),
            stack,
            rotaries: Vec::new(),
            device,
        }
    }
}
