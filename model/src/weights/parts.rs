//! What models that hold published weights have in common.

use vljepa_recipes::schema;

use crate::dual_encoder::Tower;
use crate::x_encoder::{ImageHead, ResNet};
use crate::{DualEncoder, Layout, Predictor, VlJepa, XEncoder, YDecoder, YEncoder};

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
    /// Predictor. A dual encoder has none.
    pub(super) predictor: Option<&'a Predictor>,
    pub(super) y_encoder: &'a YEncoder,
    /// Y-decoder, in a model that has one.
    pub(super) y_decoder: Option<&'a YDecoder>,
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
            y_encoder: &model.y_encoder,
            y_decoder: model.y_decoder.as_ref(),
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
            y_encoder: &model.y_encoder,
            y_decoder: None,
        }
    }
}
