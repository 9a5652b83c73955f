//! Texts to tokens, by any `tokenizer.json`.

use std::path::Path;

use tokenizers::TruncationParams;

use crate::error::DataError;

/// A `tokenizer.json` and the most tokens a text may have.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Its own padding is switched off (rows are packed), and its truncation is replaced by
    /// `max_tokens`; special tokens of its post-processor stay within that number.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the file is missing or not a tokenizer, or when `max_tokens` is too few for its special tokens.
    pub fn load(path: &Path, max_tokens: usize) -> Result<Self, DataError> {
        let error = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
        let mut inner =
            tokenizers::Tokenizer::from_file(path).map_err(|cause| error(cause.to_string()))?;
        if max_tokens == 0 {
            return Err(error("max_tokens is 0".to_owned()));
        }
        inner.with_padding(None);
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|cause| error(cause.to_string()))?;
        let tokenizer = Self { inner };
        if i32::try_from(tokenizer.vocab_size()).is_err() {
            return Err(error(format!("its {} tokens do not fit i32", tokenizer.vocab_size())));
        }
        Ok(tokenizer)
    }

    /// The tokens of `text`, special tokens of the file's post-processor included.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the file's model refuses the text (a word-level model without an unknown token, say).
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, DataError> {
        let refused =
            |reason: String| DataError::Tokenizer { path: "tokenizer.json".into(), reason };
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|cause| refused(format!("text {text:?}: {cause}")))?;
        encoding
            .get_ids()
            .iter()
            .map(|&id| i32::try_from(id).map_err(|_| refused(format!("token {id} is not an i32"))))
            .collect()
    }

    /// Tokens the file knows, added ones included: one more than the largest id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| usize::try_from(id).map_or(usize::MAX, |id| id + 1))
    }
}

/// 64 bits that stand for a target text, so that equal texts are found across ranks: the first eight bytes of its BLAKE3.
#[must_use]
pub fn target_hash(text: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first)
}
