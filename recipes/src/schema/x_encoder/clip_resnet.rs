//! Keys of `family: clip_resnet` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Interpolation, Transform};

/// Published sizes of CLIP's ResNet: values of `model.x_encoder.size`. The counts leave out the
/// attention pooling, and the means and variances of batch norms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipResnetSize {
    /// `OpenAI`'s `RN50` (`timm/resnet50_clip.openai`), 23,527,264 parameters.
    #[default]
    Rn50,
}

impl ClipResnetSize {
    /// Height and width of the frames that the encoder was trained with, in pixels.
    #[must_use]
    pub fn image_size(self) -> usize {
        match self {
            Self::Rn50 => 224,
        }
    }
}

/// Keys of `family: clip_resnet`, CLIP's ResNet (`ModifiedResNet` in `clip/model.py` of
/// openai/CLIP), which encodes every frame by itself. Only a dual encoder can have it. The defaults
/// are `OpenAI`'s `RN50`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipResnet {
    /// Number of channels after the stem, an even number. A pixel of the last stage has 32 times as
    /// many. Default: 64.
    pub width: usize,
    /// Number of blocks of each stage. Default: [3, 4, 6, 3].
    pub layers: [usize; 4],
    /// Number of heads of the attention pooling, a divisor of 32·`width`. Default: 32.
    pub num_heads: usize,
    /// How frames are brought to `model.image_size`. Default: `center_crop`.
    pub transform: Transform,
    /// Filter that resizes frames. Default: `bicubic`.
    pub interpolation: Interpolation,
    /// Whether the X-encoder is trained. Only false is possible, because a dual encoder is not
    /// trained.
    pub trainable: bool,
    /// Published file with the weights: `open_clip_model.safetensors` of
    /// `timm/resnet50_clip.openai`. Default: none, but a run needs it.
    pub weights: Option<PathBuf>,
}

impl ClipResnet {
    /// Height and width in pixels of the square of a frame that becomes one pixel of the last
    /// stage: the stem and each of the last three stages halve frames, the stem twice.
    pub const STRIDE: usize = 32;

    /// Keys of a published model, without its file.
    #[must_use]
    pub fn of_size(size: ClipResnetSize) -> Self {
        let (width, layers, num_heads) = match size {
            ClipResnetSize::Rn50 => (64, [3, 4, 6, 3], 32),
        };
        Self {
            width,
            layers,
            num_heads,
            transform: Transform::CenterCrop,
            interpolation: Interpolation::Bicubic,
            trainable: false,
            weights: None,
        }
    }

    /// Convolutions of the stem, and of each block of the four stages.
    #[must_use]
    pub fn convolutions(&self) -> ResnetConvolutions {
        let convolution =
            |kernel, inputs, outputs, halvings| Convolution { kernel, inputs, outputs, halvings };
        let half = self.width / 2;
        let stem = [(3, half), (half, half), (half, self.width)]
            .map(|(inputs, outputs)| convolution(3, inputs, outputs, 1));
        let (mut inputs, mut halvings) = (self.width, 2);
        let mut blocks = Vec::new();
        for (stage, count) in self.layers.into_iter().enumerate() {
            let inner = self.width << stage;
            for block in 0..count {
                // All stages but the first begin with half as many rows and columns.
                let halves = stage > 0 && block == 0;
                let before = halvings;
                halvings += usize::from(halves);
                let shortcut = (block == 0).then(|| convolution(1, inputs, 4 * inner, halvings));
                blocks.push(ResnetBlock {
                    halves,
                    reduce: convolution(1, inputs, inner, before),
                    spatial: convolution(3, inner, inner, before),
                    expand: convolution(1, inner, 4 * inner, halvings),
                    shortcut,
                });
                inputs = 4 * inner;
            }
        }
        ResnetConvolutions { stem, blocks }
    }
}

impl Default for ClipResnet {
    fn default() -> Self {
        Self::of_size(ClipResnetSize::default())
    }
}

/// Convolutions of a ResNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResnetConvolutions {
    /// Convolutions of the stem. The first has stride 2; their result is halved by a mean.
    pub stem: [Convolution; 3],
    /// Blocks of all stages.
    pub blocks: Vec<ResnetBlock>,
}

/// Convolutions of a block: r(shortcut(x) + expand(half(r(spatial(r(reduce(x)))))), where r is ReLU
/// and half is the mean of each 2×2 pixels in a block that halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResnetBlock {
    /// Whether the block halves rows and columns, by the mean of each 2×2 pixels.
    pub halves: bool,
    /// Map to the inner width.
    pub reduce: Convolution,
    /// Convolution of 3×3 pixels.
    pub spatial: Convolution,
    /// Map of the halved pixels to four times the inner width.
    pub expand: Convolution,
    /// Map of the halved input, in the first block of a stage. Other blocks add their input itself.
    pub shortcut: Option<Convolution>,
}

/// A convolution, followed by a batch norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Height and width of the kernel in pixels, 1 or 3.
    pub kernel: usize,
    /// Channels of its input.
    pub inputs: usize,
    /// Channels of its output.
    pub outputs: usize,
    /// How often the frame was halved to the size of the output.
    pub halvings: usize,
}

impl ResnetConvolutions {
    /// All convolutions.
    pub fn all(&self) -> impl Iterator<Item = Convolution> {
        let of_block = |block: &ResnetBlock| {
            [block.reduce, block.spatial, block.expand].into_iter().chain(block.shortcut)
        };
        self.stem.into_iter().chain(self.blocks.iter().flat_map(of_block))
    }
}

impl Convolution {
    /// Number of inputs of the linear map that the convolution is at each pixel.
    #[must_use]
    pub fn fan_in(self) -> usize {
        self.kernel * self.kernel * self.inputs
    }
}
