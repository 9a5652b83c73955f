//! Recipe keys under `model.x_encoder`.

mod clip;
mod clip_resnet;
mod pe;
mod siglip2;
mod vjepa2_1;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::families::{self, Role};
use super::{Interpolation, Transform};
pub use clip::{Clip, ClipSize};
pub use clip_resnet::{ClipResnet, ClipResnetSize, Convolution, ResnetBlock, ResnetConvolutions};
pub use pe::{Pe, PeSize};
pub use siglip2::{Siglip2, Siglip2Size};
pub use vjepa2_1::{VJepa2_1, VJepa2_1Size};

/// Encoder that maps frames to visual tokens. The key `family` chooses one. Default: V-JEPA 2's
/// ViT-L/16 (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum XEncoder {
    /// V-JEPA 2 (arXiv 2506.09985), a video encoder.
    Vjepa2(VJepa2),
    /// V-JEPA 2.1, a video encoder that also encodes images as such.
    Vjepa2_1(VJepa2_1),
    /// Perception Encoder's vision tower (PE-core), an image encoder.
    Pe(Pe),
    /// SigLIP 2's vision tower at fixed resolution (arXiv 2502.14786), an image encoder.
    Siglip2(Siglip2),
    /// CLIP's vision transformer (arXiv 2103.00020), an image encoder.
    Clip(Clip),
    /// CLIP's ResNet (arXiv 2103.00020), an image encoder that only a dual encoder can have.
    ClipResnet(ClipResnet),
}

/// Values of `model.x_encoder.family`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XFamily {
    /// V-JEPA 2, with the keys of [`VJepa2`].
    #[default]
    Vjepa2,
    /// V-JEPA 2.1, with the keys of [`VJepa2_1`].
    Vjepa2_1,
    /// Perception Encoder.
    Pe,
    /// SigLIP 2.
    Siglip2,
    /// CLIP.
    Clip,
    /// CLIP's ResNet.
    ClipResnet,
}

/// Sizes that vision transformers of all families have. A ResNet counts as one without layers: the
/// pixels of its last stage are its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionSizes {
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// Number of frames that a visual token covers.
    pub tubelet_size: usize,
    /// Number of elements of a visual token.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer.
    pub intermediate_size: usize,
}

/// How a frame is made from a picture of any size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preprocessing {
    /// How the picture is brought to a square.
    pub transform: Transform,
    /// Filter that resizes it.
    pub interpolation: Interpolation,
}

impl XEncoder {
    /// Sizes of the vision transformer, or of a ResNet's last stage.
    #[must_use]
    pub fn sizes(&self) -> VisionSizes {
        match self {
            Self::Vjepa2(keys) => VisionSizes {
                patch_size: keys.patch_size,
                tubelet_size: keys.tubelet_size,
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                intermediate_size: keys.intermediate_size,
            },
            Self::Vjepa2_1(keys) => VisionSizes {
                patch_size: keys.patch_size,
                tubelet_size: keys.tubelet_size,
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                intermediate_size: keys.intermediate_size,
            },
            Self::Clip(keys) => VisionSizes {
                patch_size: keys.patch_size,
                tubelet_size: 1,
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                intermediate_size: keys.intermediate_size,
            },
            Self::ClipResnet(keys) => VisionSizes {
                patch_size: ClipResnet::STRIDE,
                tubelet_size: 1,
                hidden_size: 32 * keys.width,
                num_layers: 0,
                num_heads: keys.num_heads,
                intermediate_size: 0,
            },
            Self::Siglip2(keys) => VisionSizes {
                patch_size: keys.patch_size,
                tubelet_size: 1,
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                intermediate_size: keys.intermediate_size,
            },
            Self::Pe(keys) => VisionSizes {
                patch_size: keys.patch_size,
                tubelet_size: 1,
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                intermediate_size: keys.intermediate_size,
            },
        }
    }

    /// How frames are made from pictures in evaluations.
    #[must_use]
    pub fn preprocessing(&self) -> Preprocessing {
        let (transform, interpolation) = match self {
            Self::Vjepa2(keys) => (keys.transform, keys.interpolation),
            Self::Vjepa2_1(keys) => (keys.transform, keys.interpolation),
            Self::Pe(keys) => (keys.transform, keys.interpolation),
            Self::Siglip2(keys) => (keys.transform, keys.interpolation),
            Self::Clip(keys) => (keys.transform, keys.interpolation),
            Self::ClipResnet(keys) => (keys.transform, keys.interpolation),
        };
        Preprocessing { transform, interpolation }
    }

    /// Whether the encoder is trained.
    #[must_use]
    pub fn trainable(&self) -> bool {
        match self {
            Self::Vjepa2(keys) => keys.trainable,
            Self::Vjepa2_1(keys) => keys.trainable,
            Self::Pe(keys) => keys.trainable,
            Self::Siglip2(keys) => keys.trainable,
            Self::Clip(keys) => keys.trainable,
            Self::ClipResnet(keys) => keys.trainable,
        }
    }

    /// Published file with the initial weights, or `None` if they are random.
    #[must_use]
    pub fn weights(&self) -> Option<&Path> {
        match self {
            Self::Vjepa2(keys) => keys.weights.as_deref(),
            Self::Vjepa2_1(keys) => keys.weights.as_deref(),
            Self::Pe(keys) => keys.weights.as_deref(),
            Self::Siglip2(keys) => keys.weights.as_deref(),
            Self::Clip(keys) => keys.weights.as_deref(),
            Self::ClipResnet(keys) => keys.weights.as_deref(),
        }
    }

    /// Height and width, in tokens, of the squares whose mean is a visual token. 1 in families that
    /// keep all tokens.
    #[must_use]
    pub fn pool(&self) -> usize {
        match self {
            Self::Pe(keys) => keys.pool,
            Self::Siglip2(keys) => keys.pool,
            Self::Clip(keys) => keys.pool,
            Self::Vjepa2(_) | Self::Vjepa2_1(_) | Self::ClipResnet(_) => 1,
        }
    }

    /// The same encoder with all its tokens.
    #[must_use]
    pub fn unpooled(&self) -> Self {
        let mut encoder = self.clone();
        match &mut encoder {
            Self::Pe(keys) => keys.pool = 1,
            Self::Siglip2(keys) => keys.pool = 1,
            Self::Clip(keys) => keys.pool = 1,
            Self::Vjepa2(_) | Self::Vjepa2_1(_) | Self::ClipResnet(_) => {}
        }
        encoder
    }

    /// Number of visual tokens that one tubelet becomes, for frames of `image_size`² pixels.
    #[must_use]
    pub fn tokens_of_tubelet(&self, image_size: usize) -> usize {
        let side = image_size / self.sizes().patch_size.max(1);
        match self {
            Self::Vjepa2(_) | Self::Vjepa2_1(_) | Self::ClipResnet(_) => side * side,
            Self::Pe(_) | Self::Siglip2(_) | Self::Clip(_) => (side / self.pool().max(1)).pow(2),
        }
    }

    /// Number of frames to which a picture is repeated at least.
    #[must_use]
    pub fn frames_of_picture(&self) -> usize {
        if self.encodes_images() { 1 } else { self.sizes().tubelet_size }
    }

    /// Whether the encoder has an encoding of its own for a clip of one frame. Otherwise the frames
    /// of a clip are a multiple of the tubelet size.
    #[must_use]
    pub fn encodes_images(&self) -> bool {
        match self {
            Self::Vjepa2(_)
            | Self::Pe(_)
            | Self::Siglip2(_)
            | Self::Clip(_)
            | Self::ClipResnet(_) => false,
            Self::Vjepa2_1(_) => true,
        }
    }
}

impl Default for XEncoder {
    fn default() -> Self {
        Self::Vjepa2(VJepa2::default())
    }
}

impl Role for XEncoder {
    type Family = XFamily;

    fn keys<'de, D: Deserializer<'de>>(family: XFamily, keys: D) -> Result<Self, D::Error> {
        match family {
            XFamily::Vjepa2 => VJepa2::deserialize(keys).map(Self::Vjepa2),
            XFamily::Vjepa2_1 => VJepa2_1::deserialize(keys).map(Self::Vjepa2_1),
            XFamily::Pe => Pe::deserialize(keys).map(Self::Pe),
            XFamily::Siglip2 => Siglip2::deserialize(keys).map(Self::Siglip2),
            XFamily::Clip => Clip::deserialize(keys).map(Self::Clip),
            XFamily::ClipResnet => ClipResnet::deserialize(keys).map(Self::ClipResnet),
        }
    }
}

impl<'de> Deserialize<'de> for XEncoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        families::deserialize(deserializer)
    }
}

/// Published sizes of V-JEPA 2: values of `model.x_encoder.size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VJepa2Size {
    /// `facebook/vjepa2-vitl-fpc64-256`, 303,885,312 parameters.
    #[default]
    VitL,
    /// `facebook/vjepa2-vith-fpc64-256`, 631,648,000 parameters.
    VitH,
    /// `facebook/vjepa2-vitg-fpc64-256`, 1,012,173,952 parameters.
    VitG,
    /// `facebook/vjepa2-vitg-fpc64-384`, the sizes of `vit_g` for frames of 384².
    #[serde(rename = "vit_g_384")]
    VitG384,
}

impl VJepa2Size {
    /// Height and width of the frames that the encoder was trained with, in pixels.
    #[must_use]
    pub fn image_size(self) -> usize {
        match self {
            Self::VitL | Self::VitH | Self::VitG => 256,
            Self::VitG384 => 384,
        }
    }
}

/// Keys of `family: vjepa2`. The defaults are ViT-L/16 (paper §3.1), with the sizes of
/// `facebook/vjepa2-vitl-fpc64-256`; `size` chooses those of another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VJepa2 {
    /// Height and width of a patch in pixels. Default: 16.
    pub patch_size: usize,
    /// Number of frames that a visual token covers. Default: 2.
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
    /// How frames are brought to `model.image_size` in evaluations, and in training unless a source
    /// has its own `transform`. Default: `resize_center_crop`.
    pub transform: Transform,
    /// Filter that resizes frames, in training too. Default: `bilinear`.
    pub interpolation: Interpolation,
    /// Whether the X-encoder is trained. Default: false (paper §3.1: frozen).
    pub trainable: bool,
    /// Published file with the initial weights: `model.safetensors` of transformers, the index of
    /// several such files (`model.safetensors.index.json`), or Meta's own `vitl.pt`. Default: none,
    /// which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl VJepa2 {
    /// Keys of a published model, without its file.
    #[must_use]
    pub fn of_size(size: VJepa2Size) -> Self {
        let (hidden_size, num_layers, num_heads, intermediate_size) = match size {
            VJepa2Size::VitL => (1024, 24, 16, 4096),
            VJepa2Size::VitH => (1280, 32, 16, 5120),
            VJepa2Size::VitG | VJepa2Size::VitG384 => (1408, 40, 22, 6144),
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
            transform: Transform::ResizeCenterCrop,
            interpolation: Interpolation::Bilinear,
            trainable: false,
            weights: None,
        }
    }
}

impl Default for VJepa2 {
    fn default() -> Self {
        Self::of_size(VJepa2Size::default())
    }
}
