//! Layers of Llama-3.2 (`meta-llama/Llama-3.2-1B`).

use vljepa_kernels::Device;
use vljepa_kernels::attention::Mask;
use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::{self, Heads};
use vljepa_recipes::schema;

use super::{Norm, Positions, Rotary, Sizes, Stack, TextModel, silu_block};
use crate::{Group, LayoutBuilder};

impl TextModel {
    /// Registers Llama-3.2 layers (as in `meta-llama/Llama-3.2-1B`): grouped-query attention, RMS
    /// norms with factor w, SiLU, scaled rotary frequencies.
    #[must_use]
    pub fn llama(
        layout: &mut LayoutBuilder,
        name: &str,
        group: Group,
        recipe: &schema::Predictor,
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
        let mask = match recipe.attention {
            schema::Attention::Bidirectional => Mask::Full,
            schema::Attention::Causal => Mask::Causal,
        };
        layout.scope(group, true);
        let norm =
            Norm::rms(layout, &format!("{name}.norm"), sizes.hidden, Scale::Plain, sizes.eps);
        let block = |i| silu_block(layout, &format!("{name}.layers.{i}"), &sizes, mask, false);
        let mut blocks: Vec<_> = (0..recipe.num_layers()).rev().map(block).collect();
        blocks.reverse();
        layout.scope(group, recipe.train_embeddings);
        let shape = [recipe.vocab_size, recipe.hidden_size];
        let embedding = layout.add_table(format!("{name}.embedding.weight"), shape, 1.0);
        Self {
            embedding,
            embedding_scale: 1.0,
            positions: Positions::Rotated,
            stack: Stack { blocks, norm },
            rotaries: vec![Rotary::new(device, recipe.head_dim, llama_frequencies(recipe))],
            device,
        }
    }
}

/// Inverse rotary frequencies of the recipe's Llama layers.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`VlJepa::new` checks that the number of positions fits u32"
)]
fn llama_frequencies(recipe: &schema::Predictor) -> Vec<f32> {
    match &recipe.rope_scaling {
        None => rope::inv_freq(recipe.rope_theta, recipe.head_dim),
        Some(s) => {
            let scaling = rope::Llama3Scaling {
                factor: s.factor,
                low_freq_factor: s.low_freq_factor,
                high_freq_factor: s.high_freq_factor,
                original_max_positions: s.original_max_position_embeddings as usize,
            };
            rope::llama3_inv_freq(recipe.rope_theta, recipe.head_dim, scaling)
        }
    }
}
