//! Layers of `EmbeddingGemma` (`google/embeddinggemma-300m`).

use vljepa_kernels::attention::Mask;
use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::{self, Heads};
use vljepa_kernels::{Device, gated_mlp};
use vljepa_recipes::schema;

use super::{
    Attention, Block, HeadNorms, Norm, Positions, Rotary, Sizes, Stack, TextModel, attention_maps,
    gated_maps,
};
use crate::LayoutBuilder;
use crate::parameters::root;

/// 1/√x, rounded to f32.
#[expect(clippy::cast_possible_truncation, reason = "the result is rounded to f32")]
fn inverse_root(x: f64) -> f32 {
    x.sqrt().recip() as f32
}

impl TextModel {
    /// Registers `EmbeddingGemma` layers (as in `google/embeddinggemma-300m`): RMS norms with
    /// factor 1 + w before and after both branches and on queries and keys, tanh GELU,
    /// sliding-window attention in all layers but every n-th, two rotary bases, embeddings times
    /// √d.
    #[must_use]
    pub fn gemma(
        layout: &mut LayoutBuilder,
        name: &str,
        recipe: &schema::EmbeddingGemma,
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
            Norm::rms(layout, &format!("{name}.norm"), sizes.hidden, Scale::OnePlus, sizes.eps);
        let block = |i: usize| {
            let full = (i + 1).is_multiple_of(recipe.full_attention_every);
            let (mask, table) =
                if full { (Mask::Full, 0) } else { (Mask::Window(recipe.effective_window), 1) };
            let scale = inverse_root(recipe.query_pre_attn_scalar);
            gemma_block(layout, &format!("{name}.layers.{i}"), &sizes, (mask, table, scale))
        };
        let mut blocks: Vec<_> = (0..recipe.num_layers).rev().map(block).collect();
        blocks.reverse();
        let shape = [recipe.vocab_size, recipe.hidden_size];
        let embedding_scale = root(recipe.hidden_size);
        let embedding =
            layout.add_table(format!("{name}.embedding.weight"), shape, embedding_scale);
        let rotary =
            |theta| Rotary::new(device, recipe.head_dim, rope::inv_freq(theta, recipe.head_dim));
        Self {
            embedding,
            embedding_scale,
            positions: Positions::Rotated,
            stack: Stack { blocks, norm },
            rotaries: vec![rotary(recipe.rope_theta), rotary(recipe.rope_local_theta)],
            device,
        }
    }
}

fn gemma_block(
    layout: &mut LayoutBuilder,
    name: &str,
    s: &Sizes,
    (mask, table, scale): (Mask, usize, f32),
) -> Block {
    let mlp = gated_maps(layout, name, s, gated_mlp::Activation::GeluTanh);
    let (qkv, output) = attention_maps(layout, name, s);
    let mut norm =
        |which, width| Norm::rms(layout, &format!("{name}.{which}"), width, Scale::OnePlus, s.eps);
    let (post_mlp_norm, mlp_norm) = (norm("post_mlp_norm", s.hidden), norm("mlp_norm", s.hidden));
    let post_attention_norm = norm("post_attention_norm", s.hidden);
    let norms = HeadNorms {
        query: norm("attention.query_norm", s.heads.dim),
        key: norm("attention.key_norm", s.heads.dim),
    };
    let attention_norm = norm("attention_norm", s.hidden);
    let attention = Attention {
        qkv,
        output,
        heads: s.heads,
        norms: Some(norms),
        mask,
        scale,
        table: Some(table),
    };
    Block {
        attention_norm,
        attention,
        post_attention_norm: Some(post_attention_norm),
        mlp_norm,
        mlp,
        post_mlp_norm: Some(post_mlp_norm),
        gradients_end: layout.trainable_end(),
    }
}
