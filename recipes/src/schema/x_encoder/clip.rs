//! Keys of `family: clip` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Interpolation, Transform};

/// Published sizes of CLIP's vision transformer: values of `model.x_encoder.size`. The counts leave
/// out the projection, which makes one vector of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipSize {
    /// `openai/clip-vit-base-patch32`, 87,456,000 parameters.
    B32,
    /// `openai/clip-vit-base-patch16`, 85,799,424 parameters.
    B16,
    /// `openai/clip-vit-large-patch14`, 303,179,776 parameters.
    #[default]
    L14,
    /// `openai/clip-vit-large-patch14-336`, 303,507,456 parameters.
    #[serde(rename = "l14_336")]
    L14At336,
}

impl ClipSize {
    /// Height and width of the frames that the encoder was trained with, in pixels.
    #[must_use]
    pub fn image_size(self) -> usize {
        match self {
            Self::B32 | Self::B16 | Self::L14 => 224,
            Self::L14At336 => 336,
        }
    }
}

/// Keys of `family: clip`, CLIP's vision transformer, which encodes every frame by itself. The
/// defaults are `OpenAI`'s ViT-L/14; `size` chooses another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clip {
    /// Height and width of a patch in pixels. The learned positions are those of the patches of
    /// `model.image_size`. Default: 14.
    pub patch_size: usize,
    /// Number of elements of a visual token. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,096.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-5.
    pub layer_norm_eps: f32,
    /// Whether GELU is approximated by x·σ(1.702·x), as `hidden_act: quick_gelu` of a published
    /// config says; `hidden_act: gelu` is false. Default: true, as in `OpenAI`'s models.
    pub quick_gelu: bool,
    /// Whether `post_layernorm`, which CLIP applies to its cls token, is applied to the visual
    /// tokens. Default: false, as in the `last_hidden_state` of transformers.
    pub final_norm: bool,
    /// Height and width, in tokens, of the squares whose mean is a visual token. Default: 1, which
    /// keeps all tokens.
    pub pool: usize,
    /// How frames are brought to `model.image_size` in evaluations, and in training unless a source
    /// has its own `transform`. Default: `center_crop`.
    pub transform: Transform,
    /// Filter that resizes frames, in training too. Default: `bicubic`.
    pub interpolation: Interpolation,
    /// Whether the X-encoder is trained. Only false is possible (paper §3.1: frozen).
    pub trainable: bool,
    /// Published file with the initial weights: `model.safetensors` of transformers, or the index
    /// of several such files. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Clip {
    /// Keys of a published model, without its file.
    #[must_use]
    pub fn of_size(size: ClipSize) -> Self {
        let (patch_size, hidden_size, num_layers, num_heads, intermediate_size) = match size {
            ClipSize::B32 => (32, 768, 12, 12, 3072),
            ClipSize::B16 => (16, 768, 12, 12, 3072),
            ClipSize::L14 | ClipSize::L14At336 => (14, 1024, 24, 16, 4096),
        };
        Self {
            patch_size,
            hidden_size,
            num_layers,
            num_heads,
            intermediate_size,
            layer_norm_eps: 1e-5,
            quick_gelu: true,
            final_norm: false,
            pool: 1,
            transform: Transform::CenterCrop,
            interpolation: Interpolation::Bicubic,
            trainable: false,
            weights: None,
        }
    }
}

impl Default for Clip {
    fn default() -> Self {
        Self::of_size(ClipSize::default())
    }
}
