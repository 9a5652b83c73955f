//! Annotations of a long video in the json of its sample.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{clean, text_of};

/// Field of the json that holds the annotations.
const ANNOTATIONS: &str = "annotations";

/// What happens at a point of a long video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotation {
    /// Seconds after the start of the video.
    pub t: f64,
    /// Text about this point.
    pub text: String,
}

/// Annotations in the list `annotations`; empty if there is none.
pub(super) fn annotations_of(fields: &Map<String, Value>) -> Result<Vec<Annotation>, String> {
    let list = match fields.get(ANNOTATIONS) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(format!("`{ANNOTATIONS}` in the json member is not a list")),
    };
    let annotation = |(number, entry): (usize, &Value)| {
        let wrong = |what: &str| format!("`{ANNOTATIONS}[{number}]` in the json member {what}");
        let t = entry.get("t").and_then(Value::as_f64).filter(|t| *t >= 0.0);
        let t = t.ok_or_else(|| wrong("has no time `t` in seconds, 0 or more"))?;
        let text = entry.get("text").and_then(text_of);
        let text = text.ok_or_else(|| wrong("has no text `text`"))?;
        Ok(Annotation { t, text: clean(&text).to_owned() })
    };
    list.iter().enumerate().map(annotation).collect()
}

#[cfg(test)]
mod tests {
    use super::Annotation;
    use crate::texts::Texts;

    fn annotations(json: &str) -> Result<Vec<Annotation>, String> {
        let texts = Texts::parse(None, Some(Ok(json.as_bytes().to_vec())));
        texts.annotations().map(<[Annotation]>::to_vec)
    }

    #[test]
    fn annotations_have_a_time_and_a_text() {
        let json = r#"{"annotations": [{"t": 1.5, "text": " a cup "}, {"t": 0, "text": 3}]}"#;
        let of = |t, text: &str| Annotation { t, text: text.to_owned() };
        assert_eq!(annotations(json).unwrap(), [of(1.5, "a cup"), of(0.0, "3")]);
        assert!(annotations("{}").unwrap().is_empty());
        for (entry, said) in [
            ("{\"text\": \"a\"}", "`annotations[0]` in the json member has no time"),
            ("{\"t\": -1, \"text\": \"a\"}", "0 or more"),
            ("{\"t\": NaN, \"text\": \"a\"}", "has no time"),
            ("{\"t\": \"1\", \"text\": \"a\"}", "has no time"),
            ("{\"t\": 1, \"text\": \" \"}", "has no text"),
            ("3", "has no time"),
        ] {
            let error = annotations(&format!("{{\"annotations\": [{entry}]}}")).unwrap_err();
            assert!(error.contains(said), "{entry}: {error}");
        }
        assert!(annotations("{\"annotations\": 3}").unwrap_err().contains("not a list"));
    }
}
