//! Layers of SONAR's text encoder and of its decoder.

use vljepa_kernels::Device;
use vljepa_kernels::activation::Activation;
use vljepa_kernels::attention::Mask;
use vljepa_recipes::schema;

use super::{Plain, Positions, Sinusoids, Stack, TextModel};
use crate::LayoutBuilder;
use crate::parameters::root;

/// Sizes of SONAR's text encoder or decoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SonarSizes {
    /// Number of elements of a token.
    pub hidden: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Number of heads, a divisor of `hidden`.
    pub heads: usize,
    /// Number of elements of the MLP's hidden layer.
    pub intermediate: usize,
    /// Value added to the variance in layer norms.
    pub eps: f32,
    /// Number of rows of the token embedding table.
    pub vocabulary: usize,
}

impl From<&schema::Sonar> for SonarSizes {
    fn from(recipe: &schema::Sonar) -> Self {
        Self {
            hidden: recipe.hidden_size,
            layers: recipe.num_layers,
            heads: recipe.num_heads,
            intermediate: recipe.intermediate_size,
            eps: recipe.layer_norm_eps,
            vocabulary: recipe.vocab_size,
        }
    }
}

impl From<&schema::SonarDecoder> for SonarSizes {
    fn from(recipe: &schema::SonarDecoder) -> Self {
        Self {
            hidden: recipe.hidden_size,
            layers: recipe.num_layers,
            heads: recipe.num_heads,
            intermediate: recipe.intermediate_size,
            eps: recipe.layer_norm_eps,
            vocabulary: recipe.vocab_size,
        }
    }
}

impl TextModel {
    /// Registers the layers of SONAR: plain blocks with `ReLU`, embeddings times √d, fixed
    /// positions. The encoder attends in both directions, the decoder is causal.
    #[must_use]
    pub fn sonar(
        layout: &mut LayoutBuilder,
        name: &str,
        sizes: SonarSizes,
        mask: Mask,
        device: Device,
    ) -> Self {
        let d = sizes.hidden;
        let blocks = Plain {
            hidden: d,
            layers: sizes.layers,
            heads: sizes.heads,
            intermediate: sizes.intermediate,
            eps: sizes.eps,
            activation: Activation::Relu,
            mask,
            rotates: false,
        };
        let stack = Stack::plain(layout, name, blocks);
        let embedding_scale = root(d);
        let shape = [sizes.vocabulary, d];
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
