//! Layers of PE-core's text tower.

use vljepa_kernels::Device;
use vljepa_kernels::activation::Activation;
use vljepa_kernels::attention::Mask;
use vljepa_recipes::schema;

use super::{Plain, Positions, Stack, TextModel};
use crate::LayoutBuilder;

impl TextModel {
    /// Registers the layers of PE-core's text tower: plain causal blocks with exact GELU, learned
    /// positions.
    #[must_use]
    pub fn pe_text(
        layout: &mut LayoutBuilder,
        name: &str,
        recipe: &schema::PeText,
        device: Device,
    ) -> Self {
        let d = recipe.hidden_size;
        let blocks = Plain {
            hidden: d,
            layers: recipe.num_layers,
            heads: recipe.num_heads,
            intermediate: recipe.intermediate_size,
            eps: recipe.layer_norm_eps,
            activation: Activation::Gelu,
            mask: Mask::Causal,
            rotates: false,
        };
        let stack = Stack::plain(layout, name, blocks);
        let mut table =
            |which: &str, rows| layout.add_table(format!("{name}.{which}"), [rows, d], 1.0);
        let positions = table("positions", recipe.context_length);
        let embedding = table("embedding.weight", recipe.vocab_size);
        Self {
            embedding,
            embedding_scale: 1.0,
            positions: Positions::Learned(positions),
            stack,
            rotaries: Vec::new(),
            device,
        }
    }
}
