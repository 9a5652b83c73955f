//! Text transformer: token embeddings and a stack of Llama or Gemma blocks.

use vljepa_kernels::attention::Mask;
use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::{self, Heads};
use vljepa_kernels::{Device, Lengths, Result, Tensor, View, embedding, gated_mlp};
use vljepa_recipes::schema;

use super::{Activation, Attention, Block, HeadNorms, Linear, Mlp, Norm, Rotary, Sequence, Stack};
use crate::parameters::root;
use crate::{Context, Gradients, Group, LayoutBuilder, Parameters, Weight};

/// 1/√x, rounded to f32.
#[expect(clippy::cast_possible_truncation, reason = "the result is rounded to f32")]
fn inverse_root(x: f64) -> f32 {
    x.sqrt().recip() as f32
}

/// Text transformer: token embeddings, blocks and a final norm.
#[derive(Debug)]
pub struct TextModel {
    /// Token embedding table, (v, d) for a vocabulary of v tokens.
    pub embedding: Weight,
    /// Factor of the embeddings: √d in Gemma, 1 in Llama.
    pub embedding_scale: f32,
    /// Blocks and the final norm.
    pub stack: Stack,
    /// Rotary embeddings. Blocks refer to them by index.
    pub rotaries: Vec<Rotary>,
    device: Device,
}

/// Sizes that Llama and Gemma blocks share.
struct Sizes {
    hidden: usize,
    intermediate: usize,
    heads: Heads,
    eps: f32,
}

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
        let block = |i| llama_block(layout, &format!("{name}.layers.{i}"), &sizes, mask);
        let mut blocks: Vec<_> = (0..recipe.num_layers).rev().map(block).collect();
        blocks.reverse();
        layout.scope(group, recipe.train_embeddings);
        let shape = [recipe.vocab_size, recipe.hidden_size];
        let embedding = layout.add_table(format!("{name}.embedding.weight"), shape, 1.0);
        Self {
            embedding,
            embedding_scale: 1.0,
            stack: Stack { blocks, norm },
            rotaries: vec![Rotary::new(device, recipe.head_dim, llama_frequencies(recipe))],
            device,
        }
    }

    /// Registers `EmbeddingGemma` layers (as in `google/embeddinggemma-300m`): RMS norms with
    /// factor 1 + w before and after both branches and on queries and keys, tanh GELU,
    /// sliding-window attention in all layers but every n-th, two rotary bases, embeddings times
    /// √d.
    #[must_use]
    pub fn gemma(
        layout: &mut LayoutBuilder,
        name: &str,
        group: Group,
        recipe: &schema::YEncoder,
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
        layout.scope(group, recipe.trainable);
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
            stack: Stack { blocks, norm },
            rotaries: vec![rotary(recipe.rope_theta), rotary(recipe.rope_local_theta)],
            device,
        }
    }

    /// Embeddings (n, d) of the token ids, i32 (n).
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or memory runs out.
    pub fn embed(&self, cx: Context<'_>, parameters: &Parameters, ids: View<'_>) -> Result<Tensor> {
        let mut out = cx.take(&[ids.len(), self.embedding.shape()[1]])?;
        let table = parameters.of(&self.embedding);
        embedding::forward(cx.stream, table, ids, self.embedding_scale, out.view_mut())?;
        Ok(out)
    }

    /// Adds `d` (n, d), the gradient of the embeddings of the token ids (n), to the gradient of the
    /// table.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn embed_backward(
        &self,
        cx: Context<'_>,
        ids: &[i32],
        d: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let d_table = gradients.of(&self.embedding);
        embedding::backward(cx.stream, ids, d, self.embedding_scale, d_table)
    }

    /// Layout of packed sequences for this model's blocks. The tokens of each sequence have
    /// positions 0, 1, …
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn sequence(&self, lengths: Lengths) -> Result<Sequence> {
        let tables =
            self.rotaries.iter().map(|r| r.table(lengths.max_len())).collect::<Result<_>>()?;
        Sequence::new(self.device, lengths, tables)
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

/// Registers the maps of a gated MLP, last map first.
fn gated_maps(
    layout: &mut LayoutBuilder,
    name: &str,
    s: &Sizes,
    activation: gated_mlp::Activation,
) -> Mlp {
    let down = Linear::new(layout, &format!("{name}.mlp.down"), [s.hidden, s.intermediate], false);
    let shape = [2 * s.intermediate, s.hidden];
    let up = Linear::new(layout, &format!("{name}.mlp.gate_up"), shape, false);
    Mlp { up, down, activation: Activation::Gated(activation) }
}

/// Registers the maps of attention, last map first. Returns (qkv, output).
fn attention_maps(layout: &mut LayoutBuilder, name: &str, s: &Sizes) -> (Linear, Linear) {
    let shape = [s.hidden, s.heads.query * s.heads.dim];
    let output = Linear::new(layout, &format!("{name}.attention.output"), shape, false);
    let shape = [s.heads.width(), s.hidden];
    let qkv = Linear::new(layout, &format!("{name}.attention.qkv"), shape, false);
    (qkv, output)
}

fn llama_block(layout: &mut LayoutBuilder, name: &str, s: &Sizes, mask: Mask) -> Block {
    let mlp = gated_maps(layout, name, s, gated_mlp::Activation::Silu);
    let (qkv, output) = attention_maps(layout, name, s);
    let mut norm =
        |which| Norm::rms(layout, &format!("{name}.{which}"), s.hidden, Scale::Plain, s.eps);
    let (mlp_norm, attention_norm) = (norm("mlp_norm"), norm("attention_norm"));
    let scale = root(s.heads.dim).recip();
    let attention = Attention { qkv, output, heads: s.heads, norms: None, mask, scale, table: 0 };
    Block {
        attention_norm,
        attention,
        post_attention_norm: None,
        mlp_norm,
        mlp,
        post_mlp_norm: None,
        gradients_end: layout.trainable_end(),
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
    let attention =
        Attention { qkv, output, heads: s.heads, norms: Some(norms), mask, scale, table };
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
