//! Keys of `family: siglip2_text` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Projection, TextSizes, Update, plain};

/// Published sizes of SigLIP 2's text tower at fixed resolution: values of
/// `model.y_encoder.size`. The sizes do not depend on those of the frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Siglip2TextSize {
    /// `google/siglip2-base-patch16-256`, 282,303,744 parameters.
    B16,
    /// `google/siglip2-large-patch16-256`, 565,570,560 parameters.
    L16,
    /// `google/siglip2-so400m-patch16-256`, 707,782,896 parameters.
    #[default]
    So400m16,
    /// `google/siglip2-giant-opt-patch16-256`, 708,225,648 parameters.
    GOpt16,
}

/// Keys of `family: siglip2_text`, SigLIP 2's text tower: a transformer with attention in both
/// directions, tanh GELU and learned positions. Every text is padded to `context_length` tokens on
/// the right with token 0, and the padding is not masked, because the model was trained so: the
/// embedding of a text is the hidden state of the last position, padding or not, mapped by `head`.
/// The defaults are SO400M/16; `size` chooses another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Siglip2Text {
    /// Number of elements of a token. Default: 1,152.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 27.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,304.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-6.
    pub layer_norm_eps: f32,
    /// Number of rows of the token embedding table. Default: 256,000.
    pub vocab_size: usize,
    /// Number of learned positions, and of the tokens of every text with its padding. Default: 64.
    pub context_length: usize,
    /// Number of elements of a text's embedding after `head`. Default: 1,152.
    pub output_size: usize,
    /// Maximum length of a target in tokens before it is padded, at most `context_length`; longer
    /// targets are cut, but keep the token of their end. Default: the published `context_length`.
    pub max_target_tokens: usize,
    /// Text before each target, in training and evaluation. Unstated; default: empty.
    pub prompt: String,
    /// How training changes the encoder. Default: `frozen`, as in the baselines of the paper
    /// (Tables 1 and 4).
    pub update: Update,
    /// Map from the result of `head` to the shared embedding. Default: `linear`, as in the other
    /// families.
    pub projection: Projection,
    /// `tokenizer.json` of the targets, that of Gemma. A run needs it. A text must become its
    /// tokens and the end of a text (`<eos>`, 1), without a start: `bos="no", eos="sticky"` in the
    /// `big_vision` of the authors, `add_bos_token: false, add_eos_token: true` in transformers.
    /// Texts are lower-cased, as for training and by `Siglip2Tokenizer` of transformers; the
    /// published file does not. The padding in the file is replaced by that of the model.
    pub tokenizer: Option<PathBuf>,
    /// Published file with the initial weights: `model.safetensors` of transformers, which also
    /// holds the vision tower of `x_encoder.family: siglip2`, or the index of several such files.
    /// Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Siglip2Text {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: Siglip2TextSize) -> Self {
        let (hidden_size, num_layers, num_heads, intermediate_size, output_size) = match size {
            Siglip2TextSize::B16 => (768, 12, 12, 3072, 768),
            Siglip2TextSize::L16 => (1024, 24, 16, 4096, 1024),
            Siglip2TextSize::So400m16 => (1152, 27, 16, 4304, 1152),
            Siglip2TextSize::GOpt16 => (1152, 27, 16, 4304, 1536),
        };
        let context_length = 64;
        Self {
            hidden_size,
            num_layers,
            num_heads,
            intermediate_size,
            layer_norm_eps: 1e-6,
            vocab_size: 256_000,
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
            own_maps: (self.hidden_size + 1) * self.output_size,
            output_size: self.output_size,
            ..plain
        }
    }
}

impl Default for Siglip2Text {
    fn default() -> Self {
        Self::of_size(Siglip2TextSize::default())
    }
}
