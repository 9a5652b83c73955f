//! What models that hold published weights have in common.

use vljepa_recipes::schema;

use crate::dual_encoder::Tower;
use crate::x_encoder::{ImageHead, ResNet};
use crate::{
    DualEncoder, LanguageModel, Layout, Predictor, VlJepa, Vlm, XEncoder, YDecoder, YEncoder,
};

/// Parts of a model whose weights have published names.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    pub(super) recipe: &'a schema::Model,
    pub(super) layout: &'a Layout,
    /// Vision transformer. A dual encoder may have a ResNet instead.
    pub(super) x_encoder: Option<&'a XEncoder>,
    /// ResNet of a dual encoder.
    pub(super) resnet: Option<&'a ResNet>,
    /// Head of an image tower. Only a dual encoder has it.
    pub(super) image_head: Option<&'a ImageHead>,
    /// Predictor. A dual encoder and a VLM have none.
    pub(super) predictor: Option<&'a Predictor>,
    /// Y-encoder. A VLM has none.
    pub(super) y_encoder: Option<&'a YEncoder>,
    /// Y-decoder, in a model that has one.
    pub(super) y_decoder: Option<&'a YDecoder>,
    /// Language model of a VLM.
    pub(super) language_model: Option<&'a LanguageModel>,
}

impl<'a> Parts<'a> {
    /// Names, shapes and offsets of all parameters.
    #[must_use]
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }
}

impl<'a> From<&'a VlJepa> for Parts<'a> {
    fn from(model: &'a VlJepa) -> Self {
        Self {
            recipe: model.recipe(),
            layout: model.layout(),
            x_encoder: Some(&model.x_encoder),
            resnet: None,
            image_head: None,
            predictor: Some(&model.predictor),
            y_encoder: Some(&model.y_encoder),
            y_decoder: model.y_decoder.as_ref(),
            language_model: None,
        }
    }
}

impl<'a> From<&'a DualEncoder> for Parts<'a> {
    fn from(model: &'a DualEncoder) -> Self {
        let (x_encoder, resnet) = match &model.tower {
            Tower::Transformer(x_encoder) => (Some(&**x_encoder), None),
            Tower::ResNet(resnet) => (None, Some(&**resnet)),
        };
        Self {
            recipe: model.recipe(),
            layout: model.layout(),
            x_encoder,
            resnet,
            image_head: Some(&model.head),
            predictor: None,
            y_encoder: Some(&model.y_encoder),
            y_decoder: None,
            language_model: None,
        }
    }
}

impl<'a> From<&'a Vlm> for Parts<'a> {
    fn from(model: &'a Vlm) -> Self {
        Self {
            recipe: model.recipe(),
            layout: model.layout(),
            x_encoder: Some(&model.x_encoder),
            resnet: None,
            image_head: None,
            predictor: None,
            y_encoder: None,
            y_decoder: None,
            language_model: Some(&model.language_model),
        }
    }
}
