//! X-encoder: V-JEPA 2's vision transformer, which maps frames to visual tokens.
//!
//! Source: `src/models/vision_transformer.py` in facebookresearch/vjepa2; sizes from
//! `facebook/vjepa2-vitl-fpc64-256`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vljepa_kernels::attention::Mask;
use vljepa_kernels::gelu::Gelu;
use vljepa_kernels::patch_embed::{self, Normalisation};
use vljepa_kernels::rope::{Heads, Table};
use vljepa_kernels::{Device, KernelError, Lengths, Result, Tensor, View, Write, copy};
use vljepa_recipes::schema;

use crate::layers::{Activation, Attention, Block, Linear, Mlp, Norm, Sequence, Stack, StackSaved};
use crate::parameters::root;
use crate::{Context, Gradients, Group, Keep, LayoutBuilder, ModelError, OnReady, Parameters};

/// Colour channels of a pixel: red, green, blue.
const CHANNELS: usize = 3;

/// Mean and standard deviation of `ImageNet`'s pixels, with which V-JEPA 2 was trained.
const NORMALISATION: Normalisation =
    Normalisation { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/// Vision transformer of V-JEPA 2.
#[derive(Debug)]
pub struct XEncoder {
    /// Map of the pixels of one patch in one tubelet, (d, 3·tubelet·patch·patch).
    pub patch: Linear,
    /// Blocks and the final norm.
    pub stack: Stack,
    /// Whether the encoder's weights are trained.
    pub trainable: bool,
    patch_size: usize,
    tubelet_size: usize,
    head_dim: usize,
    theta: f64,
    device: Device,
    tables: Mutex<BTreeMap<[usize; 3], Arc<Table>>>,
    gradients_end: usize,
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

/// State that [`XEncoder::backward`] consumes.
#[derive(Debug)]
pub struct XEncoderSaved {
    patches: Tensor,
    sequence: Sequence,
    stack: StackSaved,
}

impl XEncoder {
    /// Registers the encoder's parameters under `name`.
    #[must_use]
    pub fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        recipe: &schema::XEncoder,
        device: Device,
    ) -> Self {
        let schema::XEncoder::Vjepa2(recipe) = recipe;
        layout.scope(Group::XEncoder, recipe.trainable);
        let d = recipe.hidden_size;
        let norm = Norm::layer(layout, &format!("{name}.norm"), d, recipe.layer_norm_eps);
        let block = |i| vit_block(layout, &format!("{name}.layers.{i}"), recipe);
        let mut blocks: Vec<_> = (0..recipe.num_layers).rev().map(block).collect();
        blocks.reverse();
        let pixels = CHANNELS * recipe.tubelet_size * recipe.patch_size * recipe.patch_size;
        let patch = Linear::new(layout, &format!("{name}.patch_embed"), [d, pixels], true);
        Self {
            patch,
            stack: Stack { blocks, norm },
            trainable: recipe.trainable,
            patch_size: recipe.patch_size,
            tubelet_size: recipe.tubelet_size,
            head_dim: d / recipe.num_heads,
            theta: recipe.rope_theta,
            device,
            tables: Mutex::new(BTreeMap::new()),
            gradients_end: layout.trainable_end(),
        }
    }

    /// Visual tokens of `frames` (b, T, H, W, 3), which are u8 pixels, or f32 pixels that are
    /// already normalised.
    ///
    /// A clip shorter than a tubelet is padded to one by repeating its last frame (as V-JEPA 2 does
    /// with single images). A frozen encoder keeps no state.
    ///
    /// # Errors
    /// If T is not a multiple of the tubelet size, H or W is not a multiple of the patch size, or
    /// memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        frames: View<'_>,
        keep: Keep,
    ) -> Result<Visual, ModelError> {
        let keep = keep.only_if(self.trainable);
        let patches = self.patches(cx, frames)?;
        let (x, sequence) = self.embed(cx, parameters, frames, &patches)?;
        let rows = sequence.lengths.rows();
        let patches = keep.any().then_some(patches);
        let (tokens, stack) = self.stack.forward(cx, parameters, x, &sequence, keep)?;
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
        let saved = saved.ok_or(ModelError::NothingSaved { part: "x_encoder" })?;
        let XEncoderSaved { patches, sequence, stack: saved } = saved;
        let stack = &self.stack;
        let d = stack.backward(cx, parameters, saved, d_tokens, &sequence, gradients, on_ready)?;
        self.patch.backward_weight(cx, patches.view(), d.view(), gradients)?;
        on_ready(gradients, self.gradients_end);
        Ok(())
    }

    /// Embedded patches (b·N, d) of `frames`, before the first block, and the layout of their
    /// sequences.
    ///
    /// # Errors
    /// Same as [`Self::forward`].
    pub fn embed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        frames: View<'_>,
        patches: &Tensor,
    ) -> Result<(Tensor, Sequence)> {
        let [b, t, h, w] = [0, 1, 2, 3].map(|i| frames.shape()[i]);
        let grid = [
            t.max(self.tubelet_size) / self.tubelet_size,
            h / self.patch_size,
            w / self.patch_size,
        ];
        let mut x = cx.take(&[patches.shape()[0], self.patch.outputs()])?;
        self.patch.forward(cx, parameters, patches.view(), Write::Set, x.view_mut())?;
        let lengths = Lengths::uniform(self.device, b, grid.iter().product())?;
        Ok((x, Sequence::new(self.device, lengths, vec![self.table(grid)?])?))
    }

    /// Normalised pixels of each patch, (b·N, 3·tubelet·patch·patch).
    ///
    /// # Errors
    /// Same as [`Self::forward`].
    pub fn patches(&self, cx: Context<'_>, frames: View<'_>) -> Result<Tensor> {
        let &[b, t, h, w, channels] = frames.shape() else {
            return Err(bad_frames(frames.shape()));
        };
        if t == 0 || channels != CHANNELS {
            return Err(bad_frames(frames.shape()));
        }
        let padded;
        let frames = if t < self.tubelet_size {
            padded = self.padded(cx, frames)?;
            padded.view()
        } else {
            frames
        };
        let per_clip =
            frames.shape()[1] / self.tubelet_size * (h / self.patch_size) * (w / self.patch_size);
        let mut patches = cx.take(&[b * per_clip, self.patch.inputs()])?;
        patch_embed::unfold(
            cx.stream,
            frames,
            NORMALISATION,
            self.tubelet_size,
            self.patch_size,
            patches.view_mut(),
        )?;
        Ok(patches)
    }

    /// Clips padded to one tubelet by repeating their last frame.
    fn padded(&self, cx: Context<'_>, frames: View<'_>) -> Result<Tensor> {
        let &[b, t, h, w, channels] = frames.shape() else {
            return Err(bad_frames(frames.shape()));
        };
        let (tubelet, frame) = (self.tubelet_size, h * w * channels);
        let mut out = cx.arena.take(frames.dtype(), &[b, tubelet, h, w, channels])?;
        for clip in 0..b {
            for i in 0..tubelet {
                let from = frames.part((clip * t + i.min(t - 1)) * frame, &[frame]);
                let to = out.view_mut().part((clip * tubelet + i) * frame, &[frame]);
                copy::copy(cx.stream, from, to)?;
            }
        }
        Ok(out)
    }

    fn table(&self, grid: [usize; 3]) -> Result<Arc<Table>> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&grid) {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(Table::axial_tiled(self.device, self.head_dim, grid, self.theta)?);
        Ok(Arc::clone(tables.entry(grid).or_insert(table)))
    }
}

fn bad_frames(found: &[usize]) -> KernelError {
    KernelError::Shape {
        operation: "x_encoder::forward",
        what: "frames",
        found: format!("{found:?}"),
        needed: "(b, T > 0, H, W, 3)".to_owned(),
    }
}

/// Registers a block of the vision transformer.
fn vit_block(layout: &mut LayoutBuilder, name: &str, recipe: &schema::VJepa2) -> Block {
    let (d, f) = (recipe.hidden_size, recipe.intermediate_size);
    let heads =
        Heads { query: recipe.num_heads, key_value: recipe.num_heads, dim: d / recipe.num_heads };
    let mut linear =
        |which: &str, shape| Linear::new(layout, &format!("{name}.{which}"), shape, true);
    let down = linear("mlp.fc2", [d, f]);
    let up = linear("mlp.fc1", [f, d]);
    let output = linear("attention.output", [d, d]);
    let qkv = linear("attention.qkv", [3 * d, d]);
    let mut norm =
        |which: &str| Norm::layer(layout, &format!("{name}.{which}"), d, recipe.layer_norm_eps);
    let (mlp_norm, attention_norm) = (norm("mlp_norm"), norm("attention_norm"));
    let scale = root(heads.dim).recip();
    let attention =
        Attention { qkv, output, heads, norms: None, mask: Mask::Full, scale, table: 0 };
    Block {
        attention_norm,
        attention,
        post_attention_norm: None,
        mlp_norm,
        mlp: Mlp { up, down, activation: Activation::Plain(Gelu::Erf) },
        post_mlp_norm: None,
        gradients_end: layout.trainable_end(),
    }
}
