//! Texts of a VLM's samples in the recipe's template.

use vljepa_recipes::schema::{Model, TEXT, TemplateTexts};

use crate::error::DataError;
use crate::tokenize::Tokenizer;

/// Recipe key of the template.
const KEY: &str = "model.language_model.template";

/// Most tokens of a text of a template.
const TEMPLATE_TOKENS: usize = 1 << 16;

/// Template of a VLM, in tokens. A sample is the sequence of `before`, visual tokens, question and
/// answer.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Tokens before the visual tokens.
    pub before: Vec<i32>,
    /// Tokenizer of questions, with the template's tokens around them. A template that reads no
    /// questions gives all the same tokens.
    pub questions: Tokenizer,
    /// Tokenizer of answers, with the template's tokens around them.
    pub answers: Tokenizer,
}

impl Conversation {
    /// Reads the tokenizer of a VLM and encodes its template.
    ///
    /// # Errors
    /// [`DataError::Recipe`] if the model is no VLM, the recipe names no tokenizer, or the
    /// tokenizer lacks a special token of the template; or as [`Tokenizer::load`].
    pub fn of(model: &Model) -> Result<Self, DataError> {
        let wrong = |key: &str, reason: String| DataError::Recipe { key: key.to_owned(), reason };
        let keys = model.vlm().ok_or_else(|| {
            wrong("model.kind", "is not that of a VLM; write `kind: vlm`".to_owned())
        })?;
        let (part, path) = ("model.language_model", keys.tokenizer.as_deref());
        let tokenizer = Tokenizer::of(part, path, TEMPLATE_TOKENS, keys.vocab_size)?;
        let TemplateTexts { before, question, answer } = keys.template.texts();
        for text in [&before, &question, &answer] {
            for token in special_tokens(text) {
                tokenizer.id(KEY, token)?;
            }
        }
        let cut = |key: &str, tokens| tokenizer.clone().cut_to(&format!("{part}.{key}"), tokens);
        let questions = cut("max_question_tokens", keys.max_question_tokens)?;
        let answers = cut("max_answer_tokens", keys.max_answer_tokens)?;
        let plain = tokenizer.between([Vec::new(), Vec::new()]);
        let encode = |text: &str| plain.encode(text);
        let around = |text: &str| {
            let (start, end) = text.split_once(TEXT).unwrap_or((text, ""));
            Ok::<_, DataError>([encode(start)?, encode(end)?])
        };
        let [start, end] = around(&answer)?;
        if end.is_empty() {
            let reason = format!("has no token behind the answer in {answer:?}");
            return Err(wrong(KEY, reason));
        }
        let of_question = around(&question)?;
        let questions = questions.between(of_question);
        Ok(Self {
            before: encode(&before)?,
            questions: if question.contains(TEXT) { questions } else { questions.without_text() },
            answers: answers.between([start, end]),
        })
    }

    /// Tokens with which every answer begins.
    #[must_use]
    pub fn start(&self) -> &[i32] {
        self.answers.around().map_or(&[], |[start, _]| start)
    }

    /// Tokens with which every answer ends. The first of them tells that it has ended.
    #[must_use]
    pub fn end(&self) -> &[i32] {
        self.answers.around().map_or(&[], |[_, end]| end)
    }

    /// Tokens of an answer behind those with which every answer begins, with the first of those
    /// with which it ends: what a candidate's perplexity is measured on.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn candidate(&self, text: &str) -> Result<Vec<i32>, DataError> {
        let mut ids = self.answers.encode(text)?;
        ids.truncate(ids.len() - self.end().len().saturating_sub(1));
        Ok(ids.split_off(self.start().len()))
    }
}

/// Special tokens of Llama 3 in a text, such as `<|eot_id|>`.
fn special_tokens(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("<|").filter_map(move |(start, _)| {
        let end = text[start..].find("|>")?;
        Some(&text[start..start + end + 2])
    })
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::schema::{LanguageModel, Model, ModelKind, Template, TemplateTexts};

    use super::Conversation;
    use crate::error::DataError;
    use crate::fixtures::write_tokenizer;

    fn open(template: Template, max_tokens: usize) -> Result<Conversation, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let keys = LanguageModel {
            template,
            max_question_tokens: max_tokens,
            max_answer_tokens: max_tokens,
            vocab_size: 12,
            tokenizer: Some(write_tokenizer(folder.path())),
            ..LanguageModel::default()
        };
        let model = Model { kind: ModelKind::Vlm, ..Model::default() };
        Conversation::of(&Model { language_model: Some(keys), ..model })
    }

    fn custom(before: &str, question: &str, answer: &str) -> Template {
        let [before, question, answer] = [before, question, answer].map(str::to_owned);
        Template::Custom(TemplateTexts { before, question, answer })
    }

    #[test]
    fn question_and_answer_lie_between_the_template_s_tokens_and_nothing_else_is_added() {
        let template = custom("[BOS] what", "{} [EOS]", "a {} [EOS] [BOS]");
        let c = open(template.clone(), 4).unwrap();
        assert_eq!(c.before, [1, 6]);
        assert_eq!(c.questions.encode("what colour").unwrap(), [6, 7, 2]);
        assert_eq!(c.questions.encode("").unwrap(), [2]);
        assert_eq!(c.answers.encode("red").unwrap(), [3, 8, 2, 1]);
        assert_eq!((c.start(), c.end()), (&[3][..], &[2, 1][..]));
        assert_eq!(c.candidate("red one").unwrap(), [8, 9, 2]);
        // A text that is cut keeps what is around it.
        let short = open(template, 2).unwrap();
        assert_eq!(short.answers.encode("red one two").unwrap(), [3, 8, 9, 2, 1]);
    }

    #[test]
    fn a_template_without_a_place_for_questions_reads_none() {
        let c = open(custom("", "a picture", "{} [EOS]"), 4).unwrap();
        assert_eq!(c.questions.encode("what colour").unwrap(), [3, 4]);
        let c = open(custom("", "", "{} [EOS]"), 4).unwrap();
        assert!(c.questions.encode("what colour").unwrap().is_empty());
    }

    #[test]
    fn special_tokens_that_the_tokenizer_lacks_are_named() {
        let error = open(Template::PlmSft, 4).unwrap_err().to_string();
        for said in ["model.language_model.template", "no token `<|begin_of_text|>`"] {
            assert!(error.contains(said), "{error}");
        }
    }
}
