//! Parameters, operations and memory of a Y-decoder. The encoders before it are frozen and keep
//! nothing for a backward pass.

use super::memory::{Stack, real};
use super::operations::Operations;
use super::parameters::{attention, plain_layer};
use crate::schema::{LlamaDecoder, Model, Recompute, YDecoder};

/// Numbers of all parameters and of the trained ones.
pub(super) fn parameters(model: &Model, decoder: &YDecoder) -> [usize; 2] {
    match decoder {
        YDecoder::Llama(d) => {
            let prefix = (model.embed_dim + 1) * d.prefix_tokens * d.hidden_size;
            let layers = d.num_layers * (layer(d) + 2 * d.hidden_size) + d.hidden_size;
            let all = prefix + layers + d.vocab_size * d.hidden_size;
            [all, if d.train_layers { all } else { prefix }]
        }
        YDecoder::Sonar(d) => {
            let width = d.hidden_size;
            // Two maps of the embedding in each layer: attention to one vector needs no others.
            let memory = 2 * (width * width + width);
            let layers = d.num_layers * (plain_layer(width, d.intermediate_size) + memory);
            [layers + 2 * width + d.vocab_size * width, 0]
        }
    }
}

/// Matrices of a layer.
fn layer(d: &LlamaDecoder) -> usize {
    attention(d.hidden_size, d.num_heads, d.num_kv_heads, d.head_dim)
        + 3 * d.hidden_size * d.intermediate_size
}

/// Operations of the decoder for a text of `output` tokens, its end included.
pub(super) fn operations(model: &Model, output: usize, recompute: Recompute) -> Operations {
    let Some(YDecoder::Llama(d)) = model.learning_decoder() else { return Operations::default() };
    let product = |rows: usize, values: usize| 2.0 * real(rows) * real(values);
    // The last token is predicted and not read.
    let rows = d.prefix_tokens + output.saturating_sub(1);
    let scores = 4.0 * real(rows) * real(rows) * real(d.num_heads * d.head_dim);
    let layers = real(d.num_layers) * (product(rows, layer(d)) + scores);
    let logits = product(output, d.vocab_size * d.hidden_size);
    let prefix = product(1, model.embed_dim * d.prefix_tokens * d.hidden_size);
    let forward = layers + logits + prefix;
    // The gradient passes through frozen layers to the prefix, but their weights need none.
    let backward = if d.train_layers { 2.0 * forward } else { layers + logits + 2.0 * prefix };
    let recompute = match recompute {
        Recompute::None => 0.0,
        Recompute::Mlp => product(rows, d.num_layers * 2 * d.hidden_size * d.intermediate_size),
        Recompute::Block => layers,
    };
    Operations { decoder_forward: forward, backward, recompute, ..Operations::default() }
}

/// Values that a text of `output` tokens needs when the step needs the most.
pub(super) fn activation_values(model: &Model, output: usize, recompute: Recompute) -> f64 {
    let Some(YDecoder::Llama(d)) = model.learning_decoder() else { return 0.0 };
    let stack = Stack {
        layers: d.num_layers,
        hidden: d.hidden_size,
        attention: 2 * (d.num_heads + d.num_kv_heads) * d.head_dim,
        result_norms: 0,
        before_activation: 2 * d.intermediate_size,
        after_activation: d.intermediate_size,
    };
    let rows = d.prefix_tokens + output.saturating_sub(1);
    real(rows * (stack.kept(recompute) + stack.workspace(recompute).max(stack.last_norm())))
}
