//! Rules for `device`, `precision` and the keys under `model` and `loss`.

use super::{Problem, Problems, resnet};
use crate::schema::{
    Device, Llama3Scaling, Loss, LossKind, Model, Precision, Projection, Recipe, SigReg,
    TextLayers, TextSizes, Transform, Update, VicReg, VisionSizes, XEncoder, YEncoder,
};

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    device(recipe, found);
    found.list.extend(sizes(&recipe.model, &recipe.loss));
    loss(recipe, found);
}

/// Reports a precision that the device does not compute in.
pub(super) fn device(recipe: &Recipe, found: &mut Problems) {
    if recipe.device == Device::Host && recipe.precision == Precision::Bf16 {
        let help = "write `precision: f32`, or `device: cuda`";
        found.add("precision", "the host computes in f32 only, not bf16", help);
    }
    if recipe.device == Device::Cuda && recipe.precision == Precision::F32 {
        let help = "write `precision: bf16`, or `device: host`";
        found.add("precision", "GPUs compute in bf16 only, not f32", help);
    }
}

/// Returns the problems that keep a model of these sizes from being built. A recipe's
/// [`check`](super::check) and the model itself apply the same rules.
#[must_use]
pub fn sizes(model: &Model, loss: &Loss) -> Vec<Problem> {
    let mut found = Problems::default();
    positive(model, &mut found);
    encoders(model, &mut found);
    visual(model, &mut found);
    attention(model, &mut found);
    super::y_decoder::sizes(model, &mut found);
    super::vlm::sizes(model, &mut found);
    let max_scale = loss.temperature.max_scale.into();
    found.above_zero("loss.temperature", &[("max_scale", max_scale)]);
    found.list
}

fn positive(model: &Model, found: &mut Problems) {
    let p = &model.predictor;
    found.positive("model", &[("image_size", model.image_size), ("embed_dim", model.embed_dim)]);
    found.positive(
        "model.predictor",
        &[
            ("hidden_size", p.hidden_size),
            ("num_heads", p.num_heads),
            ("num_kv_heads", p.num_kv_heads),
            ("head_dim", p.head_dim),
            ("intermediate_size", p.intermediate_size),
            ("vocab_size", p.vocab_size),
            ("max_query_tokens", p.max_query_tokens),
        ],
    );
    if p.num_layers() == 0 {
        let what = format!("[{}, {}] has no layers", p.layers[0], p.layers[1]);
        let help = "give the first layer and the one after the last, such as [8, 16]";
        found.add("model.predictor.layers", what, help);
    }
    let y = model.y_encoder.sizes();
    found.positive(
        "model.y_encoder",
        &[
            ("hidden_size", y.hidden_size),
            ("num_layers", y.num_layers),
            ("num_heads", y.num_heads),
            ("intermediate_size", y.intermediate_size),
            ("vocab_size", y.vocab_size),
            ("max_target_tokens", model.y_encoder.max_target_tokens()),
        ],
    );
    found.above_zero(
        "model.predictor",
        &[("rms_norm_eps", p.rms_norm_eps.into()), ("rope_theta", p.rope_theta)],
    );
    of_x_family(model, found);
    of_y_family(&model.y_encoder, found);
}

/// Keys of the encoders that do not fit each other, or that allow only some values.
fn encoders(model: &Model, found: &mut Problems) {
    let width = model.y_encoder.sizes().output_size;
    if model.y_encoder.projection() == Projection::None && model.embed_dim != width {
        let what = format!(
            "is {}, but without a projection the shared embedding is the Y-encoder's own, of {} elements",
            model.embed_dim, width
        );
        let help = format!("remove it, or write {}", width);
        found.add("model.embed_dim", what, help);
    }
    if model.x_encoder.preprocessing().transform == Transform::RandomResizedCrop {
        let what = "evaluations cannot crop at random";
        let help =
            "write `transform: random_resized_crop` in a source of `data.sources`, for training";
        found.add("model.x_encoder.transform", what, help);
    }
    if let Update::Ema { decay } = model.y_encoder.update()
        && !(0.0..=1.0).contains(&decay)
    {
        let what = format!("{decay} is not between 0 and 1");
        found.add("model.y_encoder.update.ema.decay", what, "write a number such as 0.999");
    }
}

/// Sizes that every vision transformer has.
fn vision_transformer(x: VisionSizes, found: &mut Problems) {
    found.positive(
        "model.x_encoder",
        &[
            ("patch_size", x.patch_size),
            ("tubelet_size", x.tubelet_size),
            ("hidden_size", x.hidden_size),
            ("num_layers", x.num_layers),
            ("num_heads", x.num_heads),
            ("intermediate_size", x.intermediate_size),
        ],
    );
}

/// Sizes of the X-encoder, and numbers that only some families have.
fn of_x_family(model: &Model, found: &mut Problems) {
    match &model.x_encoder {
        XEncoder::ClipResnet(_) => {}
        _ => vision_transformer(model.x_encoder.sizes(), found),
    }
    match &model.x_encoder {
        XEncoder::Vjepa2(x) => found.above_zero(
            "model.x_encoder",
            &[("layer_norm_eps", x.layer_norm_eps.into()), ("rope_theta", x.rope_theta)],
        ),
        XEncoder::Vjepa2_1(x) => {
            found.positive("model.x_encoder", &[("rope_grid", x.rope_grid)]);
            found.above_zero(
                "model.x_encoder",
                &[("layer_norm_eps", x.layer_norm_eps.into()), ("rope_theta", x.rope_theta)],
            );
        }
        XEncoder::Pe(x) => {
            found.above_zero(
                "model.x_encoder",
                &[("layer_norm_eps", x.layer_norm_eps.into()), ("rope_theta", x.rope_theta)],
            );
            image_encoder(model, x.pool, x.trainable, found);
        }
        XEncoder::ClipResnet(x) => resnet::check(model, x, found),
        XEncoder::Clip(x) => {
            let eps = [("layer_norm_eps", x.layer_norm_eps.into())];
            found.above_zero("model.x_encoder", &eps);
            image_encoder(model, x.pool, x.trainable, found);
        }
        XEncoder::Siglip2(x) => {
            let eps = [("layer_norm_eps", x.layer_norm_eps.into())];
            found.above_zero("model.x_encoder", &eps);
            image_encoder(model, x.pool, x.trainable, found);
        }
    }
}

/// Reports keys that image encoders share.
fn image_encoder(model: &Model, pool: usize, trainable: bool, found: &mut Problems) {
    found.positive("model.x_encoder", &[("pool", pool)]);
    let side = model.image_size / model.x_encoder.sizes().patch_size.max(1);
    if pool > 0 && !side.is_multiple_of(pool) {
        let what = format!("{side}×{side} patches do not divide into squares of {pool}×{pool}");
        let help = "use a divisor of image_size / patch_size, such as 1, which keeps all tokens";
        found.add("model.x_encoder.pool", what, help);
    }
    if trainable {
        let what = "image encoders have no backward pass";
        let help = "write `trainable: false`, or choose `family: vjepa2_1`, which can be trained";
        found.add("model.x_encoder.trainable", what, help);
    }
}

/// Same as [`of_x_family`].
fn of_y_family(y_encoder: &YEncoder, found: &mut Problems) {
    match y_encoder {
        YEncoder::EmbeddingGemma(y) => {
            found.positive(
                "model.y_encoder",
                &[
                    ("num_kv_heads", y.num_kv_heads),
                    ("head_dim", y.head_dim),
                    ("full_attention_every", y.full_attention_every),
                    ("effective_window", y.effective_window),
                    ("dense_hidden_size", y.dense_hidden_size),
                ],
            );
            found.above_zero(
                "model.y_encoder",
                &[
                    ("rms_norm_eps", y.rms_norm_eps.into()),
                    ("rope_theta", y.rope_theta),
                    ("rope_local_theta", y.rope_local_theta),
                    ("query_pre_attn_scalar", y.query_pre_attn_scalar),
                ],
            );
        }
        YEncoder::Qwen3Embedding(y) => {
            found.positive(
                "model.y_encoder",
                &[("num_kv_heads", y.num_kv_heads), ("head_dim", y.head_dim)],
            );
            found.above_zero(
                "model.y_encoder",
                &[("rms_norm_eps", y.rms_norm_eps.into()), ("rope_theta", y.rope_theta)],
            );
        }
        YEncoder::Sonar(y) => {
            let eps = [("layer_norm_eps", y.layer_norm_eps.into())];
            found.above_zero("model.y_encoder", &eps);
            heads_divide("model.y_encoder", y.hidden_size, y.num_heads, found);
            if y.hidden_size < 4 || !y.hidden_size.is_multiple_of(2) {
                let what =
                    format!("{} elements cannot hold the sinusoids of positions", y.hidden_size);
                found.add("model.y_encoder.hidden_size", what, "use an even number of at least 4");
            }
        }
        YEncoder::PeText(y) => text_tower(y_encoder, y.layer_norm_eps, found),
        YEncoder::ClipText(y) => text_tower(y_encoder, y.layer_norm_eps, found),
        YEncoder::Siglip2Text(y) => text_tower(y_encoder, y.layer_norm_eps, found),
    }
}

/// Reports keys that text towers with learned positions share.
fn text_tower(y_encoder: &YEncoder, layer_norm_eps: f32, found: &mut Problems) {
    let TextSizes { hidden_size, num_heads, positions, output_size, .. } = y_encoder.sizes();
    found.positive(
        "model.y_encoder",
        &[("context_length", positions), ("output_size", output_size)],
    );
    found.above_zero("model.y_encoder", &[("layer_norm_eps", layer_norm_eps.into())]);
    heads_divide("model.y_encoder", hidden_size, num_heads, found);
    let tokens = y_encoder.max_target_tokens();
    if tokens > positions {
        let what = format!("{tokens} tokens are more than the {positions} learned positions");
        let help = format!("use at most {positions}, the value of context_length");
        found.add("model.y_encoder.max_target_tokens", what, help);
    }
}

/// Reports elements of a token that do not divide into heads.
pub(super) fn heads_divide(part: &str, hidden: usize, heads: usize, found: &mut Problems) {
    if heads > 0 && hidden > 0 && !hidden.is_multiple_of(heads) {
        let what = format!("{hidden} is not divisible by {heads} heads");
        let help =
            format!("use a multiple of num_heads, such as {}", nearest_multiple(hidden, heads));
        found.add(format!("{part}.hidden_size"), what, help);
    }
}

/// Reports frames that do not divide into patches, and tokens that do not divide into heads.
fn visual(model: &Model, found: &mut Problems) {
    if matches!(model.x_encoder, XEncoder::ClipResnet(_)) {
        return;
    }
    let x = model.x_encoder.sizes();
    let (image, patch) = (model.image_size, x.patch_size);
    if patch > 0 && !image.is_multiple_of(patch) {
        let what = format!("{image} pixels do not divide into patches of {patch}");
        let help = format!(
            "use a multiple of model.x_encoder.patch_size, such as {}",
            nearest_multiple(image, patch)
        );
        found.add("model.image_size", what, help);
    }
    let (hidden, heads) = (x.hidden_size, x.num_heads);
    if heads == 0 || hidden == 0 {
        return;
    }
    heads_divide("model.x_encoder", hidden, heads, found);
    if hidden.is_multiple_of(heads) {
        rotary_axes(&model.x_encoder, hidden / heads, found);
    }
}

/// Reports heads of the X-encoder that cannot hold the rotary axes of its family.
fn rotary_axes(x_encoder: &XEncoder, head_dim: usize, found: &mut Problems) {
    let (fits, what, help) = match x_encoder {
        XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) => (
            head_dim >= 6 && head_dim.is_multiple_of(2),
            format!("heads of {head_dim} elements cannot hold three rotary axes"),
            "hidden_size / num_heads must be even and at least 6",
        ),
        XEncoder::Pe(_) => (
            head_dim.is_multiple_of(4),
            format!("heads of {head_dim} elements cannot hold two rotary axes"),
            "hidden_size / num_heads must be a multiple of 4",
        ),
        XEncoder::Siglip2(_) | XEncoder::Clip(_) | XEncoder::ClipResnet(_) => return,
    };
    if !fits {
        found.add("model.x_encoder.num_heads", what, help);
    }
}

/// Returns the multiple of `step` that is nearest to `value`, at least `step`.
fn nearest_multiple(value: usize, step: usize) -> usize {
    ((value + step / 2) / step).max(1) * step
}

fn attention(model: &Model, found: &mut Problems) {
    let (p, y) = (&model.predictor, model.y_encoder.sizes());
    let of_y = match y.layers {
        TextLayers::Gated { .. } => {
            Some(("model.y_encoder", y.num_heads, y.num_kv_heads, y.head_dim))
        }
        TextLayers::Plain => None,
    };
    let of_p = ("model.predictor", p.num_heads, p.num_kv_heads, p.head_dim);
    for (part, heads, kv_heads, head_dim) in std::iter::once(of_p).chain(of_y) {
        query_groups(part, [heads, kv_heads, head_dim], found);
    }
    rope_scaling("model.predictor", p.rope_scaling.as_ref(), found);
}

/// Reports query heads that do not share key/value heads evenly, and heads of odd width.
pub(super) fn query_groups(part: &str, sizes: [usize; 3], found: &mut Problems) {
    let [heads, kv_heads, head_dim] = sizes;
    if kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
        let what = format!("{heads} query heads are not divisible by {kv_heads} key/value heads");
        let help = "num_heads must be a multiple of num_kv_heads";
        found.add(format!("{part}.num_kv_heads"), what, help);
    }
    if !head_dim.is_multiple_of(2) {
        let what = format!("{head_dim} is odd, but rotary embeddings rotate pairs of elements");
        found.add(format!("{part}.head_dim"), what, "use an even number");
    }
}

/// Reports frequencies that Llama's scaling cannot have.
pub(super) fn rope_scaling(part: &str, scaling: Option<&Llama3Scaling>, found: &mut Problems) {
    let Some(scaling) = scaling else { return };
    let part = format!("{part}.rope_scaling");
    found.above_zero(
        &part,
        &[
            ("factor", scaling.factor),
            ("low_freq_factor", scaling.low_freq_factor),
            ("high_freq_factor", scaling.high_freq_factor),
            ("original_max_position_embeddings", scaling.original_max_position_embeddings),
        ],
    );
    let positions = scaling.original_max_position_embeddings;
    if positions > f64::from(u32::MAX) {
        let what = format!("{positions} is more than 2^32 - 1");
        let help = "Llama-3.2 was pretrained with 8192 positions";
        found.add(format!("{part}.original_max_position_embeddings"), what, help);
    }
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        let what = format!("{} is not above low_freq_factor", scaling.high_freq_factor);
        let help = "Llama-3.2 has low_freq_factor 1 and high_freq_factor 4";
        found.add(format!("{part}.high_freq_factor"), what, help);
    }
}

fn loss(recipe: &Recipe, found: &mut Problems) {
    let loss = &recipe.loss;
    let temperature = &loss.temperature;
    let start = f64::from(temperature.initial_logit_scale).exp();
    if !(start.is_finite() && start <= f64::from(temperature.max_scale)) {
        let what = format!(
            "exp({}) = {start:.1} is above max_scale {}",
            temperature.initial_logit_scale, temperature.max_scale
        );
        let help = "the key is a natural logarithm: CLIP starts from ln(1/0.07) = 2.65926";
        found.add("loss.temperature.initial_logit_scale", what, help);
    }
    if loss.mask_equal_targets && loss.kind != LossKind::InfoNce {
        let what = "only InfoNCE has negatives to mask";
        let help = "remove it, or write `kind: info_nce`";
        found.add("loss.mask_equal_targets", what, help);
    }
    match loss.kind {
        LossKind::InfoNce => {}
        LossKind::VicReg => vic_reg(&loss.vic_reg, found),
        LossKind::SigReg => sig_reg(&loss.sig_reg, found),
        LossKind::Cosine | LossKind::L1 | LossKind::L2 => {
            let y = &recipe.model.y_encoder;
            let collapses = match y.update() {
                Update::Train => true,
                Update::Frozen => y.projection() == Projection::Linear,
                Update::Ema { .. } => false,
            };
            if collapses {
                let what = "without negatives, all that is trained of the Y-encoder collapses to one point";
                let help = "write `model.y_encoder: {update: frozen, projection: none}` (paper §4.7, Table 5c), or `kind: info_nce`, `vic_reg` or `sig_reg`";
                found.add("loss.kind", what, help);
            }
        }
    }
}

fn vic_reg(keys: &VicReg, found: &mut Problems) {
    for (key, factor, least) in [
        ("invariance", keys.invariance, f32::MIN_POSITIVE),
        ("variance", keys.variance, f32::MIN_POSITIVE),
        ("covariance", keys.covariance, 0.0),
    ] {
        if !(factor.is_finite() && factor >= least) {
            let help = "invariance and variance must be above 0, covariance at least 0; the \
                        defaults are 25, 25 and 1";
            found.add(format!("loss.vic_reg.{key}"), format!("{factor} is no factor"), help);
        }
    }
}

fn sig_reg(keys: &SigReg, found: &mut Problems) {
    if !(keys.weight > 0.0 && keys.weight < 1.0) {
        let what = format!("{} is not between 0 and 1", keys.weight);
        let help = "the distance has weight 1 − weight; the default is 0.05";
        found.add("loss.sig_reg.weight", what, help);
    }
    if keys.directions == 0 || !keys.directions.is_multiple_of(8) {
        let what = format!("{} is not a multiple of 8 above 0", keys.directions);
        let help = "products on a GPU take multiples of 8; the default is 1024";
        found.add("loss.sig_reg.directions", what, help);
    }
}
