//! Memory of a rank and traffic between ranks, in bytes.

use serde::Serialize;

use super::layers::Layers;
use super::operations::Tokens;
use super::parameters::parameters;
use super::{vlm, y_decoder};
use crate::schema::{LossKind, Model, ModelKind, Precision, Recipe, Recompute};

/// Factor for heap fragmentation: free blocks that are too short for any request. Rehearsals of the
/// recipes find 0 to 7 %.
const FRAGMENTATION: f64 = 1.04;

/// Memory of a rank in bytes when a step needs the most. The context of a GPU, cuBLASLt and NCCL
/// need about 2 GB more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Trained and frozen weights in the recipe's precision.
    pub weights: f64,
    /// f32 master weights (with bf16) and both moments of the trained parameters. A sharded
    /// optimizer counts a rank's share of the moments.
    pub optimizer: f64,
    /// f32 gradients of the trained parameters.
    pub gradients: f64,
    /// Pixels of the rank's samples of this step and of the next one, which is uploaded meanwhile.
    pub frames: f64,
    /// Tensors kept from the forward to the backward pass of one micro-batch, and the workspace of
    /// the layer in the backward pass.
    pub activations: f64,
    /// Visual features of all of the rank's samples, which are kept if micro-batches are embedded
    /// first and differentiated later.
    pub features: f64,
    /// Predicted and target embeddings of all ranks.
    pub embeddings: f64,
}

impl Memory {
    /// Sum of all fields, in bytes.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.weights
            + self.optimizer
            + self.gradients
            + self.frames
            + self.activations
            + self.features
            + self.embeddings
    }
}

/// Bytes that a rank sends in one step; 0 if the run has one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// All-gather of predicted and target embeddings and, with `loss.mask_equal_targets`, of the
    /// targets' hashes.
    pub gathered_embeddings: f64,
    /// All-gather of the two vectors of log-sum-exps.
    pub gathered_statistics: f64,
    /// All-reduce of the f32 statistics of VICReg (means and covariances of both branches) or
    /// SIGReg (16 sums per direction and branch).
    pub reduced_statistics: f64,
    /// Ring all-reduce of the f32 gradients: 2·(R − 1)/R times their size for R ranks.
    pub reduced_gradients: f64,
}

impl Traffic {
    /// Sum of all fields, in bytes.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.gathered_embeddings
            + self.gathered_statistics
            + self.reduced_statistics
            + self.reduced_gradients
    }
}

/// Estimates the memory of a rank that owns `rows` samples of the given token counts and embeds
/// `micro_batch` of them at once.
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
    // A VLM has no embeddings, and takes the mean of visual tokens after its projector.
    let (embed_dim, pooled) = match recipe.model.vlm() {
        Some(_) => (0, recipe.model.x_encoder.pool().pow(2)),
        None => (recipe.model.embed_dim, 1),
    };
    let feature =
        real(tokens.visual * pooled) * real(recipe.model.x_encoder.sizes().hidden_size) * element;
    let keeps_features = micro_batch < rows && !recipe.model.x_encoder.trainable();
    let batch = recipe.stages.iter().map(|stage| stage.batch).max().unwrap_or(0);
    Memory {
        weights: (trained + frozen) * element,
        optimizer: trained * (8.0 / owners + master),
        gradients: trained * 4.0,
        frames: 2.0 * real(rows) * real(pixels(recipe, tokens)),
        activations: FRAGMENTATION
            * real(micro_batch)
            * (activation_values(recipe, tokens, recompute) * element + feature),
        features: if keeps_features { real(rows) * feature } else { 0.0 },
        embeddings: 2.0 * real(batch) * real(embed_dim) * element,
    }
}

/// Returns the bytes of a sample's frames: 3 for each pixel of its tubelets.
pub(crate) fn pixels(recipe: &Recipe, tokens: Tokens) -> usize {
    let Model { x_encoder, image_size, .. } = &recipe.model;
    let tubelets = tokens.visual / x_encoder.tokens_of_tubelet(*image_size).max(1);
    tubelets * x_encoder.sizes().tubelet_size * image_size * image_size * 3
}

/// Sizes of the layers of an encoder or of the predictor, in values per token.
pub(super) struct Stack {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    /// Queries, keys, values and attention output, and queries and keys before their norms if they
    /// have norms.
    pub(super) attention: usize,
    /// Number of norms on the outputs of the attention and the MLP branch.
    pub(super) result_norms: usize,
    /// Hidden values of the MLP before the activation: twice its width if the MLP is gated.
    pub(super) before_activation: usize,
    pub(super) after_activation: usize,
}

impl Stack {
    /// Values outside the MLP that the backward pass of a layer reads: the residual stream and its
    /// norm before both branches, attention, and the outputs of the branches.
    fn outside_mlp(&self) -> usize {
        (4 + self.result_norms) * self.hidden + self.attention
    }

    fn inside_mlp(&self) -> usize {
        self.before_activation + self.after_activation
    }

    /// Values kept from the forward to the backward pass of all layers.
    pub(super) fn kept(&self, recompute: Recompute) -> usize {
        self.layers
            * match recompute {
                Recompute::None => self.outside_mlp() + self.inside_mlp(),
                Recompute::Mlp => self.outside_mlp(),
                Recompute::Block => self.hidden,
            }
    }

    /// Largest workspace of one layer's backward pass, which it needs in the MLP in addition to the
    /// kept values: the recomputed values and the gradients of the residual stream, of the branch's
    /// output if that has a norm, and of the values before the activation.
    pub(super) fn workspace(&self, recompute: Recompute) -> usize {
        let recomputed = match recompute {
            Recompute::None => 0,
            Recompute::Mlp => self.inside_mlp(),
            Recompute::Block => self.outside_mlp() - self.hidden + self.inside_mlp(),
        };
        recomputed + self.hidden + self.result_norms.min(1) * self.hidden + self.before_activation
    }

    /// Input and output of the norm after the last layer.
    pub(super) fn last_norm(&self) -> usize {
        2 * self.hidden
    }
}

/// Returns the number of values that a sample needs when the step needs the most. The candidates
/// are the end of the forward pass and the last layer of each backward pass. Backward passes run in
/// the order Y-encoder, predictor, X-encoder, and each frees the values that it has read.
fn activation_values(recipe: &Recipe, tokens: Tokens, recompute: Recompute) -> f64 {
    let model = &recipe.model;
    if model.kind == ModelKind::YDecoder {
        return y_decoder::activation_values(model, tokens.output, recompute);
    }
    if let Some(l) = model.vlm() {
        return vlm::activation_values(model, l, tokens, recompute);
    }
    let (x_trained, y_trained) = (model.x_encoder.trainable(), model.y_encoder.trainable());
    let predictor = Layers::predictor(model).stack();
    let y_encoder = Layers::y_encoder(model).stack();
    let x_encoder = Layers::x_encoder(&model.x_encoder).stack();
    let in_predictor = tokens.visual + tokens.query;
    let kept_by_x = if x_trained { tokens.visual * x_encoder.kept(recompute) } else { 0 };
    let kept_by_p = kept_by_x + in_predictor * predictor.kept(recompute);
    let after_p = kept_by_p + in_predictor * predictor.last_norm();
    let mut most = after_p.max(kept_by_p + in_predictor * predictor.workspace(recompute));
    if y_trained {
        let kept = after_p + tokens.target * y_encoder.kept(recompute);
        let workspace = y_encoder.last_norm().max(y_encoder.workspace(recompute));
        most = most.max(kept + tokens.target * workspace);
    }
    if x_trained {
        most = most.max(kept_by_x + tokens.visual * x_encoder.workspace(recompute));
    }
    real(most)
}

/// Estimates the bytes that each of `world_size` ranks sends in a step of `batch` samples.
#[must_use]
pub fn traffic(recipe: &Recipe, batch: usize, world_size: usize) -> Traffic {
    if world_size < 2 {
        return Traffic::default();
    }
    let ranks = real(world_size);
    // In a ring each rank forwards the parts of all ranks but one.
    let gathered = |bytes: f64| bytes * (ranks - 1.0) / ranks;
    let hash = if recipe.loss.mask_equal_targets { 8.0 } else { 0.0 };
    let row = 2.0 * real(recipe.model.embed_dim) * element_bytes(recipe.precision) + hash;
    let gradients = real(parameters(&recipe.model).trainable) * 4.0;
    let e = real(recipe.model.embed_dim);
    // Rows that are gathered, and numbers that are summed. The cross-entropy of tokens needs
    // nothing of other ranks.
    let (rows, sums) = match recipe.loss.kind {
        _ if !recipe.model.predicts_embeddings() => (0, 0.0),
        LossKind::InfoNce => (batch, 0.0),
        LossKind::Cosine | LossKind::L1 | LossKind::L2 => (0, 0.0),
        LossKind::VicReg => (0, 2.0 * (e + e * e)),
        LossKind::SigReg => (0, 32.0 * real(recipe.loss.sig_reg.directions)),
    };
    Traffic {
        gathered_embeddings: gathered(real(rows) * row),
        gathered_statistics: gathered(real(rows) * 8.0),
        reduced_statistics: 2.0 * gathered(4.0 * sums),
        reduced_gradients: 2.0 * gathered(gradients),
    }
}

pub(crate) fn element_bytes(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
    }
}

/// Converts a count to a floating-point number. Counts stay far below 2⁵³, so the result is exact.
pub(crate) fn real(count: impl TryInto<u64>) -> f64 {
    let count = count.try_into().unwrap_or(u64::MAX);
    #[expect(clippy::cast_precision_loss, reason = "an estimate: 53 bits are plenty")]
    let value = count as f64;
    value
}

#[cfg(test)]
mod tests {
    use super::{FRAGMENTATION, memory, real, traffic};
    use crate::cost::Tokens;
    use crate::load;
    use crate::schema::{LossKind, Recompute};

    fn pretrain() -> crate::Recipe {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
        load(&path, &[]).unwrap().recipe
    }

    #[test]
    fn the_paper_s_batch_gathers_75_megabytes_a_side() {
        let recipe = pretrain();
        let sent = traffic(&recipe, 24_576, 192);
        // 24,576 × 1,536 × 2 bytes = 75.5 MB, for predictions and for targets; a rank sends 191/192
        // of it.
        let side = 24_576.0 * 1_536.0 * 2.0;
        assert!((sent.gathered_embeddings / (2.0 * side) - 191.0 / 192.0).abs() < 1e-9);
        assert!((sent.gathered_statistics - 24_576.0 * 8.0 * 191.0 / 192.0).abs() < 1e-6);
        assert_eq!(traffic(&recipe, 24_576, 1).total().to_bits(), 0.0_f64.to_bits());
        // VICReg sums two means and two matrices of covariances, 18.9 MB; SIGReg 131 kB.
        let reduced = |kind| {
            let mut recipe = recipe.clone();
            recipe.loss.kind = kind;
            let sent = traffic(&recipe, 24_576, 192);
            assert!(sent.gathered_embeddings + sent.gathered_statistics < 1e-9);
            sent.reduced_statistics / (2.0 * 191.0 / 192.0)
        };
        assert!((reduced(LossKind::VicReg) - 8.0 * (1_536.0 + 1_536.0 * 1_536.0)).abs() < 1.0);
        assert!((reduced(LossKind::SigReg) - 2.0 * 16.0 * 1_024.0 * 4.0).abs() < 1.0);
        assert!(reduced(LossKind::L2).abs() < 1e-9);
    }

    #[test]
    fn optimizer_state_is_sixteen_bytes_a_trained_parameter_and_two_for_the_copy() {
        let recipe = pretrain();
        let tokens = Tokens { visual: 256, target: 64, ..Tokens::default() };
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
        let tokens = Tokens { visual: 256, ..Tokens::default() };
        let [everything, mlp, block] = [Recompute::None, Recompute::Mlp, Recompute::Block]
            .map(|recompute| memory(&recipe, tokens, 1, 1, recompute).activations);
        let outside = 4.0 * 2048.0 + 2.0 * 40.0 * 64.0;
        let inside = 3.0 * 8192.0;
        // Seven of eight layers keep no hidden values of their MLP, in bf16.
        assert!((everything - mlp - FRAGMENTATION * 256.0 * 2.0 * 7.0 * inside).abs() < 1.0);
        // Seven layers keep only their input of 2,048 values.
        assert!((mlp - block - FRAGMENTATION * 256.0 * 2.0 * 7.0 * (outside - 2048.0)).abs() < 1.0);
    }

    #[test]
    fn counts_survive_as_reals() {
        assert!((real(24_576_usize) - 24_576.0).abs() < f64::EPSILON);
        assert!((real(7_u64) - 7.0).abs() < f64::EPSILON);
    }
}
