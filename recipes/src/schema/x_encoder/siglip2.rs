//! Keys of `family: siglip2` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Interpolation, Transform};

/// Published sizes of SigLIP 2's vision tower at fixed resolution: values of
/// `model.x_encoder.size`, each for frames of 256². A model for other frames has the same sizes;
/// set `model.image_size` too. The counts leave out the attention pooling, which makes one vector
/// of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Siglip2Size {
    /// `google/siglip2-base-patch16-256`, 85,843,200 parameters.
    B16,
    /// `google/siglip2-large-patch16-256`, 303,361,024 parameters.
    L16,
    /// `google/siglip2-so400m-patch16-256`, 412,649,712 parameters.
    #[default]
    So400m16,
    /// `google/siglip2-giant-opt-patch16-256`, 1,134,838,272 parameters.
    GOpt16,
}

impl Siglip2Size {
    /// Height and width of the frames that the encoder was trained with, in pixels.
    #[must_use]
    pub fn image_size(self) -> usize {
        match self {
            Self::B16 | Self::L16 | Self::So400m16 | Self::GOpt16 => 256,
        }
    }
}

/// Keys of `family: siglip2`, SigLIP 2's vision tower at fixed resolution, which encodes every
/// frame by itself. The defaults are SO400M/16; `size` chooses another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Siglip2 {
    /// Height and width of a patch in pixels. The learned positions are those of the patches of
    /// `model.image_size`. Default: 16.
    pub patch_size: usize,
    /// Number of elements of a visual token. Default: 1,152.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 27.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,304.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-6.
    pub layer_norm_eps: f32,
    /// Height and width, in tokens, of the squares whose mean is a visual token. Default: 1, which
    /// keeps all tokens.
    pub pool: usize,
    /// How frames are brought to `model.image_size` in evaluations, and in training unless a source
    /// has its own `transform`. Default: `squash`.
    pub transform: Transform,
    /// Filter that resizes frames, in training too. Default: `bilinear`, as the
    /// `preprocessor_config.json` of the published models says; `resample: 3` of another one is
    /// `bicubic`.
    pub interpolation: Interpolation,
    /// Whether the X-encoder is trained. Only false is possible (paper §3.1: frozen).
    pub trainable: bool,
    /// Published file with the initial weights: `model.safetensors` of transformers, or the index
    /// of several such files. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Siglip2 {
    /// Keys of a published model, without its file.
    #[must_use]
    pub fn of_size(size: Siglip2Size) -> Self {
        let (hidden_size, num_layers, num_heads, intermediate_size) = match size {
            Siglip2Size::B16 => (768, 12, 12, 3072),
            Siglip2Size::L16 => (1024, 24, 16, 4096),
            Siglip2Size::So400m16 => (1152, 27, 16, 4304),
            Siglip2Size::GOpt16 => (1536, 40, 16, 6144),
        };
        Self {
            patch_size: 16,
            hidden_size,
            num_layers,
            num_heads,
            intermediate_size,
            layer_norm_eps: 1e-6,
            pool: 1,
            transform: Transform::Squash,
            interpolation: Interpolation::Bilinear,
            trainable: false,
            weights: None,
        }
    }
}

impl Default for Siglip2 {
    fn default() -> Self {
        Self::of_size(Siglip2Size::default())
    }
}
