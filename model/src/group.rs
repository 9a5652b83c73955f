//! Groups of parameters.

use std::collections::BTreeMap;

/// Group of parameters with its own learning-rate multiplier in the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// All weights of the visual encoder.
    XEncoder,
    /// The predictor's layers and its token embeddings.
    Predictor,
    /// The text encoder of the targets, without its projection.
    YEncoder,
    /// The linear map from the Y-encoder to the shared embedding.
    YProjection,
    /// The moving average of the Y-encoder and its linear map. No gradient reaches it, and the
    /// optimizer leaves it alone.
    YAverage,
    /// The linear maps into and out of the predictor, and the projector of a VLM.
    Projections,
    /// The Y-decoder with its map of the embedding.
    YDecoder,
    /// The language model of a VLM.
    LanguageModel,
    /// The logarithm of the factor α of `InfoNCE`'s similarities (the temperature).
    LogitScale,
}

impl Group {
    /// All groups that have a multiplier, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::XEncoder,
        Self::Predictor,
        Self::YEncoder,
        Self::YProjection,
        Self::Projections,
        Self::LogitScale,
        Self::YDecoder,
        Self::LanguageModel,
    ];

    /// Name of the group in the recipe's `optimizer.multipliers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::XEncoder => "x_encoder",
            Self::Predictor => "predictor",
            Self::YEncoder => "y_encoder",
            Self::YProjection => "y_projection",
            Self::YAverage => "y_average",
            Self::Projections => "projections",
            Self::LogitScale => "logit_scale",
            Self::YDecoder => "y_decoder",
            Self::LanguageModel => "language_model",
        }
    }

    /// Factor on the learning rate of the group, of the recipe's `optimizer.multipliers`.
    #[must_use]
    pub fn multiplier(self, multipliers: &BTreeMap<String, f64>) -> f64 {
        let own = |group: Self| multipliers.get(group.name()).copied();
        match self {
            Self::YProjection => own(self).or(own(Self::Projections)),
            Self::XEncoder
            | Self::Predictor
            | Self::YEncoder
            | Self::YAverage
            | Self::Projections
            | Self::LogitScale
            | Self::YDecoder
            | Self::LanguageModel => own(self),
        }
        .unwrap_or(1.0)
    }
}
