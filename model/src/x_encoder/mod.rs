//! X-encoder: a vision transformer that maps frames to visual tokens. Each family has a module for
//! its first part, which makes the tokens of the first block. A dual encoder may have a ResNet
//! instead.

mod clip;
mod head;
mod image;
mod pe;
mod resnet;
mod siglip2;
mod vit;
mod vjepa2;
mod vjepa2_1;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vljepa_kernels::patch_embed::Normalisation;
use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Lengths, Result, Tensor, View, Write};
use vljepa_recipes::schema;

pub use self::head::{AttentionPooling, FramePooling, ImageHead, MeanAttention};
pub use self::image::ImageTower;
pub use self::resnet::{Bottleneck, ResNet};
pub use self::vit::Patches;
pub(crate) use self::vit::{in_squares, indices};
pub use self::vjepa2::VJepa2;
pub use self::vjepa2_1::{Modality, VJepa2_1};
use crate::layers::{Sequence, Stack, StackSaved};
use crate::{Context, Gradients, Group, Keep, LayoutBuilder, ModelError, OnReady, Parameters};

/// Vision transformer of one of the families.
#[derive(Debug)]
pub struct XEncoder {
    /// First part: maps of patches and positions.
    pub family: Family,
    /// Blocks and the final norm.
    pub stack: Stack,
    /// Whether the encoder's weights are trained.
    pub trainable: bool,
    device: Device,
    tables: Mutex<BTreeMap<[usize; 3], Arc<Table>>>,
    gradients_end: usize,
}

/// First part of an encoder: from frames to the tokens of the first block.
#[derive(Debug, Clone, Copy)]
pub enum Family {
    /// V-JEPA 2.
    Vjepa2(VJepa2),
    /// V-JEPA 2.1.
    Vjepa2_1(VJepa2_1),
    /// Perception Encoder's vision tower.
    Pe(ImageTower),
    /// `SigLIP` 2's vision tower.
    Siglip2(ImageTower),
    /// CLIP's vision transformer.
    Clip(ImageTower),
}

/// Visual tokens of a batch of clips.
#[derive(Debug)]
pub struct Visual {
    /// Visual tokens, (b·N, d). Shared because the predictor's backward pass reads them too.
    pub tokens: Arc<Tensor>,
    /// Number of clips, b.
    pub rows: usize,
    /// Number of tokens per clip, N.
    pub tokens_per_row: usize,
    /// State for [`XEncoder::backward`]. `None` if the encoder is frozen or was told to keep
    /// nothing.
    pub saved: Option<XEncoderSaved>,
}

impl Visual {
    /// Visual tokens of the clips `clips`, in this order, for several texts about one clip. Keeps
    /// nothing for a backward pass.
    ///
    /// # Errors
    /// If a number is not below [`Self::rows`], or memory runs out.
    pub fn of_clips(&self, cx: Context<'_>, clips: &[usize]) -> Result<Self> {
        let (rows, n) = (clips.len(), self.tokens_per_row);
        let tokens = if clips.iter().copied().eq(0..self.rows) {
            Arc::clone(&self.tokens)
        } else {
            let index = indices(cx, clips.iter().flat_map(|clip| clip * n..(clip + 1) * n))?;
            let mut tokens = cx.take(&[rows * n, self.tokens.shape()[1]])?;
            let (from, to) = (self.tokens.view(), tokens.view_mut());
            vljepa_kernels::rows::gather(cx.stream, from, index.view(), Write::Set, to)?;
            Arc::new(tokens)
        };
        Ok(Self { tokens, rows, tokens_per_row: n, saved: None })
    }
}

/// State that [`XEncoder::backward`] consumes.
#[derive(Debug)]
pub struct XEncoderSaved {
    patches: Patches,
    sequence: Sequence,
    stack: StackSaved,
}

impl XEncoder {
    /// Registers the encoder's parameters under `name`.
    ///
    /// # Panics
    /// If the family is no vision transformer, which `vljepa_recipes::check::sizes` refuses for
    /// VL-JEPA.
    #[must_use]
    pub fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        model: &schema::Model,
        device: Device,
    ) -> Self {
        let recipe = &model.x_encoder;
        layout.scope(Group::XEncoder, recipe.trainable());
        let sizes = recipe.sizes();
        let (family, stack) = match recipe {
            schema::XEncoder::Vjepa2(keys) => {
                let (family, stack) = VJepa2::new(layout, name, keys, sizes);
                (Family::Vjepa2(family), stack)
            }
            schema::XEncoder::Vjepa2_1(keys) => {
                let (family, stack) = VJepa2_1::new(layout, name, keys, sizes);
                (Family::Vjepa2_1(family), stack)
            }
            schema::XEncoder::Pe(keys) => {
                let form = pe::form(keys, sizes, model.image_size);
                let (tower, stack) = ImageTower::new(layout, name, &form);
                (Family::Pe(tower), stack)
            }
            schema::XEncoder::Siglip2(keys) => {
                let form = siglip2::form(keys, sizes, model.image_size);
                let (tower, stack) = ImageTower::new(layout, name, &form);
                (Family::Siglip2(tower), stack)
            }
            schema::XEncoder::Clip(keys) => {
                let form = clip::form(keys, sizes, model.image_size);
                let (tower, stack) = ImageTower::new(layout, name, &form);
                (Family::Clip(tower), stack)
            }
            schema::XEncoder::ClipResnet(_) => {
                unreachable!("a ResNet is no vision transformer")
            }
        };
        Self {
            family,
            stack,
            trainable: recipe.trainable(),
            device,
            tables: Mutex::new(BTreeMap::new()),
            gradients_end: layout.trainable_end(),
        }
    }

    /// Mean and standard deviation of the pixels that the encoder was trained with.
    #[must_use]
    pub fn normalisation(&self) -> Normalisation {
        match &self.family {
            Family::Vjepa2(_) | Family::Vjepa2_1(_) => Normalisation::IMAGENET,
            Family::Pe(tower) | Family::Siglip2(tower) | Family::Clip(tower) => {
                tower.normalisation()
            }
        }
    }

    /// Visual tokens of `frames` (b, T, H, W, 3), which are u8 pixels, or f32 pixels that are
    /// already normalised. A frozen encoder keeps no state.
    ///
    /// # Errors
    /// If T is not a multiple of the tubelet size, H or W is not a multiple of the patch size, or
    /// memory runs out. A single frame is accepted: V-JEPA 2 repeats it to a tubelet, V-JEPA 2.1
    /// encodes it as an image.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        frames: View<'_>,
        keep: Keep,
    ) -> Result<Visual, ModelError> {
        let keep = keep.only_if(self.trainable);
        let patches = self.patches(cx, frames)?;
        let (x, sequence) = self.embed(cx, parameters, &patches)?;
        let (rows, grid) = (patches.clips, patches.grid);
        let patches = keep.any().then_some(patches);
        let (tokens, stack) = match &self.family {
            Family::Vjepa2(_) | Family::Vjepa2_1(_) => {
                self.stack.forward(cx, parameters, x, &sequence, keep)?
            }
            Family::Pe(tower) | Family::Siglip2(tower) | Family::Clip(tower) => {
                let blocks = (&self.stack, grid);
                (tower.forward(cx, parameters, x, &sequence, blocks)?, None)
            }
        };
        let saved =
            patches.zip(stack).map(|(patches, stack)| XEncoderSaved { patches, sequence, stack });
        let tokens_per_row = tokens.shape()[0].checked_div(rows).unwrap_or(0);
        Ok(Visual { tokens: Arc::new(tokens), rows, tokens_per_row, saved })
    }

    /// Adds to the gradients of all weights, given `d_tokens` (b·N, d), the gradient of the tokens.
    /// Calls `on_ready` whenever more gradients are complete.
    ///
    /// # Errors
    /// If the forward pass kept nothing, shapes disagree, or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: Option<XEncoderSaved>,
        d_tokens: Tensor,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError> {
        const NOTHING: ModelError = ModelError::NothingSaved { part: "x_encoder" };
        let saved = saved.ok_or(NOTHING)?;
        let XEncoderSaved { patches, sequence, stack: saved } = saved;
        let stack = &self.stack;
        let d = stack.backward(cx, parameters, saved, d_tokens, &sequence, gradients, on_ready)?;
        match &self.family {
            Family::Vjepa2(family) => family.backward(cx, &patches, &d, gradients)?,
            Family::Vjepa2_1(family) => family.backward(cx, &patches, &d, gradients)?,
            Family::Pe(_) | Family::Siglip2(_) | Family::Clip(_) => return Err(NOTHING),
        }
        on_ready(gradients, self.gradients_end);
        Ok(())
    }

    /// Frames (b, T, H, W, 3) cut into patches.
    ///
    /// # Errors
    /// Same as [`Self::forward`].
    pub fn patches(&self, cx: Context<'_>, frames: View<'_>) -> Result<Patches> {
        match &self.family {
            Family::Vjepa2(family) => family.patches(cx, frames),
            Family::Vjepa2_1(family) => family.patches(cx, frames),
            Family::Pe(tower) | Family::Siglip2(tower) | Family::Clip(tower) => {
                tower.patches(cx, frames)
            }
        }
    }

    /// Tokens (n, d) of the first block, and the layout of their sequences: clips, or single frames
    /// in a family that encodes each frame by itself.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn embed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        patches: &Patches,
    ) -> Result<(Tensor, Sequence)> {
        let [sequences, tokens] = match &self.family {
            Family::Vjepa2(_) | Family::Vjepa2_1(_) => {
                [patches.clips, patches.grid.iter().product()]
            }
            Family::Pe(tower) | Family::Siglip2(tower) | Family::Clip(tower) => {
                tower.sequences(patches)
            }
        };
        let lengths = Lengths::uniform(self.device, sequences, tokens)?;
        let tables = self.table(patches.grid)?.into_iter().collect();
        let sequence = Sequence::new(self.device, lengths, tables)?;
        let x = match &self.family {
            Family::Vjepa2(family) => family.embed(cx, parameters, patches)?,
            Family::Vjepa2_1(family) => family.embed(cx, parameters, patches)?,
            Family::Pe(tower) | Family::Siglip2(tower) | Family::Clip(tower) => {
                tower.embed(cx, parameters, patches, &sequence)?
            }
        };
        Ok((x, sequence))
    }

    /// Rotary table of a grid, or `None` if the family does not rotate.
    fn table(&self, grid: [usize; 3]) -> Result<Option<Arc<Table>>> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&grid) {
            return Ok(Some(Arc::clone(table)));
        }
        let table = match &self.family {
            Family::Vjepa2(family) => Some(family.table(self.device, grid)?),
            Family::Vjepa2_1(family) => Some(family.table(self.device, grid)?),
            Family::Pe(tower) | Family::Siglip2(tower) | Family::Clip(tower) => {
                tower.table(self.device, grid)?
            }
        };
        Ok(table.map(|table| Arc::clone(tables.entry(grid).or_insert(Arc::new(table)))))
    }
}
