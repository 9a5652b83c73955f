//! Texts of a sample: caption, questions, annotations, and fields of the json.
//!
//! A text that cannot be read is an error only for a caller that asks for this text, so that a
//! damaged field that no rule uses costs no sample.

mod annotations;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::annotations::Annotation;
use self::annotations::annotations_of;
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

/// Field of the json that holds the caption, if the sample has no `txt`.
const CAPTION: &str = "caption";

/// Caption, questions, annotations and json fields of a sample. All texts are without surrounding
/// white space and byte order marks.
#[derive(Debug, Clone, PartialEq)]
pub struct Texts {
    caption: Result<Option<String>, String>,
    questions: Result<Vec<Question>, String>,
    annotations: Result<Vec<Annotation>, String>,
    /// Fields of the json that are texts, as strings, lists of texts, and objects of such fields.
    fields: Result<Map<String, Value>, String>,
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            caption: Ok(None),
            questions: Ok(Vec::new()),
            annotations: Ok(Vec::new()),
            fields: Ok(Map::new()),
        }
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
        Self::of(txt.map(|bytes| caption_of(&bytes?)).transpose(), json)
    }

    /// Texts of a caption and the fields of a json.
    pub(crate) fn of(
        caption: Result<Option<String>, String>,
        json: Result<Map<String, Value>, String>,
    ) -> Self {
        let questions = json.as_ref().map_err(Clone::clone).and_then(questions_of);
        let annotations = json.as_ref().map_err(Clone::clone).and_then(annotations_of);
        let fields = json.map(texts_of);
        let caption = match caption {
            Ok(Some(caption)) if !caption.is_empty() => Ok(Some(caption)),
            Ok(_) => match &fields {
                Ok(fields) => Ok(fields.get(CAPTION).and_then(Value::as_str).map(str::to_owned)),
                Err(reason) => Err(reason.clone()),
            },
            Err(reason) => Err(reason),
        };
        Self { caption, questions, annotations, fields }
    }

    /// Text of the `txt` member, or else `caption` in the json. `None` if there is no such text or
    /// it is empty.
    ///
    /// # Errors
    /// A message if the `txt` member is not UTF-8, or is empty and the json cannot be parsed.
    pub fn caption(&self) -> Result<Option<&str>, String> {
        self.caption.as_ref().map(Option::as_deref).map_err(Clone::clone)
    }

    /// All captions: the list `captions` in the json if it has one, or else the caption.
    ///
    /// # Errors
    /// Those of [`Texts::caption`].
    pub fn captions(&self) -> Result<Vec<&str>, String> {
        // A json that cannot be parsed has no list.
        let list = self.list("captions").unwrap_or_default();
        if list.is_empty() { Ok(self.caption()?.into_iter().collect()) } else { Ok(list) }
    }

    /// Text of a field of the json. A number or truth value counts as its text, so that `3` is the
    /// same label as `"3"`. `None` if there is no such text or it is empty.
    ///
    /// A name with dots reads nested objects: `gpt.action.brief` is `brief` in `action` in `gpt`. A
    /// key that holds the dots itself comes first, at each level of nesting.
    ///
    /// # Errors
    /// A message if the json cannot be parsed.
    pub fn field(&self, name: &str) -> Result<Option<&str>, String> {
        let fields = self.fields.as_ref().map_err(Clone::clone)?;
        Ok(nested_text(fields, name))
    }

    /// Texts of a field of the json, which holds a text or a list of texts and is found as in
    /// [`Self::field`]; `caption` is [`Self::caption`] if there is one. Empty if there are no such
    /// texts.
    ///
    /// # Errors
    /// A message if the json cannot be parsed, or the caption cannot be read.
    pub fn list(&self, name: &str) -> Result<Vec<&str>, String> {
        if name == CAPTION
            && let Some(caption) = self.caption()?
        {
            return Ok(vec![caption]);
        }
        let fields = self.fields.as_ref().map_err(Clone::clone)?;
        Ok(nested(fields, name, &list_of).unwrap_or_default())
    }

    /// Questions in the json's `questions`, without those whose question or answer is `null`.
    ///
    /// # Errors
    /// A message if the json cannot be parsed, or `questions` is not a list of questions with their
    /// answers.
    pub fn questions(&self) -> Result<&[Question], String> {
        self.questions.as_deref().map_err(Clone::clone)
    }

    /// Annotations of a long video in the json's `annotations`, in their order.
    ///
    /// # Errors
    /// A message if the json cannot be parsed, or `annotations` is not a list of texts with times.
    pub fn annotations(&self) -> Result<&[Annotation], String> {
        self.annotations.as_deref().map_err(Clone::clone)
    }

    /// Removes all fields but those with these names, to save memory. The caption stays.
    pub fn keep_fields<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        if let Ok(fields) = &mut self.fields {
            let text =
                |name: &str| Some((name.to_owned(), Value::from(nested_text(fields, name)?)));
            *fields = names.into_iter().filter_map(text).collect();
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
        let annotation = |it: &Annotation| size_of_val(it) + it.text.len();
        let annotations = self.annotations.iter().flatten().map(annotation).sum::<usize>();
        let fields = self.fields.as_ref().map_or(0, bytes_of);
        let caption = self.caption().ok().flatten().map_or(0, str::len);
        questions + annotations + fields + caption
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

/// The text of a field, or those of its list of texts.
fn list_of(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::Array(list) => Some(list.iter().filter_map(Value::as_str).collect()),
        value => value.as_str().map(|text| vec![text]),
    }
}

/// The fields that are texts, numbers or truth values, as strings, the lists of these, and the
/// objects of such fields. The parser has limited their depth to 128.
fn texts_of(fields: Map<String, Value>) -> Map<String, Value> {
    let text = |(name, value)| match value {
        Value::Object(inner) => Some((name, Value::Object(texts_of(inner)))),
        Value::Array(list) => {
            let texts: Vec<String> = list.iter().filter_map(text_of).collect();
            (!texts.is_empty()).then(|| (name, Value::from(texts)))
        }
        other => Some((name, Value::String(text_of(&other)?))),
    };
    fields.into_iter().filter_map(text).collect()
}

/// Text of a field, whose name may lead through nested objects. Of several ways to read a name, the
/// one with the longest first key is taken.
pub(crate) fn nested_text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    nested(fields, name, &Value::as_str)
}

/// What `read` finds in a field, as [`nested_text`] finds its text.
fn nested<'a, T>(
    fields: &'a Map<String, Value>,
    name: &str,
    read: &impl Fn(&'a Value) -> Option<T>,
) -> Option<T> {
    if let Some(found) = fields.get(name).and_then(read) {
        return Some(found);
    }
    let dots = name.match_indices('.').rev();
    dots.map(|(dot, _)| name.split_at(dot)).find_map(|(first, rest)| match fields.get(first) {
        Some(Value::Object(inner)) => nested(inner, &rest[1..], read),
        _ => None,
    })
}

/// Length of all names and texts, in bytes.
fn bytes_of(fields: &Map<String, Value>) -> usize {
    let length = |(name, value): (&String, &Value)| match value {
        Value::String(text) => name.len() + text.len(),
        Value::Object(inner) => name.len() + bytes_of(inner),
        Value::Array(list) => {
            name.len() + list.iter().filter_map(Value::as_str).map(str::len).sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => name.len(),
    };
    fields.iter().map(length).sum()
}

/// Texts of the list `captions`.
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
    fn a_name_with_dots_reads_nested_objects_and_a_key_with_dots_comes_first() {
        let json = br#"{
            "gpt": {"action": {"brief": " Stir coffee ", "count": 2, "none": null, "list": ["x"]},
                "summary": {"brief": ""}, "summary.brief": "A hand stirs."},
            "a.b": "flat", "a": {"b": "nested", "b.c": "half flat", "b.d": {"e": "deep"}},
            "x.y": {"z": "long first key"}, "x": {"y.z": "short first key"}}"#;
        let mut texts = texts(None, Some(json));
        let expected = [
            ("gpt.action.brief", Some("Stir coffee")),
            ("gpt.action.count", Some("2")),
            ("gpt.summary.brief", Some("A hand stirs.")),
            ("a.b", Some("flat")),
            ("a.b.c", Some("half flat")),
            ("a.b.d.e", Some("deep")),
            ("x.y.z", Some("long first key")),
            ("gpt", None),
            ("gpt.action", None),
            ("gpt.action.none", None),
            ("gpt.action.list", None),
            ("gpt.action.list.0", None),
            ("gpt.action.brief.x", None),
            ("gpt..brief", None),
            (".", None),
            ("", None),
        ];
        for (name, text) in expected {
            assert_eq!(texts.field(name), Ok(text), "{name}");
        }
        texts.keep_fields(["a.b.d.e", "gpt.action.brief", "gpt.missing"]);
        assert_eq!(texts.field("gpt.action.brief"), Ok(Some("Stir coffee")));
        assert_eq!(texts.field("a.b.d.e"), Ok(Some("deep")));
        assert_eq!(texts.field("gpt.action.count"), Ok(None));
        assert_eq!(texts.bytes(), "a.b.d.edeep".len() + "gpt.action.briefStir coffee".len());
    }

    #[test]
    fn a_list_is_all_texts_of_a_field_and_the_txt_comes_before_the_caption_of_the_json() {
        let json = br#"{"caption": ["a cat", " a grey cat ", "", 3, null], "one": "a dog",
            "gpt": {"captions": ["x"]}, "none": [], "objects": [{"caption": "y"}]}"#;
        let of_json = texts(None, Some(json));
        for (name, expected) in [
            ("caption", &["a cat", "a grey cat", "3"][..]),
            ("one", &["a dog"]),
            ("gpt.captions", &["x"]),
            ("none", &[]),
            ("objects", &[]),
            ("missing", &[]),
        ] {
            assert_eq!(of_json.list(name).unwrap(), expected, "{name}");
            assert!(expected == ["a dog"] || of_json.field(name) == Ok(None), "{name}");
        }
        assert_eq!(texts(Some(b"a horse"), Some(json)).list("caption").unwrap(), ["a horse"]);
        assert!(texts(None, Some(b"{")).list("one").is_err());
    }

    #[test]
    fn deep_objects_are_read_to_the_depth_of_the_parser() {
        let nested = |depth: usize| {
            format!("{}\"x\"{}", "{\"a\": ".repeat(depth), "}".repeat(depth)).into_bytes()
        };
        let name = vec!["a"; 100].join(".");
        assert_eq!(texts(None, Some(&nested(100))).field(&name), Ok(Some("x")));
        let error = texts(None, Some(&nested(100_000))).field("a").unwrap_err().to_owned();
        assert!(error.contains("recursion limit"), "{error}");
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
