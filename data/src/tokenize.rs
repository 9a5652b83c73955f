//! Converts texts to tokens with a `tokenizer.json`.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::TruncationParams;
use vljepa_recipes::file_kind::FileKind;
use vljepa_recipes::schema::{Model, Predictor, YDecoder};

use crate::error::{DataError, panic_text};

/// Longest part of a text that an error message shows, in characters.
const SHOWN_CHARACTERS: usize = 80;

/// Token that pads texts of a fixed length: `<pad>` of Gemma's vocabulary, which `SigLIP` 2 has.
const PAD: i32 = 0;

/// Tokenizer read from a `tokenizer.json`, with a limit on the number of tokens per text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// Number of rows of the embedding, which must be larger than the ids of a text.
    rows: usize,
    /// Text before each text.
    prompt: String,
    /// Whether texts are lower-cased.
    lower_case: bool,
    /// Number of tokens to which texts are padded, or `None` if they keep their lengths.
    padded_length: Option<usize>,
    /// Tokens before and after each text that a model writes, which has no other special tokens.
    /// `None` for the texts of encoders, which have those of the file's post-processor.
    around: Option<[Vec<i32>; 2]>,
    /// Whether the text itself is left out.
    without_text: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of the recipe's queries.
    ///
    /// # Errors
    /// [`DataError::Recipe`] if the recipe names no tokenizer, or one with more words than
    /// `vocab_size`; or as [`Self::load`].
    pub fn of_queries(model: &Model) -> Result<Self, DataError> {
        let Predictor { tokenizer, max_query_tokens, vocab_size, .. } = &model.predictor;
        Self::of("model.predictor", tokenizer.as_deref(), *max_query_tokens, *vocab_size)
    }

    /// Reads the tokenizer of the recipe's targets.
    ///
    /// # Errors
    /// Same as [`Self::of_queries`].
    pub fn of_targets(model: &Model) -> Result<Self, DataError> {
        let y_encoder = &model.y_encoder;
        let (max_tokens, vocab_size) =
            (y_encoder.max_target_tokens(), y_encoder.sizes().vocab_size);
        let tokenizer = Self::of("model.y_encoder", y_encoder.tokenizer(), max_tokens, vocab_size)?;
        let tokens = tokenizer.encode(y_encoder.prompt())?.len();
        if tokens >= max_tokens {
            let reason = format!("fills all {max_tokens} tokens of a target (max_target_tokens)");
            return Err(DataError::Recipe { key: "model.y_encoder.prompt".to_owned(), reason });
        }
        Ok(Self {
            prompt: y_encoder.prompt().to_owned(),
            lower_case: y_encoder.is_lower_case(),
            padded_length: y_encoder.padded_length(),
            ..tokenizer
        })
    }

    /// Reads the tokenizer of the texts that the recipe's Y-decoder writes. It adds no special
    /// tokens but the end of the text. A text that is cut keeps its end.
    ///
    /// # Errors
    /// [`DataError::Recipe`] if the recipe has no Y-decoder or the tokenizer does not know its end
    /// token, or same as [`Self::of_queries`].
    pub fn of_outputs(model: &Model) -> Result<Self, DataError> {
        let wrong = |key: &str, reason: String| DataError::Recipe { key: key.to_owned(), reason };
        let decoder = model.decoder().ok_or_else(|| {
            wrong("model.kind", "has no Y-decoder; write `kind: y_decoder`".to_owned())
        })?;
        let (tokens, rows) = (decoder.max_tokens(), decoder.vocab_size());
        let tokenizer = Self::of("model.y_decoder", decoder.tokenizer(), tokens, rows)?;
        let end = tokenizer.id("model.y_decoder.end", decoder.end())?;
        let tokenizer = tokenizer.cut_to("model.y_decoder.max_tokens", tokens.saturating_sub(1))?;
        Ok(tokenizer.between([Vec::new(), vec![end]]))
    }

    /// Tokens with which every text of the recipe's Y-decoder starts: those of SONAR's are the end
    /// of a text and the language, those of Llama none.
    ///
    /// # Errors
    /// [`DataError::Recipe`] if the tokenizer does not know one of them.
    pub fn start_of_outputs(&self, decoder: &YDecoder) -> Result<Vec<i32>, DataError> {
        let Some(language) = decoder.language() else { return Ok(Vec::new()) };
        let end = self.id("model.y_decoder.end", decoder.end())?;
        Ok(vec![end, self.id("model.y_decoder.language", language)?])
    }

    /// The tokenizer with texts of at most `max_length` tokens, at least one, as the recipe's `key`
    /// says.
    pub(crate) fn cut_to(mut self, key: &str, max_length: usize) -> Result<Self, DataError> {
        let max_length = max_length.max(1);
        let truncation = TruncationParams { max_length, ..TruncationParams::default() };
        match self.inner.with_truncation(Some(truncation)) {
            Ok(_) => Ok(self),
            Err(cause) => Err(DataError::Recipe { key: key.to_owned(), reason: cause.to_string() }),
        }
    }

    /// The tokenizer with these tokens before and after each text, instead of the special tokens of
    /// the file.
    #[must_use]
    pub(crate) fn between(self, around: [Vec<i32>; 2]) -> Self {
        Self { around: Some(around), ..self }
    }

    /// The tokenizer without the texts themselves: only the tokens around them are left.
    #[must_use]
    pub(crate) fn without_text(self) -> Self {
        Self { without_text: true, ..self }
    }

    /// Tokens before and after each text that a model writes. `None` for texts of encoders.
    #[must_use]
    pub fn around(&self) -> Option<&[Vec<i32>; 2]> {
        self.around.as_ref()
    }

    /// Id of a token that the recipe's `key` names.
    pub(crate) fn id(&self, key: &str, token: &str) -> Result<i32, DataError> {
        let wrong = |reason: String| DataError::Recipe { key: key.to_owned(), reason };
        let id = self
            .inner
            .token_to_id(token)
            .ok_or_else(|| wrong(format!("{} has no token `{token}`", self.path.display())))?;
        let ids = self.in_rows(&[id], &format!("`{token}`")).map_err(wrong)?;
        Ok(ids[0])
    }

    pub(crate) fn of(
        part: &str,
        path: Option<&Path>,
        max_tokens: usize,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        let wrong = |key: &str, reason| DataError::Recipe { key: format!("{part}.{key}"), reason };
        let Some(path) = path else {
            return Err(wrong("tokenizer", "must name a tokenizer.json".to_owned()));
        };
        let tokenizer = Self::load(path, max_tokens, vocab_size)?;
        let words = tokenizer.words();
        if words > vocab_size {
            let reason = format!("is {vocab_size}, but {} has {words} tokens", path.display());
            return Err(wrong("vocab_size", reason));
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` for an embedding with `rows` rows. The padding in the file is
    /// switched off, because rows of a batch are packed. The truncation in the file is replaced by
    /// `max_tokens`, which includes the special tokens that the post-processor adds.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the file is missing or not a tokenizer, if `max_tokens` leaves
    /// no room next to the special tokens, or if the embedding has no row for a special token.
    pub fn load(path: &Path, max_tokens: usize, rows: usize) -> Result<Self, DataError> {
        let error = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
        if let Some(FileKind { what, advice }) = FileKind::of(&bytes) {
            return Err(error(format!("the file {what}; {advice}")));
        }
        let mut inner = caught(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|cause| error(format!("it is not a tokenizer.json: {cause}")))?;
        inner.with_padding(None);
        let around = caught(|| inner.encode_fast("", true))
            .map_err(|cause| error(format!("it cannot encode any text: {cause}")))?;
        if max_tokens <= around.len() {
            return Err(error(format!(
                "it adds {} special tokens to every text, so max_tokens {max_tokens} leaves no room",
                around.len()
            )));
        }
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|cause| error(cause.to_string()))?;
        let tokenizer = Self {
            inner,
            path: path.to_owned(),
            rows,
            prompt: String::new(),
            lower_case: false,
            padded_length: None,
            around: None,
            without_text: false,
        };
        tokenizer.in_rows(around.get_ids(), "every text").map_err(error)?;
        Ok(tokenizer)
    }

    /// Tokens of `text` with the recipe's prompt before it, including the special tokens that the
    /// file's post-processor adds. Texts that a model writes have those of [`Self::around`]
    /// instead. Targets are lower-cased and padded as their encoder was trained (`is_lower_case`
    /// and `padded_length` of the recipe's Y-encoder). An empty text of an encoder has no tokens at
    /// all, not even special ones: an empty query means query-free training (paper §3.2).
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the file's model rejects the text, as a word-level model without
    /// an unknown token may do, or if the embedding has no row for a token of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, DataError> {
        let text = if self.without_text { "" } else { text };
        if text.is_empty() {
            return Ok(self.around.as_ref().map(|around| around.concat()).unwrap_or_default());
        }
        let refused = |reason: String| DataError::Tokenizer { path: self.path.clone(), reason };
        let prompted = match self.prompt.as_str() {
            "" => Cow::Borrowed(text),
            prompt => Cow::Owned(format!("{prompt}{text}")),
        };
        let cased = if self.lower_case { prompted.to_lowercase().into() } else { prompted };
        let encoding = caught(|| self.inner.encode_fast(cased, self.around.is_none()))
            .map_err(|cause| refused(format!("it cannot encode {}: {cause}", shown(text))))?;
        let mut ids = self.in_rows(encoding.get_ids(), &shown(text)).map_err(refused)?;
        if let Some([before, after]) = &self.around {
            ids = [before, &ids[..], after].concat();
        }
        if let Some(length) = self.padded_length {
            ids.resize(length, PAD);
        }
        Ok(ids)
    }

    /// Text of tokens, without special tokens.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the file's decoder fails.
    pub fn decode(&self, ids: &[i32]) -> Result<String, DataError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        let text = caught(|| self.inner.decode(&ids, true)).map_err(|cause| {
            let reason = format!("it cannot make a text of tokens: {cause}");
            DataError::Tokenizer { path: self.path.clone(), reason }
        })?;
        Ok(text.trim().to_owned())
    }

    /// Token that ends a text of a Y-decoder. `None` for texts of encoders.
    #[must_use]
    pub fn end(&self) -> Option<i32> {
        self.around.as_ref().and_then(|[_, after]| after.first().copied())
    }

    /// Checks that the embedding has rows for the tokens `ids` of a text.
    fn in_rows(&self, ids: &[u32], text: &str) -> Result<Vec<i32>, String> {
        let in_rows = |&id: &u32| {
            let row = usize::try_from(id).ok().filter(|row| *row < self.rows);
            row.and_then(|row| i32::try_from(row).ok()).ok_or_else(|| {
                let token = self.inner.id_to_token(id).unwrap_or_default();
                format!(
                    "{text} has the token `{token}` (id {id}), but the embedding has only {} rows \
                     (vocab_size)",
                    self.rows
                )
            })
        };
        ids.iter().map(in_rows).collect()
    }

    /// Size of the vocabulary without added tokens: one more than the largest id of a word.
    ///
    /// A published tokenizer may have added tokens that its model has no embeddings for. An
    /// example is `<image_soft_token>`, id 262,144, of `EmbeddingGemma`, whose embedding has
    /// 262,144 rows.
    #[must_use]
    pub fn words(&self) -> usize {
        let added = self.inner.get_added_vocabulary().get_vocab();
        let words = self.inner.get_vocab(true);
        let words = words.iter().filter(|(word, _)| !added.contains_key(*word));
        let largest = words.map(|(_, &id)| id).max();
        largest.map_or(0, |id| usize::try_from(id).map_or(usize::MAX, |id| id + 1))
    }
}

/// Result of a call of the library, which panics on some files, for example if the post-processor
/// uses a special token that it does not define.
fn caught<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("the file is inconsistent: {}", panic_text(&*panic))),
    }
}

/// Beginning of a text in quotes, for messages.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
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
    use vljepa_recipes::schema::{
        ClipText, EmbeddingGemma, LlamaDecoder, Model, ModelKind, PeText, Siglip2Text, YDecoder,
        YEncoder,
    };

    use super::{Tokenizer, target_hash};
    use crate::fixtures::write_tokenizer;

    #[test]
    fn the_files_post_processor_is_obeyed_and_its_tokens_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        let encode = |max_tokens, text| {
            Tokenizer::load(&path, max_tokens, 12).unwrap().encode(text).unwrap()
        };
        // `[BOS] a picture number [UNK] [EOS]`, without the file's padding to 20 tokens.
        assert_eq!(encode(512, "a picture number zebra"), [1, 3, 4, 5, 0, 2]);
        assert_eq!(encode(4, "a picture number zebra"), [1, 3, 4, 2]);
        assert!(encode(512, "").is_empty(), "a query-free sample has no token, not even [BOS]");
        assert_eq!(Tokenizer::load(&path, 8, 12).unwrap().words(), 12);
    }

    #[test]
    fn targets_begin_with_the_prompt_and_queries_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        let mut model = Model::default();
        model.predictor.tokenizer = Some(path.clone());
        let mut targets = |prompt: &str| {
            let keys = EmbeddingGemma { prompt: prompt.to_owned(), ..EmbeddingGemma::default() };
            let (tokenizer, max_target_tokens) = (Some(path.clone()), 6);
            let keys = EmbeddingGemma { tokenizer, max_target_tokens, ..keys };
            model.y_encoder = YEncoder::EmbeddingGemma(keys);
            Tokenizer::of_targets(&model)
        };
        let encode = |tokenizer: Tokenizer| tokenizer.encode("number").unwrap();
        assert_eq!(encode(targets("").unwrap()), [1, 5, 2]);
        let prompted = targets("a picture ").unwrap();
        assert_eq!(prompted.encode("number").unwrap(), [1, 3, 4, 5, 2]);
        assert!(prompted.encode("").unwrap().is_empty());
        let error = targets("a picture a picture a picture ").unwrap_err().to_string();
        assert!(error.contains("model.y_encoder.prompt") && error.contains("all 6 tokens"));
        assert_eq!(encode(Tokenizer::of_queries(&model).unwrap()), [1, 5, 2]);
    }

    fn targets(y_encoder: YEncoder) -> Tokenizer {
        Tokenizer::of_targets(&Model { y_encoder, ..Model::default() }).unwrap()
    }

    #[test]
    fn an_encoder_of_lower_case_gets_it_from_a_tokenizer_that_keeps_capitals() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        let text = std::fs::read_to_string(&path).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        // The capital letter is a word of its own.
        file["model"]["vocab"]["A"] = 11.into();
        file["normalizer"] = serde_json::Value::Null;
        std::fs::write(&path, file.to_string()).unwrap();
        let tokenizer = Some(path);
        let keys = EmbeddingGemma { tokenizer: tokenizer.clone(), ..EmbeddingGemma::default() };
        let kept = targets(YEncoder::EmbeddingGemma(keys));
        assert_eq!(kept.encode("A picture").unwrap(), [1, 11, 4, 2]);
        let prompt = "A ".to_owned();
        let lower = PeText { prompt, tokenizer: tokenizer.clone(), ..PeText::default() };
        let lower = targets(YEncoder::PeText(lower));
        assert_eq!(lower.encode("A Picture").unwrap(), [1, 3, 3, 4, 2]);
        let clip = targets(YEncoder::ClipText(ClipText { tokenizer, ..ClipText::default() }));
        assert_eq!(clip.encode("A Picture").unwrap(), [1, 3, 4, 2]);
    }

    #[test]
    fn a_decoder_s_texts_have_no_special_token_but_their_end_and_are_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Some(write_tokenizer(folder.path()));
        let outputs = |max_tokens, end: &str| {
            let (tokenizer, end) = (tokenizer.clone(), end.to_owned());
            let keys = LlamaDecoder { tokenizer, end, max_tokens, ..LlamaDecoder::default() };
            let decoder = Some(YDecoder::Llama(LlamaDecoder { vocab_size: 12, ..keys }));
            let (kind, model) = (ModelKind::YDecoder, Model::default());
            Tokenizer::of_outputs(&Model { kind, y_decoder: decoder, ..model })
        };
        let tokenizer = outputs(8, "[EOS]").unwrap();
        assert_eq!(tokenizer.encode("a picture number").unwrap(), [3, 4, 5, 2]);
        assert_eq!(outputs(3, "[EOS]").unwrap().encode("a picture number").unwrap(), [3, 4, 2]);
        assert_eq!(tokenizer.decode(&[3, 4, 5, 2]).unwrap(), "a picture number");
        let error = outputs(8, "[END]").unwrap_err().to_string();
        assert!(error.contains("model.y_decoder.end"), "{error}");
        assert!(error.contains("tokenizer.json has no token `[END]`"), "{error}");
    }

    #[test]
    fn siglip_2_s_texts_are_padded_on_the_right_to_all_its_positions() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Some(write_tokenizer(folder.path()));
        let encode = |max_target_tokens, text| {
            let (tokenizer, context_length) = (tokenizer.clone(), 6);
            let keys = Siglip2Text { tokenizer, context_length, ..Siglip2Text::default() };
            let keys = Siglip2Text { max_target_tokens, ..keys };
            targets(YEncoder::Siglip2Text(keys)).encode(text).unwrap()
        };
        assert_eq!(encode(6, "A picture"), [1, 3, 4, 2, 0, 0]);
        // A text that is cut keeps its end.
        assert_eq!(encode(6, "a a a a a"), [1, 3, 3, 3, 3, 2]);
        assert_eq!(encode(4, "a a a a a"), [1, 3, 3, 2, 0, 0]);
    }

    #[test]
    fn files_that_are_no_tokenizer_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        assert!(Tokenizer::load(&path, 0, 12).unwrap_err().to_string().contains("max_tokens"));
        for (bytes, said) in [
            (&b"{}"[..], "it is not a tokenizer.json"),
            (b"", "is empty (0 bytes)"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Tokenizer::load(&path, 8, 12).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json") && error.contains(said), "{error}");
        }
    }

    /// Like `EmbeddingGemma`'s tokenizer: the added token `<image_soft_token>` has the first id
    /// that the embedding has no row for.
    #[test]
    fn an_added_token_beyond_the_embedding_is_an_error_only_of_a_text_that_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        let text = std::fs::read_to_string(&path).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut added = json["added_tokens"][0].clone();
        added["id"] = 12.into();
        added["content"] = "<image_soft_token>".into();
        json["added_tokens"].as_array_mut().unwrap().push(added);
        std::fs::write(&path, json.to_string()).unwrap();
        let tokenizer = Tokenizer::load(&path, 8, 12).unwrap();
        assert_eq!(tokenizer.words(), 12);
        assert_eq!(tokenizer.encode("a picture").unwrap(), [1, 3, 4, 2]);
        let error = tokenizer.encode("a <image_soft_token> picture").unwrap_err().to_string();
        for said in ["tokenizer.json", "`<image_soft_token>` (id 12)", "only 12 rows"] {
            assert!(error.contains(said), "{error}");
        }
        let larger = Tokenizer::load(&path, 8, 13).unwrap();
        assert_eq!(larger.encode("a <image_soft_token>").unwrap(), [1, 3, 12, 2]);
        // A special token of every text has no row.
        let error = Tokenizer::load(&path, 8, 2).unwrap_err().to_string();
        assert!(error.contains("every text has the token `[EOS]` (id 2)"), "{error}");
    }

    #[test]
    fn a_post_processor_with_a_token_that_is_not_defined_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tokenizer(folder.path());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("\"[BOS]\":{", "\"[BOX]\":{", 1)).unwrap();
        let error = Tokenizer::load(&path, 8, 12).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("inconsistent"), "{error}");
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
