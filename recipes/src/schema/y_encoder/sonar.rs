//! Keys of `family: sonar` and its published size.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Projection, TextSizes, Update, plain};

/// Published sizes of SONAR's text encoder: values of `model.y_encoder.size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SonarSize {
    /// `text_sonar_basic_encoder`, 766,091,264 parameters.
    #[default]
    Basic,
}

/// Keys of `family: sonar`, the text encoder of SONAR (arXiv 2308.11466), an encoder of NLLB-200's
/// form with layer norms before both branches, `ReLU` and fixed positions. The embedding of a text
/// is the mean over all its tokens, those of the language and of the end included. (The published
/// code adds 1e-7 to the number of tokens, which f32 cannot resolve.) The defaults are the
/// published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sonar {
    /// Number of elements of a token: even, and at least 4. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 8,192.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-5.
    pub layer_norm_eps: f32,
    /// Number of rows of the token embedding table. Default: 256,206.
    pub vocab_size: usize,
    /// Maximum length of a target in tokens; longer targets are cut. Default: 512 (paper §3.1:
    /// "maximum context length of 512"), near the 514 of the published model.
    pub max_target_tokens: usize,
    /// Text before each target, in training and evaluation. Unstated; default: empty.
    pub prompt: String,
    /// How training changes the encoder. Default: `frozen`, so that the public decoder of SONAR
    /// still decodes its embeddings (paper §4.4, which does not say whether it is trained).
    pub update: Update,
    /// Map from the mean of the tokens to the shared embedding. Default: `linear`, as in the other
    /// families. A decoder of SONAR needs `none`.
    pub projection: Projection,
    /// `tokenizer.json` of the targets. A run needs it. That of NLLB-200 fits: its ids and the rows
    /// of the published `.pt` both have the order of fairseq (`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>`
    /// 3, then pieces and languages). SONAR's own loader moves the first four rows, because its
    /// tokenizer has them in another order. A text must become `eng_Latn`, its tokens, `</s>`. The
    /// file of NLLB may hold the older order, with the language last; transformers writes the right
    /// one: `AutoTokenizer.from_pretrained("facebook/nllb-200-distilled-600M",
    /// src_lang="eng_Latn")`, then `save_pretrained`.
    pub tokenizer: Option<PathBuf>,
    /// Published file with the initial weights: `sonar_text_encoder.pt`, or safetensors with the
    /// names of `M2M100Encoder` of transformers. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Sonar {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: SonarSize) -> Self {
        let SonarSize::Basic = size;
        Self {
            hidden_size: 1024,
            num_layers: 24,
            num_heads: 16,
            intermediate_size: 8192,
            layer_norm_eps: 1e-5,
            vocab_size: 256_206,
            max_target_tokens: 512,
            prompt: String::new(),
            update: Update::Frozen,
            projection: Projection::Linear,
            tokenizer: None,
            weights: None,
        }
    }

    /// Sizes of the text transformer.
    pub(super) fn sizes(&self) -> TextSizes {
        plain([
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.intermediate_size,
            self.vocab_size,
        ])
    }
}

impl Default for Sonar {
    fn default() -> Self {
        Self::of_size(SonarSize::default())
    }
}
