//! V-JEPA 2.1: maps of video and image patches, modality embeddings and the rotary table.
//!
//! Source: `app/vjepa_2_1/models` in facebookresearch/vjepa2. Its encoder differs from V-JEPA 2's
//! in four ways. An image has a map of its own, with one time step. Every token has the learned
//! embedding of its modality added. Rotations repeat the angle within a pair of elements. Row and
//! column positions are scaled to the grid of pretraining.

use vljepa_kernels::activation::Activation;
use vljepa_kernels::patch_embed::Normalisation;
use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Result, Tensor, View, Write, copy, embedding};
use vljepa_recipes::schema;

use super::vit::{self, Patches};
use crate::layers::{Linear, Stack};
use crate::{Context, Gradients, Initial, LayoutBuilder, Parameters, Weight};

/// Standard deviation of the modality embeddings before training, as in the source.
const MODALITY_STD: f32 = 1e-6;

/// First part of V-JEPA 2.1's encoder.
#[derive(Debug, Clone, Copy)]
pub struct VJepa2_1 {
    /// Maps tubelets of clips.
    pub video: Modality,
    /// Maps clips of one frame, in tubelets of one frame.
    pub image: Modality,
    head_dim: usize,
    rope_grid: usize,
    theta: f64,
}

/// How tokens of videos, or of images, are made from patches.
#[derive(Debug, Clone, Copy)]
pub struct Modality {
    /// Map of the pixels of one patch in one tubelet, (d, 3·tubelet·patch·patch).
    pub patch: Linear,
    /// Vector that is added to every token, (d).
    pub embedding: Weight,
    patch_size: usize,
    tubelet_size: usize,
}

impl Modality {
    /// Tubelet, height and width of a patch.
    pub(crate) fn patch_shape(&self) -> [usize; 3] {
        [self.tubelet_size, self.patch_size, self.patch_size]
    }
}

impl VJepa2_1 {
    /// Registers the encoder's parameters under `name`, last first.
    pub(super) fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        keys: &schema::VJepa2_1,
        sizes: schema::VisionSizes,
    ) -> (Self, Stack) {
        let blocks = vit::blocks(sizes, keys.layer_norm_eps, Activation::Gelu, true);
        let stack = Stack::plain(layout, name, blocks);
        let mut modality = |which: &str, tubelet_size| {
            let shape = [keys.hidden_size, vit::pixels(keys.patch_size, tubelet_size)];
            let patch = Linear::new(layout, &format!("{name}.{which}.patch_embed"), shape, true);
            let initial = Initial::Normal { std: MODALITY_STD };
            let embedding =
                layout.add(format!("{name}.{which}.embedding"), &[keys.hidden_size], initial);
            Modality { patch, embedding, patch_size: keys.patch_size, tubelet_size }
        };
        let this = Self {
            video: modality("video", keys.tubelet_size),
            image: modality("image", 1),
            head_dim: keys.hidden_size / keys.num_heads,
            rope_grid: keys.rope_grid,
            theta: keys.rope_theta,
        };
        (this, stack)
    }

    /// Patches of clips; a clip of one frame is an image.
    pub(super) fn patches(&self, cx: Context<'_>, frames: View<'_>) -> Result<Patches> {
        let [_, t, ..] = vit::shape(frames)?;
        let [tubelet, patch, _] = self.modality(t).patch_shape();
        vit::unfold(cx, frames, Normalisation::IMAGENET, tubelet, patch)
    }

    pub(super) fn embed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        patches: &Patches,
    ) -> Result<Tensor> {
        let Modality { patch, embedding, .. } = self.modality(patches.frames);
        let (pixels, d) = (patches.pixels.view(), patch.outputs());
        let n = pixels.shape()[0];
        let mut x = cx.take(&[n, d])?;
        // Every row is row 0 of a table with one row.
        let (table, zeros) = (parameters.of(embedding).reshaped(&[1, d]), vit::zeros(cx, n)?);
        embedding::forward(cx.stream, table, zeros.view(), 1.0, x.view_mut())?;
        patch.forward(cx, parameters, pixels, Write::Add, x.view_mut())?;
        Ok(x)
    }

    pub(super) fn table(&self, device: Device, grid: [usize; 3]) -> Result<Table> {
        let axis = 2 * (self.head_dim / 3 / 2);
        Table::axial(device, self.head_dim, axis, &positions(grid, self.rope_grid), self.theta)
    }

    /// Adds to the gradients of the clips' modality, given `d` (b·N, d), the gradient of the
    /// embedded patches. The other modality has no part in the tokens.
    pub(super) fn backward(
        &self,
        cx: Context<'_>,
        patches: &Patches,
        d: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Modality { patch, embedding, .. } = self.modality(patches.frames);
        patch.backward_weight(cx, patches.pixels.view(), d.view(), gradients)?;
        let Some(bias) = &patch.bias else { return Ok(()) };
        // A token is the product plus bias plus embedding, so both have the same gradient: the sum
        // over all tokens.
        let (d_bias, d_embedding) = gradients.pair(bias, embedding);
        copy::copy(cx.stream, d_bias.as_view(), d_embedding)
    }

    /// Modality of clips of so many frames.
    fn modality(&self, frames: usize) -> &Modality {
        if frames == 1 { &self.image } else { &self.video }
    }
}

/// Time, row and column of the tokens of `grid`. Rows and columns are scaled so that the last is at
/// `rope_grid` − 1 whatever their number, except for a single row or column, which stays at 0.
fn positions([time, height, width]: [usize; 3], rope_grid: usize) -> Vec<[f32; 3]> {
    #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
    let real = |n: usize| n as f32;
    let scaled = |at: usize, of: usize| real(at) * real(rope_grid - 1) / real((of - 1).max(1));
    let at = |i: usize| (i / (height * width), i / width % height, i % width);
    let position = |(t, h, w)| [real(t), scaled(h, height), scaled(w, width)];
    (0..time * height * width).map(|i| position(at(i))).collect()
}
