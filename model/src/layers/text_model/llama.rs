//! Layers of Llama-3.2 (`meta-llama/Llama-3.2-1B`).

use vljepa_kernels::Device;
use vljepa_kernels::attention::Mask;
use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::{self, Heads};
use vljepa_recipes::schema;

use super::{Norm, Positions, Rotary, Sizes, Stack, TextModel, silu_block};
use crate::parameters::root;
use crate::{Group, LayoutBuilder};

/// Sizes of Llama-3.2 layers.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaSizes {
    /// Number of elements of a token.
    pub hidden: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Numbers of query heads and of key/value heads, and their width.
    pub heads: Heads,
    /// Number of elements of the gated MLP's hidden layer.
    pub intermediate: usize,
    /// Value added to the mean square in RMS norms.
    pub eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies, or `None` if they are not scaled.
    pub rope_scaling: Option<schema::Llama3Scaling>,
    /// Number of rows of the token embedding table.
    pub vocabulary: usize,
    /// Whether the token table is the output map too. With fan-in initialisation its elements are
    /// then Normal(0, 1/√d), so that logits are near 1.
    pub tied: bool,
}

/// What of Llama-3.2 is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    /// Number of layers, counted from the last. With at least one, the final norm is trained too.
    pub layers: usize,
    /// Whether the table of token embeddings is trained.
    pub table: bool,
}

impl From<&schema::Predictor> for LlamaSizes {
    fn from(recipe: &schema::Predictor) -> Self {
        Self {
            hidden: recipe.hidden_size,
            layers: recipe.num_layers(),
            heads: Heads {
                query: recipe.num_heads,
                key_value: recipe.num_kv_heads,
                dim: recipe.head_dim,
            },
            intermediate: recipe.intermediate_size,
            eps: recipe.rms_norm_eps,
            rope_theta: recipe.rope_theta,
            rope_scaling: recipe.rope_scaling.clone(),
            vocabulary: recipe.vocab_size,
            tied: false,
        }
    }
}

impl From<&schema::LlamaDecoder> for LlamaSizes {
    fn from(recipe: &schema::LlamaDecoder) -> Self {
        Self {
            hidden: recipe.hidden_size,
            layers: recipe.num_layers,
            heads: Heads {
                query: recipe.num_heads,
                key_value: recipe.num_kv_heads,
                dim: recipe.head_dim,
            },
            intermediate: recipe.intermediate_size,
            eps: recipe.rms_norm_eps,
            rope_theta: recipe.rope_theta,
            rope_scaling: recipe.rope_scaling.clone(),
            vocabulary: recipe.vocab_size,
            tied: true,
        }
    }
}

impl From<&schema::LanguageModel> for LlamaSizes {
    fn from(recipe: &schema::LanguageModel) -> Self {
        Self {
            hidden: recipe.hidden_size,
            layers: recipe.num_layers,
            heads: Heads {
                query: recipe.num_heads,
                key_value: recipe.num_kv_heads,
                dim: recipe.head_dim,
            },
            intermediate: recipe.intermediate_size,
            eps: recipe.rms_norm_eps,
            rope_theta: recipe.rope_theta,
            rope_scaling: recipe.rope_scaling.clone(),
            vocabulary: recipe.vocab_size,
            tied: true,
        }
    }
}

impl TextModel {
    /// Registers Llama-3.2 layers (as in `meta-llama/Llama-3.2-1B`): grouped-query attention, RMS
    /// norms with factor w, SiLU, scaled rotary frequencies.
    #[must_use]
    pub fn llama(
        layout: &mut LayoutBuilder,
        name: &str,
        group: Group,
        llama: &LlamaSizes,
        mask: Mask,
        trained: Trained,
        device: Device,
    ) -> Self {
        let sizes = Sizes {
            hidden: llama.hidden,
            intermediate: llama.intermediate,
            heads: llama.heads,
            eps: llama.eps,
        };
        layout.scope(group, trained.layers > 0);
        let norm =
            Norm::rms(layout, &format!("{name}.norm"), sizes.hidden, Scale::Plain, sizes.eps);
        let block = |i| {
            layout.scope(group, i + trained.layers >= llama.layers);
            silu_block(layout, &format!("{name}.layers.{i}"), &sizes, mask, false)
        };
        let mut blocks: Vec<_> = (0..llama.layers).rev().map(block).collect();
        blocks.reverse();
        layout.scope(group, trained.table);
        let shape = [llama.vocabulary, llama.hidden];
        let scale = if llama.tied { root(llama.hidden) } else { 1.0 };
        let embedding = layout.add_table(format!("{name}.embedding.weight"), shape, scale);
        Self {
            embedding,
            embedding_scale: 1.0,
            positions: Positions::Rotated,
            stack: Stack { blocks, norm },
            rotaries: vec![Rotary::new(device, llama.heads.dim, frequencies(llama))],
            device,
        }
    }
}

/// Inverse rotary frequencies of Llama layers.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`VlJepa::new` checks that the number of positions fits u32"
)]
fn frequencies(llama: &LlamaSizes) -> Vec<f32> {
    match &llama.rope_scaling {
        None => rope::inv_freq(llama.rope_theta, llama.heads.dim),
        Some(s) => {
            let scaling = rope::Llama3Scaling {
                factor: s.factor,
                low_freq_factor: s.low_freq_factor,
                high_freq_factor: s.high_freq_factor,
                original_max_positions: s.original_max_position_embeddings as usize,
            };
            rope::llama3_inv_freq(llama.rope_theta, llama.heads.dim, scaling)
        }
    }
}
