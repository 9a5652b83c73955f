//! Keys of `family: clip_text` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Projection, TextSizes, Update, plain};

/// Published sizes of CLIP's text tower: values of `model.y_encoder.size`. The towers of B/32 and
/// B/16 have the same sizes, as have those of L/14 and L/14 at 336 pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipTextSize {
    /// `openai/clip-vit-base-patch32`, 63,428,096 parameters.
    B32,
    /// `openai/clip-vit-base-patch16`, 63,428,096 parameters.
    B16,
    /// `openai/clip-vit-large-patch14`, 123,650,304 parameters.
    #[default]
    L14,
    /// `openai/clip-vit-large-patch14-336`, 123,650,304 parameters.
    #[serde(rename = "l14_336")]
    L14At336,
    /// `OpenAI`'s `RN50` (`timm/resnet50_clip.openai`), 63,690,240 parameters.
    Rn50,
}

/// Keys of `family: clip_text`, CLIP's text tower: a causal transformer with learned positions. The
/// embedding of a text is the hidden state of its last token, which the published tokenizer makes
/// the end of the text, mapped by `text_projection`. The defaults are `OpenAI`'s ViT-L/14; `size`
/// chooses another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipText {
    /// Number of elements of a token. Default: 768.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 12.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 12.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 3,072.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-5.
    pub layer_norm_eps: f32,
    /// Whether GELU is approximated by x·σ(1.702·x), as `hidden_act: quick_gelu` of a published
    /// config says; `hidden_act: gelu` is false. Default: true, as in `OpenAI`'s models.
    pub quick_gelu: bool,
    /// Number of rows of the token embedding table. Default: 49,408.
    pub vocab_size: usize,
    /// Number of learned positions. Default: 77.
    pub context_length: usize,
    /// Number of elements of a text's embedding after `text_projection`. Default: 768.
    pub output_size: usize,
    /// Maximum length of a target in tokens, at most `context_length`; longer targets are cut, but
    /// keep the token of their end. Default: the published `context_length`.
    pub max_target_tokens: usize,
    /// Text before each target, in training and evaluation. Unstated; default: empty.
    pub prompt: String,
    /// How training changes the encoder. Default: `frozen`, as in the baselines of the paper
    /// (Tables 1 and 4).
    pub update: Update,
    /// Map from the result of `text_projection` to the shared embedding. Default: `linear`, as in
    /// the other families.
    pub projection: Projection,
    /// `tokenizer.json` of the targets, that of CLIP. A run needs it. It must put the start
    /// (49,406) and the end (49,407) of a text around it. Texts are lower-cased. The padding in the
    /// file is switched off.
    pub tokenizer: Option<PathBuf>,
    /// Published file with the initial weights: `model.safetensors` of transformers, which also
    /// holds the vision tower of `x_encoder.family: clip`, the index of several such files, or
    /// `open_clip_model.safetensors` of `timm/resnet50_clip.openai`, which also holds the ResNet of
    /// `x_encoder.family: clip_resnet`. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl ClipText {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: ClipTextSize) -> Self {
        let (width, num_heads, output_size) = match size {
            ClipTextSize::B32 | ClipTextSize::B16 => (512, 8, 512),
            ClipTextSize::L14 | ClipTextSize::L14At336 => (768, 12, 768),
            ClipTextSize::Rn50 => (512, 8, 1024),
        };
        let context_length = 77;
        Self {
            hidden_size: width,
            num_layers: 12,
            num_heads,
            intermediate_size: 4 * width,
            layer_norm_eps: 1e-5,
            quick_gelu: true,
            vocab_size: 49_408,
            context_length,
            output_size,
            max_target_tokens: context_length,
            prompt: String::new(),
            update: Update::Frozen,
            projection: Projection::Linear,
            tokenizer: None,
            weights: None,
        }
    }

    /// Sizes of the text transformer.
    pub(super) fn sizes(&self) -> TextSizes {
        let plain = plain([
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.intermediate_size,
            self.vocab_size,
        ]);
        TextSizes {
            positions: self.context_length,
            own_maps: self.hidden_size * self.output_size,
            output_size: self.output_size,
            ..plain
        }
    }
}

impl Default for ClipText {
    fn default() -> Self {
        Self::of_size(ClipTextSize::default())
    }
}
