//! Parameters, operations and memory of a Y-decoder. The encoders before it are frozen and keep
//! nothing for a backward pass.

use super::layers::{Layers, Pass};
use super::memory::real;
use super::networks::{Network, NetworkName};
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

/// The decoder and its work for a text of `output` tokens, its end included; `None` without one
/// that learns.
pub(super) fn network(
    model: &Model,
    output: usize,
    recompute: Recompute,
    trained: usize,
) -> Option<Network> {
    let Some(YDecoder::Llama(d)) = model.learning_decoder() else { return None };
    // The last token is predicted and not read.
    let rows = d.prefix_tokens + output.saturating_sub(1);
    let layers = Layers::llama_decoder(d);
    let prefix = Pass::of_product(1, model.embed_dim * d.prefix_tokens * d.hidden_size);
    let logits = Pass {
        // Logits are read twice by the cross-entropy.
        values: 3.0 * real(output * d.vocab_size) + real(4 * rows * d.hidden_size),
        launches: 6.0,
        ..Pass::of_product(output, d.vocab_size * d.hidden_size)
    };
    let body = layers.forward(1, rows);
    // The gradient passes through frozen layers to the prefix, but their weights need none.
    let trained_layers = if d.train_layers { layers.count } else { 0 };
    let of_logits = if d.train_layers { 2.0 } else { 1.0 };
    let backward = layers
        .backward(1, rows, trained_layers)
        .plus(&logits.clone().times(of_logits))
        .plus(&prefix.clone().times(2.0));
    let again = match recompute {
        Recompute::None => Pass::default(),
        Recompute::Mlp => layers.mlp_again(1, rows),
        Recompute::Block => body.clone(),
    };
    Some(Network {
        name: NetworkName::YDecoder,
        width: d.hidden_size,
        tokens: rows,
        forward: body.plus(&logits).plus(&prefix),
        again,
        backward,
        trained,
    })
}

/// Values that a text of `output` tokens needs when the step needs the most.
pub(super) fn activation_values(model: &Model, output: usize, recompute: Recompute) -> f64 {
    let Some(YDecoder::Llama(d)) = model.learning_decoder() else { return 0.0 };
    let stack = Layers::llama_decoder(d).stack();
    let rows = d.prefix_tokens + output.saturating_sub(1);
    real(rows * (stack.kept(recompute) + stack.workspace(recompute).max(stack.last_norm())))
}
