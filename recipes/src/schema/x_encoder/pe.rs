//! Keys of `family: pe` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Interpolation, Transform};

/// Published sizes of PE-core's vision tower: values of `model.x_encoder.size`. The counts leave
/// out the attention pooling and the projection, which make one vector of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeSize {
    /// `facebook/PE-Core-B16-224`, 85,799,424 parameters.
    B16,
    /// `facebook/PE-Core-L14-336`, 303,507,456 parameters.
    #[default]
    L14,
    /// `facebook/PE-Core-G14-448`, 1,851,736,576 parameters.
    G14,
}

impl PeSize {
    /// Height and width of the frames that the encoder was trained with, in pixels.
    #[must_use]
    pub fn image_size(self) -> usize {
        match self {
            Self::B16 => 224,
            Self::L14 => 336,
            Self::G14 => 448,
        }
    }
}

/// Keys of `family: pe`, Perception Encoder's vision tower, which encodes every frame by itself.
/// The defaults are PE-Core-L14-336; `size` chooses another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pe {
    /// Height and width of a patch in pixels. The learned positions are those of the patches of
    /// `model.image_size`. Default: 14.
    pub patch_size: usize,
    /// Number of elements of a visual token. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads. The width of a head, `hidden_size` / `num_heads`, must be a
    /// multiple of 4, to hold two rotary axes. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,096.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-5.
    pub layer_norm_eps: f32,
    /// Base of the rotary frequencies of both axes (column, row). Default: 10,000.
    pub rope_theta: f64,
    /// Whether a frame has a cls token, which is encoded but is no visual token. Default: true.
    pub cls_token: bool,
    /// Whether the last norm, `ln_post`, is applied to the visual tokens. Default: true.
    pub final_norm: bool,
    /// Height and width, in tokens, of the squares whose mean is a visual token. 2 makes a quarter
    /// as many tokens, as in the models that PE's authors build on it. Default: 1, which keeps all
    /// tokens.
    pub pool: usize,
    /// How frames are brought to `model.image_size` in evaluations, and in training unless a source
    /// has its own `transform`. Default: `squash`.
    pub transform: Transform,
    /// Filter that resizes frames, in training too. Default: `bilinear`.
    pub interpolation: Interpolation,
    /// Whether the X-encoder is trained. Only false is possible (paper §3.1: frozen).
    pub trainable: bool,
    /// Published file with the initial weights, such as `PE-Core-L14-336.pt`. Default: none, which
    /// starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Pe {
    /// Heads of the attention pooling in all sizes (`attn_pooler_heads` in
    /// `core/vision_encoder/config.py` of facebookresearch/perception_models).
    pub const POOLING_HEADS: usize = 8;

    /// Keys of a published model, without its file.
    #[must_use]
    pub fn of_size(size: PeSize) -> Self {
        let (patch_size, hidden_size, num_layers, num_heads, intermediate_size) = match size {
            PeSize::B16 => (16, 768, 12, 12, 3072),
            PeSize::L14 => (14, 1024, 24, 16, 4096),
            PeSize::G14 => (14, 1536, 50, 16, 8960),
        };
        Self {
            patch_size,
            hidden_size,
            num_layers,
            num_heads,
            intermediate_size,
            layer_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            cls_token: size != PeSize::G14,
            final_norm: true,
            pool: 1,
            transform: Transform::Squash,
            interpolation: Interpolation::Bilinear,
            trainable: false,
            weights: None,
        }
    }
}

impl Default for Pe {
    fn default() -> Self {
        Self::of_size(PeSize::default())
    }
}
