//! `config.json` of each part, for the classes of transformers 4.57.

use serde_json::{Value, json};
use vljepa_recipes::schema::{self, PredictorFamily, XEncoder, YEncoder};

/// Base of the rotary frequencies of `VJEPA2Model`, which no key of its configuration changes.
const VJEPA2_THETA: f64 = 10_000.0;

/// Epsilon of the layer norms of `M2M100Encoder`, which no key of its configuration changes.
const M2M100_EPS: f32 = 1e-5;

/// Id of the padding token of NLLB-200, on which the first position of `M2M100Encoder` depends.
const M2M100_PAD: usize = 1;

/// Configuration of the X-encoder, for clips of `frames` frames. The error says why transformers
/// cannot run it.
pub(super) fn x_encoder(model: &schema::Model, frames: usize) -> Result<Value, String> {
    let sizes = model.x_encoder.sizes();
    #[expect(clippy::cast_precision_loss, reason = "widths are below 2^53")]
    let mlp_ratio = sizes.intermediate_size as f64 / sizes.hidden_size as f64;
    let image = |model_type, class, activation, eps| {
        json!({
            "model_type": model_type,
            "architectures": [class],
            "image_size": model.image_size,
            "patch_size": sizes.patch_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "hidden_act": activation,
            "layer_norm_eps": decimal(eps),
            "dtype": "float32",
        })
    };
    match &model.x_encoder {
        XEncoder::Vjepa2(keys) if keys.rope_theta != VJEPA2_THETA => Err(format!(
            "the X-encoder has model.x_encoder.rope_theta {}, but VJEPA2Model of transformers \
             always has {VJEPA2_THETA}",
            keys.rope_theta
        )),
        // `VJEPA2Model` always has a predictor of its own. The smallest has no layers.
        XEncoder::Vjepa2(keys) => Ok(json!({
            "model_type": "vjepa2",
            "architectures": ["VJEPA2Model"],
            "crop_size": model.image_size,
            "frames_per_clip": frames,
            "patch_size": sizes.patch_size,
            "tubelet_size": sizes.tubelet_size,
            "hidden_size": sizes.hidden_size,
            "mlp_ratio": mlp_ratio,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "hidden_act": "gelu",
            "layer_norm_eps": decimal(keys.layer_norm_eps),
            "pred_hidden_size": 1,
            "pred_num_attention_heads": 1,
            "pred_num_hidden_layers": 0,
            "pred_num_mask_tokens": 1,
            "dtype": "float32",
        })),
        XEncoder::Vjepa2_1(_) => Err(missing("X-encoder is V-JEPA 2.1")),
        XEncoder::Pe(_) => Err(missing("X-encoder is PE-core's vision tower")),
        XEncoder::ClipResnet(_) => Err(missing("X-encoder is CLIP's ResNet")),
        XEncoder::Siglip2(keys) => {
            let mut config = image(
                "siglip_vision_model",
                "SiglipVisionModel",
                "gelu_pytorch_tanh",
                keys.layer_norm_eps,
            );
            config["vision_use_head"] = false.into();
            Ok(config)
        }
        XEncoder::Clip(keys) => {
            let activation = if keys.quick_gelu { "quick_gelu" } else { "gelu" };
            Ok(image("clip_vision_model", "CLIPVisionModel", activation, keys.layer_norm_eps))
        }
    }
}

/// Configuration of the predictor's layers, which are counted from 0.
pub(super) fn predictor(model: &schema::Model) -> Value {
    let keys = &model.predictor;
    let PredictorFamily::Llama = keys.family;
    let scaling = keys.rope_scaling.as_ref().map(|scaling| {
        json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": whole(scaling.original_max_position_embeddings),
        })
    });
    json!({
        "model_type": "llama",
        "architectures": ["LlamaModel"],
        "hidden_size": keys.hidden_size,
        "intermediate_size": keys.intermediate_size,
        "num_hidden_layers": keys.num_layers(),
        "num_attention_heads": keys.num_heads,
        "num_key_value_heads": keys.num_kv_heads,
        "head_dim": keys.head_dim,
        "rms_norm_eps": decimal(keys.rms_norm_eps),
        "rope_theta": keys.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": 131_072,
        "vocab_size": keys.vocab_size,
        "hidden_act": "silu",
        "bos_token_id": null,
        "eos_token_id": null,
        "use_cache": false,
        "dtype": "float32",
    })
}

/// Configuration of the Y-encoder. The error says why transformers cannot run it.
pub(super) fn y_encoder(model: &schema::Model) -> Result<Value, String> {
    match &model.y_encoder {
        YEncoder::EmbeddingGemma(keys) => Ok(gemma(keys)),
        YEncoder::Qwen3Embedding(keys) => Ok(json!({
            "model_type": "qwen3",
            "architectures": ["Qwen3Model"],
            "hidden_size": keys.hidden_size,
            "intermediate_size": keys.intermediate_size,
            "num_hidden_layers": keys.num_layers,
            "num_attention_heads": keys.num_heads,
            "num_key_value_heads": keys.num_kv_heads,
            "head_dim": keys.head_dim,
            "rms_norm_eps": decimal(keys.rms_norm_eps),
            "rope_theta": keys.rope_theta,
            "max_position_embeddings": 32_768,
            "vocab_size": keys.vocab_size,
            "hidden_act": "silu",
            "use_cache": false,
            "dtype": "float32",
        })),
        YEncoder::Sonar(keys) if keys.layer_norm_eps != M2M100_EPS => Err(format!(
            "the Y-encoder has model.y_encoder.layer_norm_eps {}, but M2M100Encoder of \
             transformers always has {M2M100_EPS}",
            keys.layer_norm_eps
        )),
        YEncoder::Sonar(keys) => Ok(json!({
            "model_type": "m2m_100",
            "architectures": ["M2M100Encoder"],
            "d_model": keys.hidden_size,
            "encoder_ffn_dim": keys.intermediate_size,
            "encoder_layers": keys.num_layers,
            "encoder_attention_heads": keys.num_heads,
            "encoder_layerdrop": 0.0,
            "decoder_layers": 0,
            "activation_function": "relu",
            "scale_embedding": true,
            "pad_token_id": M2M100_PAD,
            "max_position_embeddings": keys.max_target_tokens,
            "vocab_size": keys.vocab_size,
            "dtype": "float32",
        })),
        YEncoder::PeText(_) => Err(missing("Y-encoder is PE-core's text tower")),
        YEncoder::ClipText(_) => Err(not_composed("CLIP")),
        YEncoder::Siglip2Text(_) => Err(not_composed("SigLIP 2")),
    }
}

fn gemma(keys: &schema::EmbeddingGemma) -> Value {
    let every = keys.full_attention_every;
    let layer = |i: usize| {
        if (i + 1).is_multiple_of(every) { "full_attention" } else { "sliding_attention" }
    };
    json!({
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "hidden_size": keys.hidden_size,
        "intermediate_size": keys.intermediate_size,
        "num_hidden_layers": keys.num_layers,
        "num_attention_heads": keys.num_heads,
        "num_key_value_heads": keys.num_kv_heads,
        "head_dim": keys.head_dim,
        "rms_norm_eps": decimal(keys.rms_norm_eps),
        "rope_theta": keys.rope_theta,
        "rope_local_base_freq": keys.rope_local_theta,
        "layer_types": (0..keys.num_layers).map(layer).collect::<Vec<_>>(),
        // In attention to both sides, transformers takes half of this number plus one.
        "sliding_window": 2 * keys.effective_window.saturating_sub(1),
        "query_pre_attn_scalar": keys.query_pre_attn_scalar,
        "use_bidirectional_attention": true,
        "max_position_embeddings": 2048,
        "vocab_size": keys.vocab_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_cache": false,
        "dtype": "float32",
    })
}

/// Folders of the Dense layers, as sentence-transformers names them, and their configurations.
/// Empty if the Y-encoder has none.
pub(super) fn dense(model: &schema::Model) -> Vec<(&'static str, Value)> {
    let dense = |inputs: usize, outputs: usize| {
        json!({
            "in_features": inputs,
            "out_features": outputs,
            "bias": false,
            "activation_function": "torch.nn.modules.linear.Identity",
        })
    };
    match &model.y_encoder {
        YEncoder::EmbeddingGemma(keys) if keys.dense_heads => {
            let (d, wide) = (keys.hidden_size, keys.dense_hidden_size);
            vec![("2_Dense", dense(d, wide)), ("3_Dense", dense(wide, d))]
        }
        YEncoder::EmbeddingGemma(_)
        | YEncoder::Qwen3Embedding(_)
        | YEncoder::Sonar(_)
        | YEncoder::PeText(_)
        | YEncoder::ClipText(_)
        | YEncoder::Siglip2Text(_) => Vec::new(),
    }
}

fn missing(what: &str) -> String {
    format!("the {what}, which transformers does not have; use vljepa-launch instead")
}

fn not_composed(of: &str) -> String {
    format!(
        "the Y-encoder is the text tower of {of}, which modeling_vl_jepa.py does not compose; use \
         vljepa-launch instead"
    )
}

/// The number as an integer if it is one, which transformers wants for numbers of tokens.
fn whole(value: f64) -> Value {
    serde_json::from_str(&value.to_string()).unwrap_or(Value::Null)
}

/// The number with the fewest decimal digits that rounds to this f32, as people write it.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}
