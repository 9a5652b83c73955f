//! What the families of vision transformers share: frames cut into patches, and blocks.

use vljepa_kernels::attention::Mask;
use vljepa_kernels::gelu::Gelu;
use vljepa_kernels::patch_embed::{self, Normalisation};
use vljepa_kernels::rope::Heads;
use vljepa_kernels::{DType, KernelError, Result, Tensor, View};
use vljepa_recipes::schema::VisionSizes;

use crate::layers::{Activation, Attention, Block, Linear, Mlp, Norm, Stack};
use crate::parameters::root;
use crate::{Context, LayoutBuilder};

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
pub(super) fn indices(cx: Context<'_>, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
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

/// `n` indices that are all 0.
pub(super) fn zeros(cx: Context<'_>, n: usize) -> Result<Tensor> {
    let mut zeros = cx.arena.take(DType::I32, &[n])?;
    zeros.view_mut().fill_zero(cx.stream)?;
    Ok(zeros)
}

/// What distinguishes the blocks of the families.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub sizes: VisionSizes,
    /// Value added to the variance in layer norms.
    pub eps: f32,
    pub gelu: Gelu,
    /// Whether queries and keys are rotated.
    pub rotates: bool,
}

/// Registers blocks and the final norm under `name`, last first.
pub(super) fn stack(layout: &mut LayoutBuilder, name: &str, of: Blocks) -> Stack {
    let norm = Norm::layer(layout, &format!("{name}.norm"), of.sizes.hidden_size, of.eps);
    let block = |i| block(layout, &format!("{name}.layers.{i}"), of);
    let mut blocks: Vec<_> = (0..of.sizes.num_layers).rev().map(block).collect();
    blocks.reverse();
    Stack { blocks, norm }
}

/// Registers a block with biases and layer norms.
fn block(layout: &mut LayoutBuilder, name: &str, of: Blocks) -> Block {
    let Blocks { sizes, eps, gelu, rotates } = of;
    let (d, f) = (sizes.hidden_size, sizes.intermediate_size);
    let heads =
        Heads { query: sizes.num_heads, key_value: sizes.num_heads, dim: d / sizes.num_heads };
    let mut linear =
        |which: &str, shape| Linear::new(layout, &format!("{name}.{which}"), shape, true);
    let down = linear("mlp.fc2", [d, f]);
    let up = linear("mlp.fc1", [f, d]);
    let output = linear("attention.output", [d, d]);
    let qkv = linear("attention.qkv", [3 * d, d]);
    let mut norm = |which: &str| Norm::layer(layout, &format!("{name}.{which}"), d, eps);
    let (mlp_norm, attention_norm) = (norm("mlp_norm"), norm("attention_norm"));
    let scale = root(heads.dim).recip();
    let table = rotates.then_some(0);
    let attention = Attention { qkv, output, heads, norms: None, mask: Mask::Full, scale, table };
    Block {
        attention_norm,
        attention,
        post_attention_norm: None,
        mlp_norm,
        mlp: Mlp { up, down, activation: Activation::Plain(gelu) },
        post_mlp_norm: None,
        gradients_end: layout.trainable_end(),
    }
}
