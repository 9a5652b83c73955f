//! Y-encoder: maps a target text to its embedding.
//!
//! The encoder consists of a text transformer, pooling over the tokens, maps of its own (the Dense
//! layers of `EmbeddingGemma` if the recipe asks for them, the projections of the text towers of
//! PE-core, CLIP and `SigLIP` 2), and a linear map to the shared embedding (VL-JEPA §3.1), unless
//! the recipe makes the encoder's own embedding the shared one (Table 5c).
//! If the text model is frozen, only the map is trained (Table 5e). With a moving average there are
//! two encoders: the average makes the targets, and the other one is trained.

use std::sync::Arc;

use vljepa_kernels::attention::Mask;
use vljepa_kernels::{Device, Lengths, Packed, Result, View};
use vljepa_recipes::schema;

use crate::layers::{Embedded, Head, HeadSaved, Linear, Pooling, Sequence, StackSaved, TextModel};
use crate::{Context, Gradients, Group, Keep, LayoutBuilder, ModelError, OnReady, Parameters};

/// Purpose of a Y-encoder in a model. A model with a moving average has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instance {
    /// The only one. It makes the targets, and it is trained unless the recipe freezes it.
    Only,
    /// Moving average, which makes the targets and gets no gradient.
    Average,
    /// The one that is trained, and whose average makes the targets.
    Trained,
}

/// Encoder of the target texts.
#[derive(Debug)]
pub struct YEncoder {
    /// Token embeddings and layers of the recipe's family.
    pub text: TextModel,
    /// Pooling of each text, maps of the encoder, and map to the shared embedding.
    pub head: Head,
    /// Whether the text model is trained.
    pub trainable: bool,
    /// Whether the text model, its own maps or its projection are trained.
    trains: bool,
    gradients_end: usize,
}

/// State that [`YEncoder::backward`] consumes.
#[derive(Debug)]
pub struct YEncoderSaved {
    /// Token ids and the state of the stack, or `None` if the text model is frozen.
    text: Option<(Arc<[i32]>, StackSaved)>,
    sequence: Sequence,
    head: HeadSaved,
}

impl YEncoder {
    /// Registers the parameters of an instance of the encoder and of its projection. The loss
    /// `kind` decides whether embeddings are normalised.
    pub(crate) fn new(
        layout: &mut LayoutBuilder,
        instance: Instance,
        model: &schema::Model,
        kind: schema::LossKind,
        device: Device,
    ) -> Self {
        let (recipe, sizes) = (&model.y_encoder, model.y_encoder.sizes());
        let (name, head) = match instance {
            Instance::Only | Instance::Average => ("y_encoder", "projections.y_head"),
            Instance::Trained => ("y_trained", "y_trained.head"),
        };
        let (group, projections) = match instance {
            Instance::Only | Instance::Trained => (Group::YEncoder, Group::YProjection),
            Instance::Average => (Group::YAverage, Group::YAverage),
        };
        let trainable = recipe.trainable();
        layout.scope(projections, true);
        let projection = match recipe.projection() {
            schema::Projection::Linear => {
                let shape = [model.embed_dim, sizes.output_size];
                Some(Linear::new(layout, head, shape, model.projection_bias))
            }
            schema::Projection::None => None,
        };
        layout.scope(group, trainable);
        let mut maps = own_maps(layout, name, recipe);
        maps.extend(projection);
        let (text, pooling) = match recipe {
            schema::YEncoder::EmbeddingGemma(keys) => {
                (TextModel::gemma(layout, name, keys, device), Pooling::Mean)
            }
            schema::YEncoder::Qwen3Embedding(keys) => {
                (TextModel::qwen3(layout, name, keys, device), Pooling::Last)
            }
            schema::YEncoder::Sonar(keys) => {
                (TextModel::sonar(layout, name, keys.into(), Mask::Full, device), Pooling::Mean)
            }
            schema::YEncoder::PeText(keys) => {
                (TextModel::pe_text(layout, name, (keys, sizes), device), Pooling::Last)
            }
            schema::YEncoder::ClipText(keys) => {
                (TextModel::clip_text(layout, name, (keys, sizes), device), Pooling::Last)
            }
            // The last of the tokens that pad a text is pooled.
            schema::YEncoder::Siglip2Text(keys) => {
                (TextModel::siglip2_text(layout, name, (keys, sizes), device), Pooling::Last)
            }
        };
        let normalise = crate::loss::normalises(kind);
        let trainable = trainable && instance != Instance::Average;
        let trains = instance != Instance::Average
            && (trainable || maps.iter().any(|m| m.weight.trainable()));
        let (head, gradients_end) = (Head { pooling, maps, normalise }, layout.trainable_end());
        Self { text, head, trainable, trains, gradients_end }
    }

    /// Embedding (b, e) of each target text.
    ///
    /// # Errors
    /// If a text is empty, an id is not in the vocabulary, or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        target: &Packed,
        keep: Keep,
    ) -> Result<Embedded<YEncoderSaved>, ModelError> {
        let (keep, deep) = (keep.only_if(self.trains), keep.only_if(self.trainable));
        let lengths = Lengths::new(cx.arena.device(), target.lengths.host().to_vec())?;
        let sequence = self.text.sequence(lengths)?;
        let x = self.text.input(cx, parameters, target.ids(), &sequence)?;
        let (hidden, stack) = self.text.stack.forward(cx, parameters, x, &sequence, deep)?;
        let (embedding, head) =
            self.head.forward(cx, parameters, hidden.view(), &sequence.lengths, keep.any())?;
        drop(hidden);
        let text = stack.map(|stack| (Arc::clone(target.host_ids()), stack));
        let saved = head.map(|head| YEncoderSaved { text, sequence, head });
        Ok(Embedded { embedding, saved })
    }

    /// Adds to the gradients of all trained weights, given `d_embedding` (b, e), the gradient of
    /// the embedding. Calls `on_ready` whenever more gradients are complete.
    ///
    /// # Errors
    /// If the forward pass kept nothing, shapes disagree, or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: Option<YEncoderSaved>,
        d_embedding: View<'_>,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError> {
        if !self.trains {
            return Ok(());
        }
        let YEncoderSaved { text, sequence, head } =
            saved.ok_or(ModelError::NothingSaved { part: "y_encoder" })?;
        let lengths = &sequence.lengths;
        let below = text.is_some();
        let d_hidden =
            self.head.backward(cx, parameters, head, d_embedding, lengths, below, gradients)?;
        if let (Some((ids, saved)), Some(d_hidden)) = (text, d_hidden) {
            let stack = &self.text.stack;
            let d =
                stack.backward(cx, parameters, saved, d_hidden, &sequence, gradients, on_ready)?;
            self.text.input_backward(cx, &ids, &sequence, d.view(), gradients)?;
        }
        on_ready(gradients, self.gradients_end);
        Ok(())
    }
}

/// Registers the maps between pooling and the map to the shared embedding, last map first. Returns
/// them in the order of application.
fn own_maps(layout: &mut LayoutBuilder, name: &str, recipe: &schema::YEncoder) -> Vec<Linear> {
    let mut map =
        |which: &str, shape, bias| Linear::new(layout, &format!("{name}.{which}"), shape, bias);
    match recipe {
        schema::YEncoder::EmbeddingGemma(keys) if keys.dense_heads => {
            let (d, wide) = (keys.hidden_size, keys.dense_hidden_size);
            let last = map("dense_3", [d, wide], false);
            vec![map("dense_2", [wide, d], false), last]
        }
        schema::YEncoder::PeText(keys) => {
            vec![map("text_projection", [keys.output_size, keys.hidden_size], false)]
        }
        schema::YEncoder::ClipText(keys) => {
            vec![map("text_projection", [keys.output_size, keys.hidden_size], false)]
        }
        schema::YEncoder::Siglip2Text(keys) => {
            vec![map("text_projection", [keys.output_size, keys.hidden_size], true)]
        }
        schema::YEncoder::EmbeddingGemma(_)
        | schema::YEncoder::Qwen3Embedding(_)
        | schema::YEncoder::Sonar(_) => Vec::new(),
    }
}
