//! CLIP's ResNet, the image tower of some dual encoders.
//!
//! Source: `ModifiedResNet` in `clip/model.py` of openai/CLIP. Three convolutions in the stem,
//! means of 2×2 pixels instead of strides, and attention instead of a mean at the end (`head.rs`).
//! Its batch norms are folded into the convolutions when weights are read
//! (`weights/batch_norm.rs`).
//!
//! Features have one row of channels for each pixel. A convolution of 3×3 pixels gathers the rows
//! of the nine neighbours side by side and maps them linearly; the others are linear maps. The
//! tower is frozen, so there is no backward pass.

use vljepa_kernels::activation::{self, Activation};
use vljepa_kernels::{
    KernelError, Lengths, Result, Tensor, View, ViewMut, Write, copy, patch_embed, pooling, rows,
};
use vljepa_recipes::schema::{ClipResnet, Convolution};

use super::{clip, vit};
use crate::layers::Linear;
use crate::{Context, Group, LayoutBuilder, Parameters};

/// Frames that are encoded together. In f32, the rows that a convolution of the stem gathers need
/// 14 MB for each frame of 224².
const FRAMES_AT_ONCE: usize = 16;

/// Rows of zeros before the pixels, of which the first stands for the pixels around a
/// frame. Eight rows keep the pixels aligned to 16 bytes, which vectors of a GPU need.
const MARGIN: usize = 8;

/// Pixels of a convolution's kernel.
const KERNEL: usize = 9;

/// CLIP's ResNet up to its attention pooling.
#[derive(Debug, Clone)]
pub struct ResNet {
    /// Convolutions of the stem, (outputs, 9·inputs). Inputs are ordered by row of the kernel,
    /// column and channel.
    pub stem: [Linear; 3],
    /// Blocks of all stages.
    pub blocks: Vec<Bottleneck>,
    image_size: usize,
}

/// A block: r(shortcut(x) + expand(half(r(spatial(r(reduce(x)))))), where r is ReLU and half is the
/// mean of each 2×2 pixels in a block that halves, otherwise nothing.
#[derive(Debug, Clone, Copy)]
pub struct Bottleneck {
    /// Map of each pixel to the inner width.
    pub reduce: Linear,
    /// Convolution of 3×3 pixels, (inner, 9·inner).
    pub spatial: Linear,
    /// Map of each pixel to four times the inner width.
    pub expand: Linear,
    /// Map of the halved input, or `None` if the block adds its input itself.
    pub shortcut: Option<Linear>,
    halves: bool,
    /// Index of the input's size in [`Neighbourhoods`].
    level: usize,
}

/// Features of the pixels of some frames, one row of channels for each, after [`MARGIN`] rows of
/// zeros.
struct Features(Tensor);

/// Rows that convolutions and means gather, for so many frames. Those of fewer frames come first.
struct Neighbourhoods {
    /// Nine neighbours of each pixel of the stem's first convolution, which has stride 2.
    first: Tensor,
    /// Nine neighbours of each pixel, for frames that were halved 1 to 5 times.
    nine: Vec<Tensor>,
    /// Four pixels of each square, for frames that were halved 1 to 4 times.
    four: Vec<Tensor>,
}

impl ResNet {
    /// Registers the parameters under `name`, last first.
    pub(crate) fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        keys: &ClipResnet,
        image_size: usize,
    ) -> Self {
        layout.scope(Group::XEncoder, false);
        let convolutions = keys.convolutions();
        let mut linear = |name: String, map: Convolution| {
            Linear::new(layout, &name, [map.outputs, map.fan_in()], true)
        };
        let mut blocks = Vec::with_capacity(convolutions.blocks.len());
        for (i, block) in convolutions.blocks.iter().enumerate().rev() {
            let mut map = |part: &str, map| linear(format!("{name}.blocks.{i}.{part}"), map);
            blocks.push(Bottleneck {
                shortcut: block.shortcut.map(|shortcut| map("shortcut", shortcut)),
                expand: map("expand", block.expand),
                spatial: map("spatial", block.spatial),
                reduce: map("reduce", block.reduce),
                halves: block.halves,
                level: block.spatial.halvings - 1,
            });
        }
        blocks.reverse();
        let [first, second, third] = convolutions.stem;
        let mut map = |i: usize, map| linear(format!("{name}.stem.{i}"), map);
        let (third, second, first) = (map(2, third), map(1, second), map(0, first));
        Self { stem: [first, second, third], blocks, image_size }
    }

    /// Features (n, d) of the pixels of the last stage, of all frames of `frames` (b, T, H, W, 3),
    /// which are u8 pixels, or f32 pixels that are already normalised. Also returns the number of
    /// pixels of each frame.
    ///
    /// # Errors
    /// If a frame has another size than the recipe's `image_size`, or memory runs out.
    pub(crate) fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        frames: View<'_>,
    ) -> Result<(Tensor, Lengths)> {
        let [clips, time, height, width] = vit::shape(frames)?;
        let side = self.image_size;
        if [height, width] != [side; 2] {
            return Err(KernelError::Shape {
                operation: "x_encoder::forward",
                what: "frames",
                found: format!("{height}×{width}"),
                needed: format!("{side}×{side}, the size of the learned positions"),
            });
        }
        let count = clips * time;
        let pixels = (side / ClipResnet::STRIDE).pow(2);
        let neighbourhoods = Neighbourhoods::new(cx, count.min(FRAMES_AT_ONCE), side)?;
        let pass = Pass { cx, parameters, neighbourhoods };
        let channels = self.blocks.last().map_or(0, |block| block.expand.outputs());
        let mut out = cx.take(&[count * pixels, channels])?;
        for first in (0..count).step_by(FRAMES_AT_ONCE) {
            let end = count.min(first + FRAMES_AT_ONCE);
            let shape = [end - first, 1, side, side, vit::CHANNELS];
            let some = frames.part(first * side * side * vit::CHANNELS, &shape);
            let mut x = self.through_stem(&pass, some)?;
            for block in &self.blocks {
                x = block.forward(&pass, x)?;
            }
            let to = out.view_mut().rows(first * pixels, end * pixels);
            copy::copy(cx.stream, x.pixels(), to)?;
        }
        Ok((out, Lengths::uniform(cx.arena.device(), count, pixels)?))
    }

    fn through_stem(&self, pass: &Pass<'_>, frames: View<'_>) -> Result<Features> {
        let pixels = frames.len() / vit::CHANNELS;
        let mut x = pass.features(pixels, vit::CHANNELS)?;
        patch_embed::unfold(pass.cx.stream, frames, clip::NORMALISATION, 1, 1, x.pixels_mut())?;
        let Neighbourhoods { first, nine, .. } = &pass.neighbourhoods;
        for (map, (nine, stride)) in
            self.stem.iter().zip([(first, 2), (&nine[0], 1), (&nine[0], 1)])
        {
            x = pass.relu(&pass.convolve(map, &x, nine, stride)?)?;
        }
        pass.halve(&x, 0)
    }
}

impl Bottleneck {
    fn forward(&self, pass: &Pass<'_>, x: Features) -> Result<Features> {
        let inner = pass.relu(&pass.linear(&self.reduce, &x)?)?;
        let nine = &pass.neighbourhoods.nine[self.level];
        let inner = pass.relu(&pass.convolve(&self.spatial, &inner, nine, 1)?)?;
        let [inner, x] = if self.halves {
            [pass.halve(&inner, self.level)?, pass.halve(&x, self.level)?]
        } else {
            [inner, x]
        };
        let mut sum = match &self.shortcut {
            Some(shortcut) => pass.linear(shortcut, &x)?,
            None => x,
        };
        let (cx, inner) = (pass.cx, inner.pixels());
        self.expand.forward(cx, pass.parameters, inner, Write::Add, sum.pixels_mut())?;
        pass.relu(&sum)
    }
}

impl Features {
    /// Number of pixels and of channels.
    fn shape(&self) -> [usize; 2] {
        let shape = self.0.shape();
        [shape[0] - MARGIN, shape[1]]
    }

    /// The rows of the pixels, (n, c).
    fn pixels(&self) -> View<'_> {
        let rows = self.0.shape()[0];
        self.0.view().rows(MARGIN, rows)
    }

    fn pixels_mut(&mut self) -> ViewMut<'_> {
        let rows = self.0.shape()[0];
        self.0.view_mut().rows(MARGIN, rows)
    }
}

/// What the operations of a forward pass need.
struct Pass<'a> {
    cx: Context<'a>,
    parameters: &'a Parameters,
    neighbourhoods: Neighbourhoods,
}

impl Pass<'_> {
    /// Features of pixels that are undefined.
    fn features(&self, pixels: usize, channels: usize) -> Result<Features> {
        let mut rows = self.cx.take(&[MARGIN + pixels, channels])?;
        rows.view_mut().rows(0, MARGIN).fill_zero(self.cx.stream)?;
        Ok(Features(rows))
    }

    /// Linear map of each pixel.
    fn linear(&self, map: &Linear, x: &Features) -> Result<Features> {
        let mut out = self.features(x.shape()[0], map.outputs())?;
        map.forward(self.cx, self.parameters, x.pixels(), Write::Set, out.pixels_mut())?;
        Ok(out)
    }

    /// Convolution of 3×3 pixels with a stride. `nine` holds the rows of all outputs' neighbours.
    fn convolve(
        &self,
        map: &Linear,
        x: &Features,
        nine: &Tensor,
        stride: usize,
    ) -> Result<Features> {
        let cx = self.cx;
        let [pixels, channels] = x.shape();
        let outputs = pixels / (stride * stride);
        let mut gathered = cx.take(&[KERNEL * outputs, channels])?;
        let nine = nine.view().part(0, &[KERNEL * outputs]);
        rows::gather(cx.stream, x.0.view(), nine, Write::Set, gathered.view_mut())?;
        let gathered = gathered.reshaped(&[outputs, KERNEL * channels]);
        let mut out = self.features(outputs, map.outputs())?;
        map.forward(cx, self.parameters, gathered.view(), Write::Set, out.pixels_mut())?;
        Ok(out)
    }

    /// Mean of each 2×2 pixels of frames that were halved `level` + 1 times.
    fn halve(&self, x: &Features, level: usize) -> Result<Features> {
        let cx = self.cx;
        let [pixels, channels] = x.shape();
        let mut squares = cx.take(&[pixels, channels])?;
        let four = self.neighbourhoods.four[level].view().part(0, &[pixels]);
        rows::gather(cx.stream, x.0.view(), four, Write::Set, squares.view_mut())?;
        let mut out = self.features(pixels / 4, channels)?;
        let lengths = Lengths::uniform(cx.arena.device(), pixels / 4, 4)?;
        pooling::forward(cx.stream, squares.view(), &lengths, out.pixels_mut())?;
        Ok(out)
    }

    fn relu(&self, x: &Features) -> Result<Features> {
        let [pixels, channels] = x.shape();
        let mut out = self.features(pixels, channels)?;
        activation::forward(self.cx.stream, x.pixels(), Activation::Relu, out.pixels_mut())?;
        Ok(out)
    }
}

impl Neighbourhoods {
    /// Rows for `frames` frames of `side`².
    fn new(cx: Context<'_>, frames: usize, side: usize) -> Result<Self> {
        let nine = |level: usize| neighbours(cx, frames, side >> level, 1);
        let four = |level: usize| squares(cx, frames, side >> level);
        Ok(Self {
            first: neighbours(cx, frames, side, 2)?,
            nine: (1..=5).map(nine).collect::<Result<_>>()?,
            four: (1..=4).map(four).collect::<Result<_>>()?,
        })
    }
}

/// Rows of the nine neighbours of every `stride`-th pixel in both directions, of frames of `side`².
fn neighbours(cx: Context<'_>, frames: usize, side: usize, stride: usize) -> Result<Tensor> {
    let outputs = side / stride;
    let row = move |i: usize| {
        let (pixel, neighbour) = (i / KERNEL, i % KERNEL);
        let (frame, pixel) = (pixel / (outputs * outputs), pixel % (outputs * outputs));
        // Neighbours start one pixel above and left of the pixel.
        let y = (pixel / outputs * stride + neighbour / 3).checked_sub(1);
        let x = (pixel % outputs * stride + neighbour % 3).checked_sub(1);
        match (y, x) {
            (Some(y), Some(x)) if y < side && x < side => MARGIN + (frame * side + y) * side + x,
            _ => 0,
        }
    };
    vit::indices(cx, (0..frames * outputs * outputs * KERNEL).map(row))
}

/// Rows of the pixels of frames of `side`² in the order of squares of 2×2 pixels.
fn squares(cx: Context<'_>, frames: usize, side: usize) -> Result<Tensor> {
    let pixels = side * side;
    let row = move |i: usize| MARGIN + i / pixels * pixels + vit::in_squares(i % pixels, side, 2);
    vit::indices(cx, (0..frames * pixels).map(row))
}
