//! Converts texts to tokens with a `tokenizer.json`.

use std::path::Path;

use tokenizers::TruncationParams;

use crate::error::DataError;

/// Tokenizer read from a `tokenizer.json`, with a limit on the number of tokens per text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. The padding in the file is switched off, because rows are packed.
    /// The truncation in the file is replaced by `max_tokens`, which includes the special tokens
    /// that the post-processor adds.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the file is missing or not a tokenizer, or if `max_tokens`
    /// leaves no room next to the special tokens.
    pub fn load(path: &Path, max_tokens: usize) -> Result<Self, DataError> {
        let error = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
        let mut inner =
            tokenizers::Tokenizer::from_file(path).map_err(|cause| error(cause.to_string()))?;
        inner.with_padding(None);
        let around = inner.encode_fast("", true).map_err(|cause| error(cause.to_string()))?.len();
        if max_tokens <= around {
            return Err(error(format!(
                "it adds {around} special tokens to every text, so max_tokens {max_tokens} leaves no room"
            )));
        }
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|cause| error(cause.to_string()))?;
        let tokenizer = Self { inner };
        if i32::try_from(tokenizer.vocab_size()).is_err() {
            return Err(error(format!("its {} token ids do not fit i32", tokenizer.vocab_size())));
        }
        Ok(tokenizer)
    }

    /// Tokens of `text`, including the special tokens that the file's post-processor adds. An empty
    /// text has no tokens at all, not even special ones: an empty query means query-free training
    /// (paper §3.2).
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the file's model rejects the text, as a word-level model without
    /// an unknown token may do.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, DataError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let refused =
            |reason: String| DataError::Tokenizer { path: "tokenizer.json".into(), reason };
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|cause| refused(format!("cannot encode {text:?}: {cause}")))?;
        encoding
            .get_ids()
            .iter()
            .map(|&id| {
                i32::try_from(id).map_err(|_| refused(format!("token id {id} does not fit i32")))
            })
            .collect()
    }

    /// Size of the vocabulary, including added tokens: one more than the largest token id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| usize::try_from(id).map_or(usize::MAX, |id| id + 1))
    }
}

/// 64-bit hash of a target text, by which ranks find equal texts: the first eight bytes of its
/// BLAKE3 hash.
#[must_use]
pub fn target_hash(text: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::{Tokenizer, target_hash};
    use crate::fixtures::write_tokenizer;

    #[test]
    fn the_files_post_processor_is_obeyed_and_its_tokens_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        let encode =
            |max_tokens, text| Tokenizer::load(&path, max_tokens).unwrap().encode(text).unwrap();
        // `[BOS] a picture number [UNK] [EOS]`, without the file's padding to 20 tokens.
        assert_eq!(encode(512, "a picture number zebra"), [1, 3, 4, 5, 0, 2]);
        assert_eq!(encode(4, "a picture number zebra"), [1, 3, 4, 2]);
        assert!(encode(512, "").is_empty(), "a query-free sample has no token, not even [BOS]");
        assert_eq!(Tokenizer::load(&path, 8).unwrap().vocab_size(), 12);
    }

    #[test]
    fn files_that_are_no_tokenizer_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        assert!(Tokenizer::load(&path, 0).unwrap_err().to_string().contains("max_tokens"));
        std::fs::write(&path, b"{}").unwrap();
        let error = Tokenizer::load(&path, 8).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn equal_texts_have_equal_hashes() {
        assert_eq!(target_hash("a red circle"), target_hash("a red circle"));
        assert_ne!(target_hash("a red circle"), target_hash("a red ring"));
        // BLAKE3 of the empty input starts with af1349b9 f5f9a1a6 (test vectors of the reference
        // implementation).
        assert_eq!(
            target_hash(""),
            u64::from_le_bytes([0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6])
        );
    }
}
