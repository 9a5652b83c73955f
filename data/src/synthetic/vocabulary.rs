//! Tokenizer of the set, with one token per word and punctuation mark, trained on [`texts::all`].

use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::normalizers::Lowercase;
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder,
};

use super::texts;
use crate::error::DataError;

const UNKNOWN: &str = "[UNK]";
const BEGIN: &str = "[BOS]";
/// Largest number of tokens that training may create.
const LARGEST_VOCABULARY: usize = 512;

/// Contents of `tokenizer.json`. Each text starts with the token `[BOS]`, as with Llama's and
/// Gemma's tokenizers.
pub(super) fn tokenizer_json() -> Result<String, DataError> {
    train()
        .map_err(|error| DataError::Synthetic(format!("the tokenizer cannot be trained: {error}")))
}

fn train() -> tokenizers::Result<String> {
    let model = WordLevel::builder().unk_token(UNKNOWN.to_owned()).build()?;
    let special = [UNKNOWN, BEGIN].map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = WordLevelTrainer::builder()
        .vocab_size(LARGEST_VOCABULARY)
        .show_progress(false)
        .special_tokens(special)
        .build()?;
    let begin = TemplateProcessing::builder()
        .try_single(format!("{BEGIN} $A"))?
        .try_pair(format!("{BEGIN} $A $B:1"))?
        .special_tokens(vec![(BEGIN, 1)])
        .build()?;
    let mut tokenizer = TokenizerBuilder::<
        WordLevel,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(model)
    .with_normalizer(Some(Lowercase.into()))
    .with_pre_tokenizer(Some(Whitespace {}.into()))
    .with_post_processor(Some(begin.into()))
    .with_decoder(None)
    .build()?;
    tokenizer.train(&mut trainer, texts::all().into_iter())?;
    tokenizer.to_string(true)
}
