//! Vision towers that encode every frame by itself, with learned positions. The tokens of a frame
//! may be pooled. The towers end before the pooling that would make one vector of a frame
//! (`head.rs`).
//!
//! They are frozen, so there is no backward pass.

use vljepa_kernels::activation::Activation;
use vljepa_kernels::patch_embed::Normalisation;
use vljepa_kernels::rope::Table;
use vljepa_kernels::{
    Device, KernelError, Lengths, Result, Tensor, View, Write, copy, embedding, pooling, rows,
};
use vljepa_recipes::schema::VisionSizes;

use super::vit::{self, Patches};
use crate::layers::{Linear, Norm, Sequence, Stack};
use crate::{Context, LayoutBuilder, Parameters, Weight};

/// Mean and standard deviation of pixels with which PE and `SigLIP` 2 were trained.
pub(super) const HALVES: Normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };

/// Parts of an image encoder around its blocks.
#[derive(Debug, Clone, Copy)]
pub struct ImageTower {
    /// Map of the pixels of one patch, (d, 3·patch·patch).
    pub patch: Linear,
    /// First token of every frame, (1, d), or `None` if the model has no cls token.
    pub cls: Option<Weight>,
    /// Learned position of each token of a frame, (tokens, d). The cls token is the first.
    pub positions: Weight,
    /// Norm before the first block, or `None` if the model has none.
    pub first_norm: Option<Norm>,
    normalisation: Normalisation,
    patch_size: usize,
    head_dim: usize,
    rope_theta: Option<f64>,
    final_norm: bool,
    pool: usize,
}

/// What distinguishes the families of image encoders.
pub(super) struct Form {
    pub sizes: VisionSizes,
    pub image_size: usize,
    pub normalisation: Normalisation,
    pub layer_norm_eps: f32,
    pub activation: Activation,
    pub patch_bias: bool,
    pub cls_token: bool,
    pub first_norm: bool,
    /// Base of the rotary frequencies of columns and rows, or `None` without rotations.
    pub rope_theta: Option<f64>,
    /// Whether the last norm is applied.
    pub final_norm: bool,
    /// Height and width of the squares of tokens whose mean is a visual token.
    pub pool: usize,
}

impl ImageTower {
    /// Registers the encoder's parameters under `name`, last first.
    pub(super) fn new(layout: &mut LayoutBuilder, name: &str, form: &Form) -> (Self, Stack) {
        let Form { sizes, layer_norm_eps: eps, activation, .. } = *form;
        let d = sizes.hidden_size;
        let blocks = vit::blocks(sizes, eps, activation, form.rope_theta.is_some());
        let stack = Stack::plain(layout, name, blocks);
        let first_norm =
            form.first_norm.then(|| Norm::layer(layout, &format!("{name}.first_norm"), d, eps));
        let tokens = (form.image_size / sizes.patch_size).pow(2) + usize::from(form.cls_token);
        let table = |layout: &mut LayoutBuilder, which: &str, rows| {
            layout.add_table(format!("{name}.{which}"), [rows, d], 1.0)
        };
        let positions = table(layout, "positions", tokens);
        let cls = form.cls_token.then(|| table(layout, "cls", 1));
        let shape = [d, vit::pixels(sizes.patch_size, 1)];
        let patch = Linear::new(layout, &format!("{name}.patch_embed"), shape, form.patch_bias);
        let this = Self {
            patch,
            cls,
            positions,
            first_norm,
            normalisation: form.normalisation,
            patch_size: sizes.patch_size,
            head_dim: d / sizes.num_heads,
            rope_theta: form.rope_theta,
            final_norm: form.final_norm,
            pool: form.pool,
        };
        (this, stack)
    }

    /// Height and width of a patch in pixels.
    pub(crate) fn patch_size(&self) -> usize {
        self.patch_size
    }

    pub(super) fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    pub(super) fn patches(&self, cx: Context<'_>, frames: View<'_>) -> Result<Patches> {
        vit::unfold(cx, frames, self.normalisation, 1, self.patch_size)
    }

    /// Number of sequences, one for each frame, and of the tokens of a sequence.
    pub(super) fn sequences(&self, patches: &Patches) -> [usize; 2] {
        let [time, height, width] = patches.grid;
        [patches.clips * time, height * width + usize::from(self.cls.is_some())]
    }

    /// Tokens of the first block: (cls, patches) + positions, normalised.
    pub(super) fn embed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        patches: &Patches,
        sequence: &Sequence,
    ) -> Result<Tensor> {
        let ([frames, tokens], d) = (self.sequences(patches), self.patch.outputs());
        if tokens != self.positions.shape()[0] {
            return Err(KernelError::Shape {
                operation: "x_encoder::forward",
                what: "tokens of a frame",
                found: tokens.to_string(),
                needed: format!("{}, as many as learned positions", self.positions.shape()[0]),
            });
        }
        let mut x = cx.take(&[frames * tokens, d])?;
        let (table, at) = (parameters.of(&self.positions), sequence.positions.view());
        embedding::forward(cx.stream, table, at, 1.0, x.view_mut())?;
        let pixels = patches.pixels.view();
        if let Some(cls) = &self.cls {
            // The rows of all patches, then the row of cls.
            let n = pixels.shape()[0];
            let mut all = cx.take(&[n + 1, d])?;
            let of_patches = all.view_mut().rows(0, n);
            self.patch.forward(cx, parameters, pixels, Write::Set, of_patches)?;
            copy::copy(cx.stream, parameters.of(cls), all.view_mut().rows(n, n + 1))?;
            let row = |i: usize| match i % tokens {
                0 => n,
                patch => i / tokens * (tokens - 1) + patch - 1,
            };
            let index = vit::indices(cx, (0..frames * tokens).map(row))?;
            rows::gather(cx.stream, all.view(), index.view(), Write::Add, x.view_mut())?;
        } else {
            self.patch.forward(cx, parameters, pixels, Write::Add, x.view_mut())?;
        }
        match &self.first_norm {
            Some(norm) => Ok(norm.forward(cx, parameters, x.view())?.0),
            None => Ok(x),
        }
    }

    /// Rotations by column and row, or `None` if the model does not rotate. With a cls token,
    /// positions start at 1, and cls is at 0.
    pub(super) fn table(
        &self,
        device: Device,
        [_, height, width]: [usize; 3],
    ) -> Result<Option<Table>> {
        let Some(theta) = self.rope_theta else { return Ok(None) };
        let first = usize::from(self.cls.is_some());
        let patch = |i: usize| [i % width + first, i / width + first];
        let cls = self.cls.map(|_| [0, 0]);
        #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
        let real = |at: [usize; 2]| at.map(|position| position as f32);
        let all = cls.into_iter().chain((0..height * width).map(patch));
        let coordinates: Vec<_> = all.map(real).collect();
        Table::axial(device, self.head_dim, self.head_dim / 2, &coordinates, theta).map(Some)
    }

    /// Visual tokens of the tokens of all frames. No state is kept, because the encoder is frozen.
    pub(super) fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: Tensor,
        sequence: &Sequence,
        (stack, grid): (&Stack, [usize; 3]),
    ) -> Result<Tensor> {
        let mut x = stack.forward_blocks(cx, parameters, x, sequence)?;
        if self.final_norm {
            x = stack.norm.forward(cx, parameters, x.view())?.0;
        }
        self.pooled(cx, x, sequence.lengths.rows(), grid)
    }

    /// Mean of the tokens of each square, without the cls token, of so many `frames`.
    fn pooled(
        &self,
        cx: Context<'_>,
        x: Tensor,
        frames: usize,
        [_, height, width]: [usize; 3],
    ) -> Result<Tensor> {
        let (pool, cls) = (self.pool, usize::from(self.cls.is_some()));
        if pool == 1 && cls == 0 {
            return Ok(x);
        }
        let patches = height * width;
        let row = |i: usize| {
            let (frame, i) = (i / patches, i % patches);
            frame * (patches + cls) + cls + vit::in_squares(i, width, pool)
        };
        let index = vit::indices(cx, (0..frames * patches).map(row))?;
        let mut ordered = cx.take(&[frames * patches, x.shape()[1]])?;
        rows::gather(cx.stream, x.view(), index.view(), Write::Set, ordered.view_mut())?;
        if pool == 1 {
            return Ok(ordered);
        }
        let means = frames * patches / (pool * pool);
        let lengths = Lengths::uniform(cx.arena.device(), means, pool * pool)?;
        let mut out = cx.take(&[means, x.shape()[1]])?;
        pooling::forward(cx.stream, ordered.view(), &lengths, out.view_mut())?;
        Ok(out)
    }
}
