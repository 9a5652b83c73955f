//! V-JEPA 2: the map of patches and the rotary table.
//!
//! Source: `src/models/vision_transformer.py` in facebookresearch/vjepa2; sizes from
//! `facebook/vjepa2-vitl-fpc64-256`.

use vljepa_kernels::activation::Activation;
use vljepa_kernels::patch_embed::Normalisation;
use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Result, Tensor, View, Write, copy};
use vljepa_recipes::schema;

use super::vit::{self, Patches};
use crate::layers::{Linear, Stack};
use crate::{Context, Gradients, LayoutBuilder, Parameters};

/// First part of V-JEPA 2's encoder.
#[derive(Debug, Clone, Copy)]
pub struct VJepa2 {
    /// Map of the pixels of one patch in one tubelet, (d, 3·tubelet·patch·patch).
    pub patch: Linear,
    patch_size: usize,
    tubelet_size: usize,
    head_dim: usize,
    theta: f64,
}

impl VJepa2 {
    /// Registers the encoder's parameters under `name`, last first.
    pub(super) fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        keys: &schema::VJepa2,
        sizes: schema::VisionSizes,
    ) -> (Self, Stack) {
        let blocks = vit::blocks(sizes, keys.layer_norm_eps, Activation::Gelu, true);
        let stack = Stack::plain(layout, name, blocks);
        let pixels = vit::pixels(keys.patch_size, keys.tubelet_size);
        let shape = [keys.hidden_size, pixels];
        let this = Self {
            patch: Linear::new(layout, &format!("{name}.patch_embed"), shape, true),
            patch_size: keys.patch_size,
            tubelet_size: keys.tubelet_size,
            head_dim: keys.hidden_size / keys.num_heads,
            theta: keys.rope_theta,
        };
        (this, stack)
    }

    /// Tubelet, height and width of a patch.
    pub(crate) fn patch_shape(&self) -> [usize; 3] {
        [self.tubelet_size, self.patch_size, self.patch_size]
    }

    /// Patches of clips. A clip shorter than a tubelet is padded to one by repeating its last
    /// frame, as V-JEPA 2 does with single images.
    pub(super) fn patches(&self, cx: Context<'_>, frames: View<'_>) -> Result<Patches> {
        let [_, t, ..] = vit::shape(frames)?;
        let padded;
        let frames = if t < self.tubelet_size {
            padded = self.padded(cx, frames)?;
            padded.view()
        } else {
            frames
        };
        vit::unfold(cx, frames, Normalisation::IMAGENET, self.tubelet_size, self.patch_size)
    }

    /// Clips padded to one tubelet by repeating their last frame.
    fn padded(&self, cx: Context<'_>, frames: View<'_>) -> Result<Tensor> {
        let [b, t, h, w] = vit::shape(frames)?;
        let (tubelet, frame) = (self.tubelet_size, h * w * vit::CHANNELS);
        let mut out = cx.arena.take(frames.dtype(), &[b, tubelet, h, w, vit::CHANNELS])?;
        for clip in 0..b {
            for i in 0..tubelet {
                let from = frames.part((clip * t + i.min(t - 1)) * frame, &[frame]);
                let to = out.view_mut().part((clip * tubelet + i) * frame, &[frame]);
                copy::copy(cx.stream, from, to)?;
            }
        }
        Ok(out)
    }

    pub(super) fn embed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        patches: &Patches,
    ) -> Result<Tensor> {
        let pixels = patches.pixels.view();
        let mut x = cx.take(&[pixels.shape()[0], self.patch.outputs()])?;
        self.patch.forward(cx, parameters, pixels, Write::Set, x.view_mut())?;
        Ok(x)
    }

    pub(super) fn table(&self, device: Device, grid: [usize; 3]) -> Result<Table> {
        Table::axial_tiled(device, self.head_dim, grid, self.theta)
    }

    /// Adds to the gradients of the map, given `d` (b·N, d), the gradient of the embedded patches.
    pub(super) fn backward(
        &self,
        cx: Context<'_>,
        patches: &Patches,
        d: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.patch.backward_weight(cx, patches.pixels.view(), d.view(), gradients)
    }
}
