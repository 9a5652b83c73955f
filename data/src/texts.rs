//! Texts of a sample: caption, questions, and fields of the json.
//!
//! A text that cannot be read is an error only for a caller that asks for this text, so that a
//! damaged field that no rule uses costs no sample.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json;

/// Question in the json of a sample, with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Question text, used as the query.
    pub question: String,
    /// Answer text, used as the target.
    pub answer: String,
    /// Kind of question (`count`, `colour`). Empty if the json does not say.
    pub kind: String,
}

/// Caption, questions and json fields of a sample. All texts are without surrounding white space
/// and byte order marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    caption: Result<Option<String>, String>,
    questions: Result<Vec<Question>, String>,
    fields: Result<BTreeMap<String, String>, String>,
}

impl Default for Texts {
    fn default() -> Self {
        Self { caption: Ok(None), questions: Ok(Vec::new()), fields: Ok(BTreeMap::new()) }
    }
}

impl Texts {
    /// Parses the bytes of the `txt` and the `json` member, or takes the reasons why these members
    /// could not be read.
    #[must_use]
    pub fn parse(
        txt: Option<Result<Vec<u8>, String>>,
        json: Option<Result<Vec<u8>, String>>,
    ) -> Self {
        let json = json.map_or_else(|| Ok(Map::new()), |bytes| json::object(&bytes?));
        let fields = json.as_ref().map(texts_of).map_err(Clone::clone);
        let caption = match txt.map(|bytes| caption_of(&bytes?)).transpose() {
            Ok(Some(caption)) if !caption.is_empty() => Ok(Some(caption)),
            Ok(_) => fields.clone().map(|mut fields| fields.remove("caption")),
            Err(reason) => Err(reason),
        };
        Self { caption, questions: json.and_then(|fields| questions_of(&fields)), fields }
    }

    /// Text of the `txt` member, or else `caption` in the json. `None` if there is no such text or
    /// it is empty.
    ///
    /// # Errors
    /// A message if the `txt` member is not UTF-8, or is empty and the json cannot be parsed.
    pub fn caption(&self) -> Result<Option<&str>, String> {
        self.caption.as_ref().map(Option::as_deref).map_err(Clone::clone)
    }

    /// Text of a field of the json. A number or truth value counts as its text, so that `3` is the
    /// same label as `"3"`. `None` if there is no such text or it is empty.
    ///
    /// # Errors
    /// A message if the json cannot be parsed.
    pub fn field(&self, name: &str) -> Result<Option<&str>, String> {
        let fields = self.fields.as_ref().map_err(Clone::clone)?;
        Ok(fields.get(name).map(String::as_str))
    }

    /// Questions in the json's `questions`, without those whose question or answer is `null`.
    ///
    /// # Errors
    /// A message if the json cannot be parsed, or `questions` is not a list of questions with their
    /// answers.
    pub fn questions(&self) -> Result<&[Question], String> {
        self.questions.as_deref().map_err(Clone::clone)
    }

    /// Removes the fields whose names `keep` rejects, to save memory. The caption stays.
    pub fn retain_fields(&mut self, keep: impl Fn(&str) -> bool) {
        if let Ok(fields) = &mut self.fields {
            fields.retain(|name, _| keep(name));
        }
    }

    /// Approximate size of the texts in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let question = |question: &Question| {
            size_of_val(question)
                + question.question.len()
                + question.answer.len()
                + question.kind.len()
        };
        let questions = self.questions.iter().flatten().map(question).sum::<usize>();
        let fields = self.fields.iter().flatten().map(|(name, text)| name.len() + text.len());
        let caption = self.caption().ok().flatten().map_or(0, str::len);
        questions + fields.sum::<usize>() + caption
    }
}

/// Text without surrounding white space and byte order marks.
fn clean(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

fn caption_of(txt: &[u8]) -> Result<String, String> {
    let text =
        std::str::from_utf8(txt).map_err(|error| format!("the caption is not UTF-8: {error}"))?;
    Ok(clean(text).to_owned())
}

/// Text of a string, number or truth value. `None` for other values and for an empty text.
fn text_of(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => clean(text).to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (!text.is_empty()).then_some(text)
}

fn texts_of(fields: &Map<String, Value>) -> BTreeMap<String, String> {
    fields.iter().filter_map(|(name, value)| Some((name.clone(), text_of(value)?))).collect()
}

fn questions_of(fields: &Map<String, Value>) -> Result<Vec<Question>, String> {
    let list = match fields.get("questions") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("`questions` in the json member is not a list".to_owned()),
    };
    let mut questions = Vec::with_capacity(list.len());
    for (number, entry) in list.iter().enumerate() {
        let text = |name: &str| match entry.get(name) {
            Some(Value::String(text)) => Ok(Some(clean(text).to_owned())),
            Some(Value::Null) => Ok(None),
            Some(value) if text_of(value).is_some() => Ok(text_of(value)),
            _ => Err(format!("`questions[{number}].{name}` in the json member is not a text")),
        };
        let kind = if entry.get("kind").is_some() { text("kind")? } else { None };
        if let (Some(question), Some(answer)) = (text("question")?, text("answer")?) {
            questions.push(Question { question, answer, kind: kind.unwrap_or_default() });
        }
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::{Question, Texts};

    fn texts(txt: Option<&[u8]>, json: Option<&[u8]>) -> Texts {
        Texts::parse(txt.map(|bytes| Ok(bytes.to_vec())), json.map(|bytes| Ok(bytes.to_vec())))
    }

    fn caption(txt: Option<&[u8]>, json: Option<&[u8]>) -> Result<Option<String>, String> {
        texts(txt, json).caption().map(|caption| caption.map(str::to_owned))
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        let expected = Ok(Some("a red circle".to_owned()));
        assert_eq!(caption(Some(b"\xef\xbb\xbfa red circle\r\n"), None), expected);
        let json = "\u{feff}{\"caption\": \"\u{feff}a red circle\"}";
        assert_eq!(caption(None, Some(json.as_bytes())), expected);
    }

    #[test]
    fn an_empty_txt_does_not_hide_the_caption_of_the_json() {
        let json = Some(&br#"{"caption": " a red circle "}"#[..]);
        for empty in [&b""[..], b" \n", b"\xef\xbb\xbf"] {
            assert_eq!(caption(Some(empty), json), Ok(Some("a red circle".to_owned())));
            assert_eq!(caption(Some(empty), None), Ok(None));
        }
        assert_eq!(caption(Some(b"another"), json), Ok(Some("another".to_owned())));
    }

    #[test]
    fn numbers_and_truth_values_are_labels_and_answers() {
        let json = br#"{"label": 3, "score": 0.5, "big": 12345678901234567890, "yes": true,
            "none": null, "list": [1], "empty": " ",
            "questions": [{"question": "how many", "answer": 3, "kind": 7},
                {"question": "any", "answer": false}, {"question": "who", "answer": null}]}"#;
        let texts = texts(None, Some(json));
        let field = |name| texts.field(name).unwrap();
        for (name, expected) in
            [("label", "3"), ("score", "0.5"), ("big", "12345678901234567890"), ("yes", "true")]
        {
            assert_eq!(field(name), Some(expected));
        }
        for name in ["none", "list", "empty", "missing"] {
            assert_eq!(field(name), None, "{name}");
        }
        let question = |question: &str, answer: &str, kind: &str| Question {
            question: question.to_owned(),
            answer: answer.to_owned(),
            kind: kind.to_owned(),
        };
        assert_eq!(
            texts.questions().unwrap(),
            [question("how many", "3", "7"), question("any", "false", "")]
        );
    }

    #[test]
    fn a_text_that_cannot_be_read_is_an_error_only_where_it_is_asked_for() {
        let broken_json = texts(Some(b"a red circle"), Some(b"{\"caption\""));
        assert_eq!(broken_json.caption(), Ok(Some("a red circle")));
        assert!(broken_json.field("caption").unwrap_err().contains("cannot be parsed"));
        assert!(broken_json.questions().unwrap_err().contains("cannot be parsed"));
        let no_json = texts(Some(b""), Some(b"[]"));
        assert!(no_json.caption().unwrap_err().contains("not an object"));
        let latin = texts(Some(b"caf\xe9"), Some(br#"{"label": "a", "questions": 3}"#));
        assert!(latin.caption().unwrap_err().contains("not UTF-8"));
        assert_eq!(latin.field("label"), Ok(Some("a")));
        assert!(latin.questions().unwrap_err().contains("not a list"));
        for entry in ["3", "{\"question\": \"q\"}", "{\"question\": \"q\", \"answer\": [1]}"] {
            let json = format!("{{\"questions\": [{{\"question\": 1, \"answer\": 2}}, {entry}]}}");
            let error = texts(None, Some(json.as_bytes())).questions().unwrap_err().to_owned();
            assert!(error.contains("questions[1]."), "{entry}: {error}");
        }
    }
}
