//! Layers of the text towers of PE-core, CLIP and `SigLIP` 2: plain blocks and learned positions.

use vljepa_kernels::Device;
use vljepa_kernels::activation::Activation;
use vljepa_kernels::attention::Mask;
use vljepa_recipes::schema::{self, TextSizes};

use super::{Plain, Positions, Stack, TextModel};
use crate::LayoutBuilder;

impl TextModel {
    /// Registers the layers of PE-core's text tower: plain causal blocks with exact GELU, learned
    /// positions.
    #[must_use]
    pub fn pe_text(
        layout: &mut LayoutBuilder,
        name: &str,
        (recipe, sizes): (&schema::PeText, TextSizes),
        device: Device,
    ) -> Self {
        let form = (Activation::Gelu, Mask::Causal, recipe.layer_norm_eps);
        tower(layout, name, sizes, form, device)
    }

    /// Registers the layers of CLIP's text tower: plain causal blocks with the recipe's GELU,
    /// learned positions.
    #[must_use]
    pub fn clip_text(
        layout: &mut LayoutBuilder,
        name: &str,
        (recipe, sizes): (&schema::ClipText, TextSizes),
        device: Device,
    ) -> Self {
        let gelu = if recipe.quick_gelu { Activation::GeluQuick } else { Activation::Gelu };
        tower(layout, name, sizes, (gelu, Mask::Causal, recipe.layer_norm_eps), device)
    }

    /// Registers the layers of `SigLIP` 2's text tower: plain blocks with tanh GELU and attention
    /// in both directions, learned positions.
    #[must_use]
    pub fn siglip2_text(
        layout: &mut LayoutBuilder,
        name: &str,
        (recipe, sizes): (&schema::Siglip2Text, TextSizes),
        device: Device,
    ) -> Self {
        let form = (Activation::GeluTanh, Mask::Full, recipe.layer_norm_eps);
        tower(layout, name, sizes, form, device)
    }
}

/// Registers plain blocks, learned positions and token embeddings, last first.
fn tower(
    layout: &mut LayoutBuilder,
    name: &str,
    sizes: TextSizes,
    (activation, mask, eps): (Activation, Mask, f32),
    device: Device,
) -> TextModel {
    let d = sizes.hidden_size;
    let blocks = Plain {
        hidden: d,
        layers: sizes.num_layers,
        heads: sizes.num_heads,
        intermediate: sizes.intermediate_size,
        eps,
        activation,
        mask,
        rotates: false,
    };
    let stack = Stack::plain(layout, name, blocks);
    let mut table = |which: &str, rows| layout.add_table(format!("{name}.{which}"), [rows, d], 1.0);
    let positions = table("positions", sizes.positions);
    let embedding = table("embedding.weight", sizes.vocab_size);
    TextModel {
        embedding,
        embedding_scale: 1.0,
        positions: Positions::Learned(positions),
        stack,
        rotaries: Vec::new(),
        device,
    }
}
