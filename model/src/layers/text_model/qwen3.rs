//! Layers of Qwen3 (`Qwen/Qwen3-Embedding-0.6B`).

use vljepa_kernels::Device;
use vljepa_kernels::attention::Mask;
use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::{self, Heads};
use vljepa_recipes::schema;

use super::{Norm, Positions, Rotary, Sizes, Stack, TextModel, silu_block};
use crate::LayoutBuilder;

impl TextModel {
    /// Registers Qwen3 layers: causal grouped-query attention, RMS norms with factor w before both
    /// branches and on queries and keys, SiLU, no biases.
    #[must_use]
    pub fn qwen3(
        layout: &mut LayoutBuilder,
        name: &str,
        recipe: &schema::Qwen3Embedding,
        device: Device,
    ) -> Self {
        let sizes = Sizes {
            hidden: recipe.hidden_size,
            intermediate: recipe.intermediate_size,
            heads: Heads {
                query: recipe.num_heads,
                key_value: recipe.num_kv_heads,
                dim: recipe.head_dim,
            },
            eps: recipe.rms_norm_eps,
        };
        let norm =
            Norm::rms(layout, &format!("{name}.norm"), sizes.hidden, Scale::Plain, sizes.eps);
        let block =
            |i| silu_block(layout, &format!("{name}.layers.{i}"), &sizes, Mask::Causal, true);
        let mut blocks: Vec<_> = (0..recipe.num_layers).rev().map(block).collect();
        blocks.reverse();
        let shape = [recipe.vocab_size, recipe.hidden_size];
        let embedding = layout.add_table(format!("{name}.embedding.weight"), shape, 1.0);
        let frequencies = rope::inv_freq(recipe.rope_theta, recipe.head_dim);
        Self {
            embedding,
            embedding_scale: 1.0,
            positions: Positions::Rotated,
            stack: Stack { blocks, norm },
            rotaries: vec![Rotary::new(device, recipe.head_dim, frequencies)],
            device,
        }
    }
}
