//! Keys of `family: vjepa2_1` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Interpolation, Transform};

/// Published sizes of V-JEPA 2.1: values of `model.x_encoder.size`. The counts include the norms of
/// three earlier blocks, which only V-JEPA 2.1's own training reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VJepa2_1Size {
    /// `vjepa2_1_vitb_dist_vitG_384.pt`, 86,833,152 parameters.
    VitB,
    /// `vjepa2_1_vitl_dist_vitG_384.pt`, 304,680,960 parameters.
    #[default]
    VitL,
    /// `vjepa2_1_vitg_384.pt`, 1,013,267,968 parameters.
    VitG,
    /// `vjepa2_1_vitG_384.pt`, 1,845,216,768 parameters.
    VitGigantic,
}

impl VJepa2_1Size {
    /// Height and width of the frames that the encoder was trained with, in pixels.
    #[must_use]
    pub fn image_size(self) -> usize {
        match self {
            Self::VitB | Self::VitL | Self::VitG | Self::VitGigantic => 384,
        }
    }
}

/// Keys of `family: vjepa2_1`. The defaults are ViT-L/16, with the sizes of
/// `vjepa2_1_vitl_dist_vitG_384.pt`; `size` chooses those of another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VJepa2_1 {
    /// Height and width of a patch in pixels. Default: 16.
    pub patch_size: usize,
    /// Number of frames that a visual token of a clip covers. A clip of one frame is an image,
    /// whose tokens cover one frame. Default: 2.
    pub tubelet_size: usize,
    /// Number of elements of a visual token. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads. A head, `hidden_size` / `num_heads` wide, must be even and at
    /// least 6 wide, to hold three rotary axes. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,096.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-6.
    pub layer_norm_eps: f32,
    /// Base of the rotary frequencies of each axis (time, row, column). Default: 10,000.
    pub rope_theta: f64,
    /// Number of rows and of columns of patches to which row and column positions are scaled:
    /// those of pretraining, 256 / 16. Default: 16.
    pub rope_grid: usize,
    /// How frames are brought to `model.image_size` in evaluations, and in training unless a source
    /// has its own `transform`. Default: `resize_center_crop`.
    pub transform: Transform,
    /// Filter that resizes frames, in training too. Default: `bilinear`.
    pub interpolation: Interpolation,
    /// Whether the X-encoder is trained. Default: false (paper §3.1: frozen).
    pub trainable: bool,
    /// Published file with the initial weights: a `.pt` of Meta, or a safetensors file with its
    /// tensors' names. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl VJepa2_1 {
    /// Keys of a published model, without its file.
    #[must_use]
    pub fn of_size(size: VJepa2_1Size) -> Self {
        let (hidden_size, num_layers, num_heads, intermediate_size) = match size {
            VJepa2_1Size::VitB => (768, 12, 12, 3072),
            VJepa2_1Size::VitL => (1024, 24, 16, 4096),
            VJepa2_1Size::VitG => (1408, 40, 22, 6144),
            VJepa2_1Size::VitGigantic => (1664, 48, 26, 8192),
        };
        Self {
            patch_size: 16,
            tubelet_size: 2,
            hidden_size,
            num_layers,
            num_heads,
            intermediate_size,
            layer_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_grid: 16,
            transform: Transform::ResizeCenterCrop,
            interpolation: Interpolation::Bilinear,
            trainable: false,
            weights: None,
        }
    }
}

impl Default for VJepa2_1 {
    fn default() -> Self {
        Self::of_size(VJepa2_1Size::default())
    }
}
