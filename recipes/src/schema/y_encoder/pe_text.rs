//! Keys of `family: pe_text` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Projection, TextSizes, Update, plain};

/// Published sizes of PE-core's text tower: values of `model.y_encoder.size`. The towers of B16 and
/// L14 have the same sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeTextSize {
    /// `facebook/PE-Core-B16-224`, 353,986,560 parameters.
    B16,
    /// `facebook/PE-Core-L14-336`, 353,986,560 parameters.
    #[default]
    L14,
    /// `facebook/PE-Core-G14-448`, 537,233,920 parameters.
    G14,
}

/// Keys of `family: pe_text`, Perception Encoder's text tower: a causal transformer of CLIP's form
/// with exact GELU and learned positions. The embedding of a text is the hidden state of its last
/// token, which the published tokenizer makes the end of the text, times `text_projection`. The
/// defaults are PE-Core-L14-336; `size` chooses another published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeText {
    /// Number of elements of a token. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,096.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-5.
    pub layer_norm_eps: f32,
    /// Number of rows of the token embedding table. Default: 49,408.
    pub vocab_size: usize,
    /// Number of learned positions. Default: 32; 72 in G14.
    pub context_length: usize,
    /// Number of elements of a text's embedding after `text_projection`. Default: 1,024.
    pub output_size: usize,
    /// Maximum length of a target in tokens, at most `context_length`; longer targets are cut, but
    /// keep the token of their end. Default: the published `context_length`.
    pub max_target_tokens: usize,
    /// Text before each target, in training and evaluation. Unstated; default: empty.
    pub prompt: String,
    /// How training changes the encoder. Default: `train` (paper §2: "We train the Predictor and
    /// the Y-Encoder jointly").
    pub update: Update,
    /// Map from the result of `text_projection` to the shared embedding. Default: `linear` (paper
    /// §3.1).
    pub projection: Projection,
    /// `tokenizer.json` of the targets, such as that of CLIP. A run needs it. It must put the start
    /// (49,406) and the end (49,407) of a text around it. Texts are lower-cased. The padding in the
    /// file is switched off.
    pub tokenizer: Option<PathBuf>,
    /// Published file with the initial weights, such as `PE-Core-L14-336.pt`, which also holds the
    /// vision tower of `x_encoder.family: pe`. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl PeText {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: PeTextSize) -> Self {
        let (width, num_heads, context_length) = match size {
            PeTextSize::B16 | PeTextSize::L14 => (1024, 16, 32),
            PeTextSize::G14 => (1280, 20, 72),
        };
        Self {
            hidden_size: width,
            num_layers: 24,
            num_heads,
            intermediate_size: 4 * width,
            layer_norm_eps: 1e-5,
            vocab_size: 49_408,
            context_length,
            output_size: width,
            max_target_tokens: context_length,
            prompt: String::new(),
            update: Update::Train,
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

impl Default for PeText {
    fn default() -> Self {
        Self::of_size(PeTextSize::default())
    }
}
