//! A tiny VL-JEPA, which the tests of single parts use for the other parts.

use vljepa_recipes::schema::{EmbeddingGemma, Model, Predictor, VJepa2, XEncoder, YEncoder};

/// Returns the keys of a V-JEPA 2 encoder.
pub fn vjepa2(model: &mut Model) -> &mut VJepa2 {
    let XEncoder::Vjepa2(keys) = &mut model.x_encoder else { panic!("not V-JEPA 2") };
    keys
}

/// Returns a model with two layers of width 16 in each part. All parts are trained.
pub fn model() -> Model {
    Model {
        image_size: 32,
        x_encoder: XEncoder::Vjepa2(VJepa2 {
            hidden_size: 16,
            num_layers: 2,
            num_heads: 2,
            intermediate_size: 32,
            trainable: true,
            ..VJepa2::default()
        }),
        predictor: Predictor {
            hidden_size: 16,
            layers: [0, 2],
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 8,
            intermediate_size: 24,
            vocab_size: 32,
            train_embeddings: true,
            text_projection: true,
            ..Predictor::default()
        },
        y_encoder: YEncoder::EmbeddingGemma(EmbeddingGemma {
            hidden_size: 16,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 8,
            intermediate_size: 24,
            full_attention_every: 2,
            effective_window: 2,
            query_pre_attn_scalar: 8.0,
            vocab_size: 32,
            dense_heads: true,
            dense_hidden_size: 24,
            ..EmbeddingGemma::default()
        }),
        embed_dim: 12,
        ..Model::default()
    }
}
