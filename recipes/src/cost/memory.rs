//! Bytes on a rank and between ranks.

use super::operations::Tokens;
use super::parameters::parameters;
use crate::schema::{Precision, Recipe, Recompute};

/// Bytes of the fullest rank. Weights, optimizer and gradients are exact up to alignment; activations are the tensors that backward
/// reads, which is the bulk, and leave workspaces and batches waiting out: plan a tenth on top.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// Weights in the precision that computes, trained and frozen.
    pub weights: f64,
    /// f32 master (with bf16) and both moments of what is trained; where the optimizer is sharded, a rank's share of the moments.
    pub optimizer: f64,
    /// f32 gradients of what is trained.
    pub gradients: f64,
    /// Tensors kept from forward to backward for one micro-batch.
    pub activations: f64,
    /// Visual features kept for the whole share of the rank, where micro-batches are embedded first.
    pub features: f64,
    /// Embeddings of all ranks.
    pub embeddings: f64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.weights
            + self.optimizer
            + self.gradients
            + self.activations
            + self.features
            + self.embeddings
    }
}

/// Bytes that a rank sends in one step. 0 for one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Gathering predictions, targets and, where equal targets are masked, their hashes.
    pub gathered_embeddings: f64,
    /// Gathering the two vectors of log-sum-exps.
    pub gathered_statistics: f64,
    /// Summing f32 gradients: 2·(R − 1)/R of them, as a ring does.
    pub reduced_gradients: f64,
}

impl Traffic {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.gathered_embeddings + self.gathered_statistics + self.reduced_gradients
    }
}

/// Bytes of a rank that owns `rows` samples and embeds `micro_batch` of them at once.
#[must_use]
pub fn memory(
    recipe: &Recipe,
    tokens: Tokens,
    micro_batch: usize,
    rows: usize,
    recompute: Recompute,
) -> Memory {
    let counts = parameters(&recipe.model);
    let element = element_bytes(recipe.precision);
    let (trained, frozen) = (real(counts.trainable), real(counts.frozen()));
    let master = match recipe.precision {
        Precision::F32 => 0.0,
        Precision::Bf16 => 4.0,
    };
    let owners =
        if recipe.optimizer.shard { real(recipe.cluster.world_size().max(1)) } else { 1.0 };
    let feature = real(tokens.visual) * real(recipe.model.x_encoder.hidden_size) * element;
    let keeps_features = micro_batch < rows && !recipe.model.x_encoder.trainable;
    let batch = recipe.stages.iter().map(|stage| stage.batch).max().unwrap_or(0);
    Memory {
        weights: (trained + frozen) * element,
        optimizer: trained * (8.0 / owners + master),
        gradients: trained * 4.0,
        activations: real(micro_batch)
            * (saved_values(recipe, tokens, recompute) * element + feature),
        features: if keeps_features { real(rows) * feature } else { 0.0 },
        embeddings: 2.0 * real(batch) * real(recipe.model.embed_dim) * element,
    }
}

/// Values that backward reads, per sample: of each attention block the input, its norm, queries, keys, values and the result; of each
/// MLP the input, its norm and the hidden values (three of them for a gated one, two for a plain one). What is computed again is
/// there for one layer at a time.
fn saved_values(recipe: &Recipe, tokens: Tokens, recompute: Recompute) -> f64 {
    let model = &recipe.model;
    let (x, p, y) = (&model.x_encoder, &model.predictor, &model.y_encoder);
    // Values of a token in `layers` layers: of each its attention block, the input and norm of its MLP, and the MLP's inside.
    let stack = |layers: usize, hidden: usize, attention: usize, norms: usize, inside: usize| {
        let outside = 2 * hidden + attention + (2 + norms) * hidden;
        let last = 2 * hidden;
        real(match recompute {
            Recompute::None => layers * (outside + inside) + last,
            Recompute::Mlp => layers * outside + inside + last,
            Recompute::Block => layers * hidden + outside + inside + last,
        })
    };
    let heads = |query: usize, key_value: usize, dim: usize| 2 * (query + key_value) * dim;
    let mut values = real(tokens.visual + tokens.query)
        * stack(
            p.num_layers,
            p.hidden_size,
            heads(p.num_heads, p.num_kv_heads, p.head_dim),
            0,
            3 * p.intermediate_size,
        );
    if y.trainable {
        // Two more norms a layer than Llama has.
        let attention = heads(y.num_heads, y.num_kv_heads, y.head_dim);
        values += real(tokens.target)
            * stack(y.num_layers, y.hidden_size, attention, 2, 3 * y.intermediate_size);
    }
    if x.trainable {
        let attention = 4 * x.hidden_size;
        values += real(tokens.visual)
            * stack(x.num_layers, x.hidden_size, attention, 0, 2 * x.intermediate_size);
    }
    values
}

/// Bytes that each of `world_size` ranks sends in a step of `batch` samples.
#[must_use]
pub fn traffic(recipe: &Recipe, batch: usize, world_size: usize) -> Traffic {
    if world_size < 2 {
        return Traffic::default();
    }
    let ranks = real(world_size);
    // In a ring every rank passes on what the others own.
    let gathered = |bytes: f64| bytes * (ranks - 1.0) / ranks;
    let hash = if recipe.loss.mask_equal_targets { 8.0 } else { 0.0 };
    let row = 2.0 * real(recipe.model.embed_dim) * element_bytes(recipe.precision) + hash;
    let gradients = real(parameters(&recipe.model).trainable) * 4.0;
    Traffic {
        gathered_embeddings: gathered(real(batch) * row),
        gathered_statistics: gathered(real(batch) * 8.0),
        reduced_gradients: 2.0 * gathered(gradients),
    }
}

fn element_bytes(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
    }
}

/// A count as a real number. Counts stay far below 2⁵³.
pub(super) fn real(count: impl TryInto<u64>) -> f64 {
    let count = count.try_into().unwrap_or(u64::MAX);
    #[expect(clippy::cast_precision_loss, reason = "an estimate: 53 bits are plenty")]
    let value = count as f64;
    value
}

#[cfg(test)]
mod tests {
    use super::{memory, real, traffic};
    use crate::cost::Tokens;
    use crate::load;
    use crate::schema::Recompute;

    fn pretrain() -> crate::Recipe {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
        load(&path, &[]).unwrap().recipe
    }

    #[test]
    fn the_paper_s_batch_gathers_75_megabytes_a_side() {
        let recipe = pretrain();
        let sent = traffic(&recipe, 24_576, 192);
        // 24,576 × 1,536 × 2 bytes = 75.5 MB, for predictions and for targets; 191/192 of it travels.
        let side = 24_576.0 * 1_536.0 * 2.0;
        assert!((sent.gathered_embeddings / (2.0 * side) - 191.0 / 192.0).abs() < 1e-9);
        assert!((sent.gathered_statistics - 24_576.0 * 8.0 * 191.0 / 192.0).abs() < 1e-6);
        assert_eq!(traffic(&recipe, 24_576, 1).total().to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn optimizer_state_is_sixteen_bytes_a_trained_parameter_and_two_for_the_copy() {
        let recipe = pretrain();
        let tokens = Tokens { visual: 256, query: 0, target: 64 };
        let found = memory(&recipe, tokens, 128, 128, Recompute::None);
        let trained = 795_864_833.0;
        assert!((found.optimizer - trained * 12.0).abs() < 1.0);
        let mut sharded = recipe.clone();
        sharded.optimizer.shard = true;
        let share = memory(&sharded, tokens, 128, 128, Recompute::None).optimizer;
        assert!((share - trained * (4.0 + 8.0 / 192.0)).abs() < 1.0, "{share}");
        assert!((found.gradients - trained * 4.0).abs() < 1.0);
        assert!(found.features.abs() < 1.0);
        let halved = memory(&recipe, tokens, 64, 128, Recompute::None);
        assert!((halved.activations * 2.0 - found.activations).abs() < 1.0);
        assert!((halved.features - 128.0 * 256.0 * 1024.0 * 2.0).abs() < 1.0);
    }

    #[test]
    fn what_is_computed_again_is_kept_for_one_layer() {
        let recipe = pretrain();
        let tokens = Tokens { visual: 256, query: 0, target: 0 };
        let [everything, mlp, block] = [Recompute::None, Recompute::Mlp, Recompute::Block]
            .map(|recompute| memory(&recipe, tokens, 1, 1, recompute).activations);
        // Seven of eight layers' insides of 3 × 8,192 values, in bf16.
        assert!((everything - mlp - 7.0 * 256.0 * 3.0 * 8192.0 * 2.0).abs() < 1.0);
        // Of seven layers all but the input of 2,048.
        let outside = 4.0 * 2048.0 + 2.0 * 40.0 * 64.0;
        let inside = 3.0 * 8192.0;
        let kept = 8.0 * 2048.0 + outside + inside;
        assert!((everything - block - 256.0 * 2.0 * (8.0 * (outside + inside) - kept)).abs() < 1.0);
    }

    #[test]
    fn counts_survive_as_reals() {
        assert!((real(24_576_usize) - 24_576.0).abs() < f64::EPSILON);
        assert!((real(7_u64) - 7.0).abs() < f64::EPSILON);
    }
}
