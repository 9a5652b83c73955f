//! The whole model: X-encoder, predictor, Y-encoder, loss, and Y-decoder if the recipe has one.

use std::ops::Range;

use vljepa_kernels::{Device, Stream};
use vljepa_recipes::schema;

use crate::loss::{Alpha, Objective, normalises};
use crate::y_encoder::Instance;
use crate::{
    Group, Initial, Layout, LayoutBuilder, ModelError, ParameterId, Parameters, Predictor, Weight,
    XEncoder, YDecoder, YEncoder,
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
    /// Writes the text of an embedding. With it, all other parts are frozen.
    pub y_decoder: Option<YDecoder>,
    /// The encoder that is trained if `y_encoder` is its moving average.
    y_trained: Option<(YEncoder, MovingAverage)>,
    /// Loss D that training minimises.
    pub objective: Objective,
    layout: Layout,
    logit_scale: Weight,
    max_scale: f32,
    recipe: schema::Model,
}

/// A moving average and its values in the trainable buffer.
#[derive(Debug)]
struct MovingAverage {
    decay: f32,
    /// Elements of the average, followed by as many of the encoder that it averages.
    both: Range<usize>,
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
        // A recipe that was loaded passed this check. A caller may have changed it since.
        if let Some(problem) = vljepa_recipes::check::sizes(model, loss).into_iter().next() {
            return Err(ModelError::Config { key: problem.key, what: problem.what });
        }
        let mut layout = LayoutBuilder::new(model.initialisation);
        let learned = loss.temperature.learnable && loss.kind == schema::LossKind::InfoNce;
        let initial = Initial::Constant(loss.temperature.initial_logit_scale);
        let y_decoder = model.decoder().map(|_| YDecoder::new(&mut layout, model, device));
        let learns = model.learning_decoder().is_none();
        if !learns {
            layout.freeze();
        }
        // Register in the order in which a step completes gradients: loss, Y-encoder, predictor,
        // X-encoder.
        let logit_scale =
            layout.scope(Group::LogitScale, learned).add("logit_scale".to_owned(), &[1], initial);
        let start = layout.trainable_end();
        let mut y = |instance| YEncoder::new(&mut layout, instance, model, loss.kind, device);
        let (y_encoder, y_trained) = match model.y_encoder.update() {
            schema::Update::Ema { decay } if learns => {
                let (average, trained) = (y(Instance::Average), y(Instance::Trained));
                let both = start..layout.trainable_end();
                (average, Some((trained, MovingAverage { decay, both })))
            }
            schema::Update::Train | schema::Update::Frozen | schema::Update::Ema { .. } => {
                (y(Instance::Only), None)
            }
        };
        let normalise = normalises(loss.kind);
        let predictor = Predictor::new(&mut layout, "predictor", model, normalise, device);
        let x_encoder = XEncoder::new(&mut layout, "x_encoder", model, device);
        Ok(Self {
            x_encoder,
            predictor,
            y_encoder,
            y_decoder,
            y_trained,
            objective: Objective::new(loss, logit_scale),
            layout: layout.finish(),
            logit_scale,
            max_scale: loss.temperature.max_scale,
            recipe: model.clone(),
        })
    }

    /// The Y-encoder that is trained: `y_encoder`, or the one that it averages.
    #[must_use]
    pub fn trained_y_encoder(&self) -> &YEncoder {
        self.y_trained.as_ref().map_or(&self.y_encoder, |(trained, _)| trained)
    }

    /// Whether the targets come from a moving average of the Y-encoder.
    #[must_use]
    pub fn averages(&self) -> bool {
        self.y_trained.is_some()
    }

    /// Starts the trained Y-encoder with the weights of its average. Without an average nothing
    /// changes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn start_from_average(
        &self,
        stream: &Stream,
        parameters: &mut Parameters,
    ) -> Result<(), ModelError> {
        let Some((_, average)) = &self.y_trained else { return Ok(()) };
        Ok(parameters.repeat_half(stream, &average.both)?)
    }

    /// Moves the average of the Y-encoder toward its weights, after an update of them. Without an
    /// average nothing changes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn move_average(
        &self,
        stream: &Stream,
        parameters: &mut Parameters,
    ) -> Result<(), ModelError> {
        let Some((_, average)) = &self.y_trained else { return Ok(()) };
        Ok(parameters.move_average(stream, &average.both, average.decay)?)
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
