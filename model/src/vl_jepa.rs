//! The whole model: X-encoder, predictor, Y-encoder and loss.

use vljepa_kernels::Device;
use vljepa_recipes::schema;

use crate::loss::{Alpha, Objective, normalises};
use crate::{
    Group, Initial, Layout, LayoutBuilder, ModelError, ParameterId, Parameters, Predictor, Weight,
    XEncoder, YEncoder,
};

/// VL-JEPA. Training minimises D(predictor(X-encoder(frames), query), Y-encoder(target)) (paper §1
/// and §2).
#[derive(Debug)]
pub struct VlJepa {
    /// Maps frames to visual tokens.
    pub x_encoder: XEncoder,
    /// Maps visual tokens and a query to the predicted embedding.
    pub predictor: Predictor,
    /// Maps the target text to its embedding.
    pub y_encoder: YEncoder,
    /// Loss D that training minimises.
    pub objective: Objective,
    layout: Layout,
    logit_scale: Weight,
    max_scale: f32,
    recipe: schema::Model,
}

impl VlJepa {
    /// Builds the model of a recipe. The model holds no weights; they are in [`Parameters`].
    ///
    /// # Errors
    /// If a size in the recipe is out of range or does not fit the other sizes.
    pub fn new(
        model: &schema::Model,
        loss: &schema::Loss,
        device: Device,
    ) -> Result<Self, ModelError> {
        check(model, loss)?;
        let mut layout = LayoutBuilder::new(model.initialisation);
        let learned = loss.temperature.learnable && loss.kind == schema::LossKind::InfoNce;
        let initial = Initial::Constant(loss.temperature.initial_logit_scale);
        // Register in the order in which a step completes gradients: loss, Y-encoder, predictor,
        // X-encoder.
        let logit_scale =
            layout.scope(Group::LogitScale, learned).add("logit_scale".to_owned(), &[1], initial);
        let y_encoder = YEncoder::new(&mut layout, "y_encoder", model, loss.kind, device);
        let normalise = normalises(loss.kind);
        let predictor = Predictor::new(&mut layout, "predictor", model, normalise, device);
        let x_encoder = XEncoder::new(&mut layout, "x_encoder", &model.x_encoder, device);
        Ok(Self {
            x_encoder,
            predictor,
            y_encoder,
            objective: Objective::new(loss, logit_scale),
            layout: layout.finish(),
            logit_scale,
            max_scale: loss.temperature.max_scale,
            recipe: model.clone(),
        })
    }

    /// Names, shapes and offsets of all parameters.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Recipe from which this model was built.
    #[must_use]
    pub fn recipe(&self) -> &schema::Model {
        &self.recipe
    }

    /// Parameter whose exponential is the factor α of `InfoNCE`'s similarities.
    #[must_use]
    pub fn logit_scale(&self) -> ParameterId {
        self.logit_scale.id()
    }

    /// α = exp(logit_scale), clamped to the recipe's `max_scale`. On a GPU, this call waits for all
    /// work issued before it, so a step calls it only once, at its start.
    ///
    /// # Errors
    /// If the parameter cannot be read back from the device.
    pub fn alpha(&self, parameters: &Parameters) -> Result<Alpha, ModelError> {
        let unclamped = parameters.scalar(&self.logit_scale)?.exp();
        let clamped = unclamped > self.max_scale;
        Ok(Alpha { value: unclamped.min(self.max_scale), clamped })
    }
}

/// Rejects sizes that no tensor can have, so that a recipe that passed its own check cannot cause a
/// panic later.
fn check(model: &schema::Model, loss: &schema::Loss) -> Result<(), ModelError> {
    let (x, p, y) = (&model.x_encoder, &model.predictor, &model.y_encoder);
    let positive = [
        ("model.embed_dim", model.embed_dim),
        ("model.image_size", model.image_size),
        ("model.x_encoder.patch_size", x.patch_size),
        ("model.x_encoder.tubelet_size", x.tubelet_size),
        ("model.x_encoder.hidden_size", x.hidden_size),
        ("model.x_encoder.num_heads", x.num_heads),
        ("model.x_encoder.intermediate_size", x.intermediate_size),
        ("model.predictor.hidden_size", p.hidden_size),
        ("model.predictor.num_heads", p.num_heads),
        ("model.predictor.num_kv_heads", p.num_kv_heads),
        ("model.predictor.head_dim", p.head_dim),
        ("model.predictor.intermediate_size", p.intermediate_size),
        ("model.predictor.vocab_size", p.vocab_size),
        ("model.y_encoder.hidden_size", y.hidden_size),
        ("model.y_encoder.num_heads", y.num_heads),
        ("model.y_encoder.num_kv_heads", y.num_kv_heads),
        ("model.y_encoder.head_dim", y.head_dim),
        ("model.y_encoder.intermediate_size", y.intermediate_size),
        ("model.y_encoder.vocab_size", y.vocab_size),
        ("model.y_encoder.full_attention_every", y.full_attention_every),
        ("model.y_encoder.effective_window", y.effective_window),
        ("model.y_encoder.dense_hidden_size", y.dense_hidden_size),
    ];
    for (key, value) in positive {
        require(value > 0, key, value, "a positive number")?;
    }
    let multiples = [
        ("model.image_size", model.image_size, x.patch_size, "a multiple of patch_size"),
        (
            "model.x_encoder.hidden_size",
            x.hidden_size,
            2 * x.num_heads,
            "a multiple of 2·num_heads",
        ),
        ("model.predictor.head_dim", p.head_dim, 2, "an even number"),
        ("model.y_encoder.head_dim", y.head_dim, 2, "an even number"),
        ("model.predictor.num_heads", p.num_heads, p.num_kv_heads, "a multiple of num_kv_heads"),
        ("model.y_encoder.num_heads", y.num_heads, y.num_kv_heads, "a multiple of num_kv_heads"),
    ];
    for (key, value, divisor, needed) in multiples {
        require(value.is_multiple_of(divisor), key, value, needed)?;
    }
    let width = x.hidden_size / x.num_heads;
    // The rotary embedding has three axes, and each needs a pair of channels. A narrower head would
    // not see positions at all.
    require(width >= 6, "model.x_encoder.num_heads", x.num_heads, "at least 6 channels per head")?;
    let above_zero = [
        ("model.x_encoder.rope_theta", x.rope_theta),
        ("model.predictor.rope_theta", p.rope_theta),
        ("model.y_encoder.rope_theta", y.rope_theta),
        ("model.y_encoder.rope_local_theta", y.rope_local_theta),
        ("model.y_encoder.query_pre_attn_scalar", y.query_pre_attn_scalar),
        ("loss.temperature.max_scale", f64::from(loss.temperature.max_scale)),
    ];
    for (key, value) in above_zero {
        require(value.is_finite() && value > 0.0, key, value, "a positive number")?;
    }
    if let Some(scaling) = &p.rope_scaling {
        let positions = scaling.original_max_position_embeddings;
        let key = "model.predictor.rope_scaling.original_max_position_embeddings";
        let fits = (1.0..=f64::from(u32::MAX)).contains(&positions);
        require(fits, key, positions, "a number from 1 to 2^32 - 1")?;
    }
    Ok(())
}

fn require(
    holds: bool,
    key: &'static str,
    found: impl ToString,
    needed: &str,
) -> Result<(), ModelError> {
    if holds {
        return Ok(());
    }
    Err(ModelError::Config { key, found: found.to_string(), needed: needed.to_owned() })
}
