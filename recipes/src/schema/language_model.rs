//! Recipe keys under `model.language_model`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Llama3Scaling, LlamaSize, Predictor, Search};

/// Values of `model.language_model.family`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LanguageModelFamily {
    /// Llama-3.2 with causal attention. Its output map is the token table.
    #[default]
    Llama,
}

/// Language model of a VLM, which writes the answer behind the visual tokens and the question. Only
/// `kind: vlm` has it. The defaults are Llama-3.2-1B with all its layers trained (paper §4.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanguageModel {
    /// Family of the layers. Default: `llama`.
    pub family: LanguageModelFamily,
    /// Number of elements of a token. Default: 2,048 (Llama-3.2-1B).
    pub hidden_size: usize,
    /// Number of layers. Default: 16 (Llama-3.2-1B).
    pub num_layers: usize,
    /// Number of query heads. A multiple of `num_kv_heads`. Default: 32 (Llama-3.2-1B).
    pub num_heads: usize,
    /// Number of key/value heads. Default: 8 (Llama-3.2-1B).
    pub num_kv_heads: usize,
    /// Number of elements of a head; even. Default: 64 (Llama-3.2-1B).
    pub head_dim: usize,
    /// Number of elements of the gated MLP's hidden layer. Default: 8,192 (Llama-3.2-1B).
    pub intermediate_size: usize,
    /// Value added to the mean square in RMS norms. Default: 1e-5 (Llama-3.2-1B).
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies. Default: 500,000 (Llama-3.2-1B).
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies; `null` leaves them unscaled. Default: that of
    /// Llama-3.2-1B.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Number of rows of the token embedding table. Default: 128,256 (Llama-3.2-1B).
    pub vocab_size: usize,
    /// Number of layers that are trained, counted from the last; with at least one, the final norm
    /// is trained too. `null` trains all. With 0 and `train_embeddings: false` only the projector
    /// is trained, as in PLM's first stage. Default: `null` (PLM's later stages).
    pub trained_layers: Option<usize>,
    /// Whether the token table is trained, which is also the output map. Default: true (PLM's later
    /// stages).
    pub train_embeddings: bool,
    /// TemplateTexts around visual tokens, question and answer. Default: `plm_sft`.
    pub template: Template,
    /// Most tokens of a question, without the template. Longer questions are cut. PLM leaves out
    /// samples that do not fit its sequences; cutting keeps the order of samples independent of
    /// their texts. Unstated; default: 512.
    pub max_question_tokens: usize,
    /// Most tokens of an answer, without the template. Longer answers are cut, in training and when
    /// they are written. Unstated; default: 512.
    pub max_answer_tokens: usize,
    /// Search for the text of an answer. Unstated; default: `greedy`.
    pub search: Search,
    /// `tokenizer.json` of all texts. A run needs it. The special tokens that the file adds to
    /// every text are left out: the template has its own.
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl LanguageModel {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: LlamaSize) -> Self {
        let Predictor {
            hidden_size,
            layers: [_, num_layers],
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            vocab_size,
            ..
        } = Predictor::of_size(size);
        Self {
            family: LanguageModelFamily::Llama,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            vocab_size,
            trained_layers: None,
            train_embeddings: true,
            template: Template::default(),
            max_question_tokens: 512,
            max_answer_tokens: 512,
            search: Search::Greedy,
            tokenizer: None,
            weights: None,
        }
    }

    /// Number of layers that are trained, at most all.
    #[must_use]
    pub fn trained_layers(&self) -> usize {
        self.trained_layers.unwrap_or(self.num_layers).min(self.num_layers)
    }
}

impl Default for LanguageModel {
    fn default() -> Self {
        Self::of_size(LlamaSize::default())
    }
}

/// TemplateTexts around the visual tokens, the question and the answer of a sample. A sample is the
/// sequence of `before`, visual tokens, `question`, `answer`; the loss is over all tokens of
/// `answer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Template {
    /// PerceptionLM's template for finetuning (`plm_sft`), with Llama 3's headers and its system
    /// message. The loss covers the assistant's header, the answer and both tokens after it.
    #[default]
    PlmSft,
    /// PerceptionLM's template of its first stage (`warmup`): visual tokens, answer and a line
    /// feed. The question is not read.
    PlmWarmup,
    /// Other texts.
    Custom(TemplateTexts),
}

/// TemplateTexts of a template. Special tokens are written by name, such as `<|eot_id|>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateTexts {
    /// Text before the visual tokens.
    pub before: String,
    /// Text between the visual tokens and the answer, with one `{}` for the question, or without if
    /// questions are not read.
    pub question: String,
    /// Text of the answer, with one `{}` for the answer itself. It must go on after the answer:
    /// that part tells where an answer ends.
    pub answer: String,
}

/// Part of a template's text that stands for the question or the answer.
pub const TEXT: &str = "{}";

impl Template {
    /// TemplateTexts of the template.
    #[must_use]
    pub fn texts(&self) -> TemplateTexts {
        match self {
            Self::PlmSft => TemplateTexts {
                before: format!(
                    "<|begin_of_text|>{}{}<|eot_id|>{}",
                    header("system"),
                    "You are a helpful language and vision assistant. You are able to understand \
                     the visual content that the user provides, and assist the user with a variety \
                     of tasks using natural language.",
                    header("user"),
                ),
                question: format!("{TEXT}<|eot_id|>"),
                answer: format!("{}{TEXT}<|eot_id|><|end_of_text|>", header("assistant")),
            },
            Self::PlmWarmup => TemplateTexts {
                before: String::new(),
                question: String::new(),
                answer: format!("{TEXT}\n"),
            },
            Self::Custom(texts) => texts.clone(),
        }
    }
}

/// Header of Llama 3 before a message.
fn header(role: &str) -> String {
    format!("<|start_header_id|>{role}<|end_header_id|>\n\n")
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn plm_s_templates_are_its_own_to_the_letter() {
        let texts = Template::PlmSft.texts();
        assert_eq!(
            texts.before,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful \
             language and vision assistant. You are able to understand the visual content that the \
             user provides, and assist the user with a variety of tasks using natural \
             language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        );
        assert_eq!(texts.question, "{}<|eot_id|>");
        assert_eq!(
            texts.answer,
            "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|><|end_of_text|>"
        );
        let warmup = Template::PlmWarmup.texts();
        assert_eq!([&*warmup.before, &*warmup.question, &*warmup.answer], ["", "", "{}\n"]);
    }
}
