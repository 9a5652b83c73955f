//! What the families of vision transformers share: frames cut into patches, and blocks.

use vljepa_kernels::activation::Activation;
use vljepa_kernels::attention::Mask;
use vljepa_kernels::patch_embed::{self, Normalisation};
use vljepa_kernels::{DType, KernelError, Result, Tensor, View};
use vljepa_recipes::schema::VisionSizes;

use crate::Context;
use crate::layers::Plain;

/// Colour channels of a pixel: red, green, blue.
pub(super) const CHANNELS: usize = 3;

/// Frames of a batch of clips, cut into patches.
#[derive(Debug)]
pub struct Patches {
    /// Normalised pixels of each patch in its tubelet, (b·N, 3·tubelet·patch·patch).
    pub pixels: Tensor,
    /// Number of clips, b.
    pub clips: usize,
    /// Number of tubelets, of rows and of columns of patches in a clip. Their product is N.
    pub grid: [usize; 3],
    /// Number of frames of a clip, T.
    pub frames: usize,
}

/// Number of values of a patch in a tubelet.
pub(super) fn pixels(patch_size: usize, tubelet_size: usize) -> usize {
    CHANNELS * tubelet_size * patch_size * patch_size
}

/// Clips, frames of a clip, height and width of `frames` (b, T, H, W, 3).
pub(super) fn shape(frames: View<'_>) -> Result<[usize; 4]> {
    match *frames.shape() {
        [b, t, h, w, CHANNELS] if t > 0 => Ok([b, t, h, w]),
        ref found => Err(KernelError::Shape {
            operation: "x_encoder::forward",
            what: "frames",
            found: format!("{found:?}"),
            needed: "(b, T > 0, H, W, 3)".to_owned(),
        }),
    }
}

/// Cuts frames (b, T, H, W, 3) into patches and normalises bytes.
///
/// # Errors
/// If the frames do not divide into tubelets and patches, or memory runs out.
pub(super) fn unfold(
    cx: Context<'_>,
    frames: View<'_>,
    normalisation: Normalisation,
    tubelet_size: usize,
    patch_size: usize,
) -> Result<Patches> {
    let [clips, t, h, w] = shape(frames)?;
    let grid = [t / tubelet_size, h / patch_size, w / patch_size];
    let n = clips * grid.iter().product::<usize>();
    let mut out = cx.take(&[n, self::pixels(patch_size, tubelet_size)])?;
    let to = out.view_mut();
    patch_embed::unfold(cx.stream, frames, normalisation, tubelet_size, patch_size, to)?;
    Ok(Patches { pixels: out, clips, grid, frames: t })
}

/// Indices of rows on the device.
pub(crate) fn indices(cx: Context<'_>, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let too_many = |row: usize| KernelError::Value {
        operation: "x_encoder::forward",
        what: "tokens",
        found: row.to_string(),
        needed: "fewer than 2^31".to_owned(),
    };
    let index = |row| i32::try_from(row).map_err(|_| too_many(row));
    let rows = rows.map(index).collect::<Result<Vec<_>>>()?;
    let n = rows.len();
    Tensor::from_i32(rows, &[n]).on(cx.arena.device())
}

/// Index of the `i`-th of the elements of a grid, `width` columns wide, in the order of squares of
/// `side`² elements, and of rows and columns in a square.
pub(crate) fn in_squares(i: usize, width: usize, side: usize) -> usize {
    let (square, i) = (i / (side * side), i % (side * side));
    let squares = width / side;
    let row = square / squares * side + i / side;
    let column = square % squares * side + i % side;
    row * width + column
}

/// `n` indices that are all 0.
pub(super) fn zeros(cx: Context<'_>, n: usize) -> Result<Tensor> {
    let mut zeros = cx.arena.take(DType::I32, &[n])?;
    zeros.view_mut().fill_zero(cx.stream)?;
    Ok(zeros)
}

/// Plain blocks of a vision transformer: every token attends to all tokens of its sequence.
pub(super) fn blocks(sizes: VisionSizes, eps: f32, activation: Activation, rotates: bool) -> Plain {
    Plain {
        hidden: sizes.hidden_size,
        layers: sizes.num_layers,
        heads: sizes.num_heads,
        intermediate: sizes.intermediate_size,
        eps,
        activation,
        mask: Mask::Full,
        rotates,
    }
}
