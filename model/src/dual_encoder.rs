//! Dual encoders: published pairs of an image tower and a text tower that embed frames and texts
//! into one space. They are the baselines of VL-JEPA's Tables 1 and 4, and are not trained.

use vljepa_kernels::{Device, Lengths, Packed, Result, Tensor, View};
use vljepa_recipes::schema;

use crate::x_encoder::{ImageHead, ResNet};
use crate::y_encoder::Instance;
use crate::{Context, Keep, Layout, LayoutBuilder, ModelError, Parameters, XEncoder, YEncoder};

/// CLIP, `SigLIP` 2 or PE-core.
///
/// The embedding of a clip is the mean of the embeddings of its frames, which are not normalised
/// before: PE's evaluations call `encode_video`, whose default is `normalize=False`, and normalise
/// its mean (`core/vision_encoder/pe.py` and `apps/pe/clip_benchmark` in
/// facebookresearch/perception_models). CLIP and `SigLIP` 2 have no code for videos; we do the same
/// with them.
#[derive(Debug)]
pub struct DualEncoder {
    /// Image tower.
    pub tower: Tower,
    /// Map from the tokens of frames to embeddings of clips.
    pub head: ImageHead,
    /// Text tower.
    pub y_encoder: YEncoder,
    layout: Layout,
    recipe: schema::Model,
}

/// Image tower of a dual encoder, up to its pooling.
#[derive(Debug)]
pub enum Tower {
    /// Vision transformer. The recipe's keys of its visual tokens, `pool` and `final_norm`, do not
    /// apply.
    Transformer(Box<XEncoder>),
    /// CLIP's ResNet, which has no visual tokens.
    ResNet(Box<ResNet>),
}

impl DualEncoder {
    /// Builds the encoders of a recipe. All their parameters are frozen; they are in
    /// [`Parameters`].
    ///
    /// # Errors
    /// If a size in the recipe is out of range or does not fit the other sizes, or the encoders are
    /// no pair.
    pub fn new(model: &schema::Model, device: Device) -> Result<Self, ModelError> {
        // A recipe that was loaded passed these checks. A caller may have changed it since.
        let loss = schema::Loss::default();
        let sizes = vljepa_recipes::check::sizes(model, &loss);
        let mut problems = sizes.into_iter().chain(vljepa_recipes::check::pair(model));
        if let Some(problem) = problems.next() {
            return Err(ModelError::Config { key: problem.key, what: problem.what });
        }
        let mut layout = LayoutBuilder::new(model.initialisation);
        // Embeddings are normalised, as for the default loss.
        let y_encoder = YEncoder::new(&mut layout, Instance::Only, model, loss.kind, device);
        let head = ImageHead::new(&mut layout, "image_head", model);
        let tower = Tower::new(&mut layout, "x_encoder", model, device);
        let (layout, recipe) = (layout.finish(), model.clone());
        Ok(Self { tower, head, y_encoder, layout, recipe })
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

    /// Embeddings (b, e) of length one of the clips `frames` (b, T, H, W, 3), which are u8 pixels,
    /// or f32 pixels that are already normalised.
    ///
    /// # Errors
    /// If a frame has another size than the recipe's `image_size`, or memory runs out.
    pub fn embed_frames(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        frames: View<'_>,
    ) -> Result<Tensor, ModelError> {
        let (tokens, lengths) = self.tower.tokens(cx, parameters, frames)?;
        let clips = frames.shape()[0];
        Ok(self.head.forward(cx, parameters, tokens.view(), &lengths, clips)?)
    }

    /// Embeddings (b, e) of length one of b texts.
    ///
    /// # Errors
    /// If a text is empty, an id is not in the vocabulary, or memory runs out.
    pub fn embed_texts(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        texts: &Packed,
    ) -> Result<Tensor, ModelError> {
        Ok(self.y_encoder.forward(cx, parameters, texts, Keep::Nothing)?.embedding)
    }
}

impl Tower {
    /// Registers the parameters under `name`, last first.
    fn new(layout: &mut LayoutBuilder, name: &str, model: &schema::Model, device: Device) -> Self {
        match &model.x_encoder {
            schema::XEncoder::ClipResnet(keys) => {
                Self::ResNet(Box::new(ResNet::new(layout, name, keys, model.image_size)))
            }
            schema::XEncoder::Vjepa2(_)
            | schema::XEncoder::Vjepa2_1(_)
            | schema::XEncoder::Pe(_)
            | schema::XEncoder::Siglip2(_)
            | schema::XEncoder::Clip(_) => {
                Self::Transformer(Box::new(XEncoder::new(layout, name, model, device)))
            }
        }
    }

    /// Tokens (n, d) of all frames, after the tower's last norm if it has one, and their number in
    /// each frame.
    fn tokens(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        frames: View<'_>,
    ) -> Result<(Tensor, Lengths)> {
        match self {
            Self::Transformer(encoder) => {
                let patches = encoder.patches(cx, frames)?;
                let (x, sequence) = encoder.embed(cx, parameters, &patches)?;
                let x = encoder.stack.forward_blocks(cx, parameters, x, &sequence)?;
                let (x, _) = encoder.stack.norm.forward(cx, parameters, x.view())?;
                Ok((x, sequence.lengths))
            }
            Self::ResNet(resnet) => resnet.forward(cx, parameters, frames),
        }
    }
}
