//! Text transformer: token embeddings and a stack of blocks. Each family registers its own.

mod gemma;
mod llama;
mod qwen3;
mod sonar;
mod towers;

pub use llama::{LlamaSizes, Trained};
pub use sonar::SonarSizes;

use vljepa_kernels::attention::Mask;
use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::Heads;
use vljepa_kernels::{
    Device, KernelError, Lengths, Result, Tensor, View, Write, embedding, gated_mlp, rows,
};

use super::{
    Activation, Attention, Block, HeadNorms, Linear, Mlp, Norm, Plain, Rotary, Sequence, Sinusoids,
    Stack,
};
use crate::parameters::root;
use crate::{Context, Gradients, LayoutBuilder, Parameters, Weight};

/// Text transformer: token embeddings, blocks and a final norm.
#[derive(Debug)]
pub struct TextModel {
    /// Token embedding table, (v, d) for a vocabulary of v tokens.
    pub embedding: Weight,
    /// Factor of the embeddings: √d in Gemma and SONAR, 1 in the other families.
    pub embedding_scale: f32,
    /// Positions that are added to the embeddings.
    pub positions: Positions,
    /// Blocks and the final norm.
    pub stack: Stack,
    /// Rotary embeddings. Blocks refer to them by index.
    pub rotaries: Vec<Rotary>,
    device: Device,
}

/// Positions that are added to the embeddings of tokens.
#[derive(Debug)]
pub enum Positions {
    /// Nothing is added: the blocks rotate queries and keys instead (Llama, Gemma, Qwen3).
    Rotated,
    /// Learned row of each position, (p, d): PE-core, CLIP, `SigLIP` 2.
    Learned(Weight),
    /// Fixed sinusoids: SONAR.
    Sinusoids(Sinusoids),
}

/// Sizes that the gated blocks of all families have.
struct Sizes {
    hidden: usize,
    intermediate: usize,
    heads: Heads,
    eps: f32,
}

impl TextModel {
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

    /// Input (n, d) of the first block for the token ids, i32 (n), of `sequence`: their embeddings
    /// and, in families that add them, their positions.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, a text has more tokens than learned positions, or memory
    /// runs out.
    pub fn input(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        ids: View<'_>,
        sequence: &Sequence,
    ) -> Result<Tensor> {
        let mut x = self.embed(cx, parameters, ids)?;
        let (at, tokens) = (sequence.positions.view(), sequence.positions_end());
        match &self.positions {
            Positions::Rotated => {}
            Positions::Learned(table) if tokens > table.shape()[0] => {
                return Err(KernelError::Shape {
                    operation: "text_model::input",
                    what: "tokens of a text",
                    found: tokens.to_string(),
                    needed: format!("at most {}, as many as learned positions", table.shape()[0]),
                });
            }
            Positions::Learned(table) => {
                rows::gather(cx.stream, parameters.of(table), at, Write::Add, x.view_mut())?;
            }
            Positions::Sinusoids(sinusoids) => {
                let table = sinusoids.table(cx.stream, tokens)?;
                rows::gather(cx.stream, table.view(), at, Write::Add, x.view_mut())?;
            }
        }
        Ok(x)
    }

    /// Adds `d` (n, d), the gradient of the input of the first block for the token ids (n) of
    /// `sequence`, to the gradients of the table and of learned positions.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn input_backward(
        &self,
        cx: Context<'_>,
        ids: &[i32],
        sequence: &Sequence,
        d: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.embed_backward(cx, ids, d, gradients)?;
        match &self.positions {
            Positions::Learned(table) => {
                let at = &sequence.host_positions;
                embedding::backward(cx.stream, at, d, 1.0, gradients.of(table))
            }
            Positions::Rotated | Positions::Sinusoids(_) => Ok(()),
        }
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

    /// Layout of packed tokens that continue sequences: those of sequence i have positions
    /// `starts[i]`, `starts[i]` + 1, …
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn continued(&self, lengths: Lengths, starts: &[i32]) -> Result<Sequence> {
        let ends = lengths.host().windows(2).zip(starts);
        let end = ends.map(|(w, start)| (start + w[1] - w[0]).unsigned_abs()).max().unwrap_or(0);
        let tables = self.rotaries.iter().map(|r| r.table(end as usize)).collect::<Result<_>>()?;
        Sequence::continued(self.device, lengths, starts, tables)
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

/// Registers a block with RMS norms of factor w before both branches and SiLU. With `head_norms`,
/// queries and keys of each head are normalised too (Qwen3).
fn silu_block(
    layout: &mut LayoutBuilder,
    name: &str,
    s: &Sizes,
    mask: Mask,
    head_norms: bool,
) -> Block {
    let mlp = gated_maps(layout, name, s, gated_mlp::Activation::Silu);
    let (qkv, output) = attention_maps(layout, name, s);
    let mut norm =
        |which, width| Norm::rms(layout, &format!("{name}.{which}"), width, Scale::Plain, s.eps);
    let mlp_norm = norm("mlp_norm", s.hidden);
    let norms = head_norms.then(|| HeadNorms {
        query: norm("attention.query_norm", s.heads.dim),
        key: norm("attention.key_norm", s.heads.dim),
    });
    let attention_norm = norm("attention_norm", s.hidden);
    let scale = root(s.heads.dim).recip();
    let attention = Attention { qkv, output, heads: s.heads, norms, mask, scale, table: Some(0) };
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
