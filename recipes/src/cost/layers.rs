//! Transformer layers of a network: operations, values in memory and launches of a pass.

use super::memory::{Stack, real};
use crate::schema::{LanguageModel, LlamaDecoder, Model, TextLayers, XEncoder};

/// Work of one pass through a network for one sample. Launches do not depend on the number of
/// samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pass {
    /// Operations of matrix products.
    pub products: f64,
    /// Operations of attention, with the length of the sequences. A backward pass counts twice the
    /// forward pass.
    pub attention: Vec<(usize, f64)>,
    /// Values that memory-bound kernels read or write: norms, activations, rotations, copies.
    pub values: f64,
    /// Kernels and matrix products that the host issues for a micro-batch.
    pub launches: f64,
}

impl Pass {
    /// Operations of products and attention.
    #[must_use]
    pub fn operations(&self) -> f64 {
        self.products + self.attention.iter().map(|(_, operations)| operations).sum::<f64>()
    }

    /// Adds another pass.
    pub(super) fn plus(mut self, other: &Self) -> Self {
        self.products += other.products;
        self.attention.extend(&other.attention);
        self.values += other.values;
        self.launches += other.launches;
        self
    }

    /// Multiplies everything by `factor`.
    pub(super) fn times(mut self, factor: f64) -> Self {
        self.products *= factor;
        self.attention.iter_mut().for_each(|(_, operations)| *operations *= factor);
        self.values *= factor;
        self.launches *= factor;
        self
    }

    /// A product of `rows` vectors with a matrix of `values` values.
    pub(super) fn of_product(rows: usize, values: usize) -> Self {
        let launches = if rows * values > 0 { 1.0 } else { 0.0 };
        Self { products: product(rows, values), launches, ..Self::default() }
    }
}

/// Operations of a product of `rows` vectors with a matrix of so many values.
pub(super) fn product(rows: usize, values: usize) -> f64 {
    2.0 * real(rows) * real(values)
}

/// Layers of a transformer. Sizes are numbers of elements of a token.
#[derive(Debug, Clone, Copy)]
pub struct Layers {
    /// Number of layers.
    pub count: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the queries of all heads.
    pub query: usize,
    /// Width of the keys of all heads.
    pub key: usize,
    /// Width of a head.
    pub head: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate: usize,
    /// Whether the MLP multiplies with a gate.
    pub gated: bool,
    /// Whether queries and keys have norms. They are then rotated by kernels of their own.
    pub head_norms: bool,
    /// Number of norms on the results of attention and MLP.
    pub result_norms: usize,
}

impl Layers {
    /// Layers of the X-encoder.
    #[must_use]
    pub fn x_encoder(encoder: &XEncoder) -> Self {
        let x = encoder.sizes();
        Self {
            count: x.num_layers,
            hidden: x.hidden_size,
            query: x.hidden_size,
            key: x.hidden_size,
            head: x.hidden_size / x.num_heads.max(1),
            intermediate: x.intermediate_size,
            gated: false,
            head_norms: false,
            result_norms: 0,
        }
    }

    /// Layers of the predictor.
    #[must_use]
    pub fn predictor(model: &Model) -> Self {
        let p = &model.predictor;
        let heads = [p.num_heads, p.num_kv_heads];
        Self::llama(p.num_layers(), p.hidden_size, heads, p.head_dim, p.intermediate_size)
    }

    /// Layers of the Y-encoder.
    #[must_use]
    pub fn y_encoder(model: &Model) -> Self {
        let y = model.y_encoder.sizes();
        let (gated, result_norms) = match y.layers {
            TextLayers::Gated { result_norms } => (true, result_norms),
            TextLayers::Plain => (false, 0),
        };
        Self {
            count: y.num_layers,
            hidden: y.hidden_size,
            query: y.num_heads * y.head_dim,
            key: y.num_kv_heads * y.head_dim,
            head: y.head_dim,
            intermediate: y.intermediate_size,
            gated,
            head_norms: gated,
            result_norms,
        }
    }

    /// Layers of a Y-decoder of Llama.
    #[must_use]
    pub fn llama_decoder(d: &LlamaDecoder) -> Self {
        let heads = [d.num_heads, d.num_kv_heads];
        Self::llama(d.num_layers, d.hidden_size, heads, d.head_dim, d.intermediate_size)
    }

    /// Layers of a VLM's language model.
    #[must_use]
    pub fn language_model(l: &LanguageModel) -> Self {
        let heads = [l.num_heads, l.num_kv_heads];
        Self::llama(l.num_layers, l.hidden_size, heads, l.head_dim, l.intermediate_size)
    }

    /// Layers of Llama, with the numbers of heads of queries and of keys.
    fn llama(
        count: usize,
        hidden: usize,
        [query_heads, key_heads]: [usize; 2],
        head: usize,
        intermediate: usize,
    ) -> Self {
        Self {
            count,
            hidden,
            query: query_heads * head,
            key: key_heads * head,
            head,
            intermediate,
            gated: true,
            head_norms: false,
            result_norms: 0,
        }
    }

    /// Maps into the hidden layer of an MLP.
    fn maps_up(&self) -> usize {
        if self.gated { 2 } else { 1 }
    }

    /// Width of the MLP's hidden layer before the activation.
    #[must_use]
    pub fn before_activation(&self) -> usize {
        self.maps_up() * self.intermediate
    }

    /// Inputs and outputs of the maps of a layer: qkv, output, up and down.
    #[must_use]
    pub fn maps(&self) -> [[usize; 2]; 4] {
        [
            [self.hidden, self.query + 2 * self.key],
            [self.query, self.hidden],
            [self.hidden, self.before_activation()],
            [self.intermediate, self.hidden],
        ]
    }

    /// Matrices of a layer, in values.
    pub(super) fn matrices(&self) -> usize {
        self.maps().iter().map(|[inputs, outputs]| inputs * outputs).sum()
    }

    /// What the layers keep for a backward pass.
    pub(super) fn stack(&self) -> Stack {
        let heads = self.query + self.key;
        Stack {
            layers: self.count,
            hidden: self.hidden,
            attention: 2 * heads + if self.head_norms { heads } else { 0 },
            result_norms: self.result_norms,
            before_activation: self.before_activation(),
            after_activation: self.intermediate,
        }
    }

    fn attention(&self, sequences: usize, length: usize) -> f64 {
        real(self.count * sequences) * 4.0 * real(length) * real(length) * real(self.query)
    }

    /// Forward pass of `sequences` sequences of `length` tokens.
    pub(super) fn forward(&self, sequences: usize, length: usize) -> Pass {
        let tokens = sequences * length;
        if tokens == 0 {
            return Pass::default();
        }
        let heads = self.query + self.key;
        let norms = 4 * self.hidden + 5 * self.hidden * self.result_norms;
        let of_heads = if self.head_norms { 4 * heads } else { 0 };
        let split = 2 * (heads + self.key);
        let activation = (self.maps_up() + 1) * self.intermediate;
        // Two norms, products with qkv, output, up and down, split, attention, activation.
        let launches = 9 + if self.head_norms { 4 } else { 0 } + 2 * self.result_norms;
        Pass {
            products: product(tokens, self.count * self.matrices()),
            attention: vec![(length, self.attention(sequences, length))],
            values: real(tokens * self.count) * real(norms + of_heads + split + activation),
            launches: real(self.count * launches),
        }
    }

    /// Backward pass, which also computes the gradients of the weights of `trained` layers.
    pub(super) fn backward(&self, sequences: usize, length: usize, trained: usize) -> Pass {
        let tokens = sequences * length;
        if tokens == 0 {
            return Pass::default();
        }
        let heads = self.query + self.key;
        let norms = 8 * self.hidden + 3 * self.hidden * self.result_norms;
        let of_heads = if self.head_norms { 5 * heads } else { 0 };
        // The gradient of qkv is joined from three parts, and attention reads its output and the
        // gradient of it.
        let joined = 2 * (heads + self.key) + 2 * self.query;
        let activation = (2 * self.maps_up() + 1) * self.intermediate;
        // The gradient of each norm's weight has a launch of its own.
        let of_norms = 2 + 2 * self.result_norms + if self.head_norms { 2 } else { 0 };
        let launches = 11 + if self.head_norms { 6 } else { 0 } + of_norms;
        Pass {
            products: product(tokens, (self.count + trained) * self.matrices()),
            attention: vec![(length, 2.0 * self.attention(sequences, length))],
            values: real(tokens * self.count) * real(norms + of_heads + joined + activation),
            launches: real(self.count * launches + 4 * trained),
        }
    }

    /// What the backward pass computes again to save memory: the maps into the hidden layer and
    /// the activation (`mlp`).
    pub(super) fn mlp_again(&self, sequences: usize, length: usize) -> Pass {
        let tokens = sequences * length;
        if tokens == 0 {
            return Pass::default();
        }
        let up = self.count * self.maps_up() * self.hidden * self.intermediate;
        let activation = (self.maps_up() + 1) * self.intermediate;
        Pass {
            products: product(tokens, up),
            attention: Vec::new(),
            values: real(tokens * self.count) * real(activation),
            launches: real(2 * self.count),
        }
    }
}
