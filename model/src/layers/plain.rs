//! Stack of plain transformer blocks: layer norms before both branches, biases everywhere, MLPs
//! without a gate.

use vljepa_kernels::activation;
use vljepa_kernels::attention::Mask;
use vljepa_kernels::rope::Heads;

use super::{Activation, Attention, Block, Linear, Mlp, Norm, Stack};
use crate::LayoutBuilder;
use crate::parameters::root;

/// What distinguishes the plain blocks of the families.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain {
    /// Number of elements of a token, a multiple of `heads`.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of heads.
    pub heads: usize,
    /// Number of elements of the MLP's hidden layer.
    pub intermediate: usize,
    /// Value added to the variance in layer norms.
    pub eps: f32,
    /// Activation of the MLP.
    pub activation: activation::Activation,
    /// Keys that each query attends to.
    pub mask: Mask,
    /// Whether queries and keys are rotated.
    pub rotates: bool,
}

impl Stack {
    /// Registers plain blocks and the final norm under `name`, last first.
    pub(crate) fn plain(layout: &mut LayoutBuilder, name: &str, of: Plain) -> Self {
        let norm = Norm::layer(layout, &format!("{name}.norm"), of.hidden, of.eps);
        let block = |i| block(layout, &format!("{name}.layers.{i}"), of);
        let mut blocks: Vec<_> = (0..of.layers).rev().map(block).collect();
        blocks.reverse();
        Self { blocks, norm }
    }
}

fn block(layout: &mut LayoutBuilder, name: &str, of: Plain) -> Block {
    let (d, f) = (of.hidden, of.intermediate);
    let heads = Heads { query: of.heads, key_value: of.heads, dim: d / of.heads };
    let mut linear =
        |which: &str, shape| Linear::new(layout, &format!("{name}.{which}"), shape, true);
    let down = linear("mlp.fc2", [d, f]);
    let up = linear("mlp.fc1", [f, d]);
    let output = linear("attention.output", [d, d]);
    let qkv = linear("attention.qkv", [3 * d, d]);
    let mut norm = |which: &str| Norm::layer(layout, &format!("{name}.{which}"), d, of.eps);
    let (mlp_norm, attention_norm) = (norm("mlp_norm"), norm("attention_norm"));
    let scale = root(heads.dim).recip();
    let table = of.rotates.then_some(0);
    let attention = Attention { qkv, output, heads, norms: None, mask: of.mask, scale, table };
    Block {
        attention_norm,
        attention,
        post_attention_norm: None,
        mlp_norm,
        mlp: Mlp { up, down, activation: Activation::Plain(of.activation) },
        post_mlp_norm: None,
        gradients_end: layout.trainable_end(),
    }
}
