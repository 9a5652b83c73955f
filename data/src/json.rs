//! Reads the JSON that Python writes and reads, which is a little more than the standard allows:
//! `NaN`, `Infinity`, numbers too large for a float, half of a surrogate pair, a byte order mark.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Parses the JSON value in `bytes`. A number that is not finite becomes `null`, and half of a
/// surrogate pair becomes U+FFFD.
///
/// # Errors
/// If the bytes are not JSON, or not of this type.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).or_else(|_| serde_json::from_slice(&standard(bytes)))
}

/// Parses the JSON object in `bytes`, as [`parse`] does. `null` counts as an empty object.
///
/// # Errors
/// A message if the bytes are not JSON, or hold another type of value.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match parse(bytes).map_err(|error| format!("the json member cannot be parsed: {error}"))? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err("the json member is not an object".to_owned())
        }
    }
}

/// Copy of `json` in which the extensions of Python are replaced by standard JSON.
fn standard(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some(&first) = rest.first() {
        let length = match first {
            b'"' => {
                let length = string_length(rest);
                push_string(&rest[..length], &mut out);
                length
            }
            b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                let in_word = |byte: &&u8| byte.is_ascii_alphanumeric() || b"-+.".contains(byte);
                let length = rest.iter().take_while(in_word).count();
                out.extend_from_slice(finite(&rest[..length]));
                length
            }
            _ => {
                out.push(first);
                1
            }
        };
        rest = &rest[length..];
    }
    out
}

/// Length of the string, with both quotes, at the start of `json`.
fn string_length(json: &[u8]) -> usize {
    let mut escaped = false;
    let end = json.iter().skip(1).position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(json.len(), |end| end + 2)
}

/// `null` for a number that is not finite, or else the word itself.
fn finite(word: &[u8]) -> &[u8] {
    let is_number = word.first().is_some_and(|byte| b"-0123456789".contains(byte));
    let text = std::str::from_utf8(word).unwrap_or_default();
    let infinite = is_number && text.parse::<f64>().is_ok_and(f64::is_infinite);
    if infinite || matches!(text, "NaN" | "Infinity" | "-Infinity") { b"null" } else { word }
}

/// Appends a string, with U+FFFD for each escaped half of a surrogate pair.
fn push_string(string: &[u8], out: &mut Vec<u8>) {
    let mut rest = string;
    while let Some(&first) = rest.first() {
        let length = match (first, escaped_unit(rest)) {
            (_, Some(0xd800..=0xdbff))
                if matches!(rest.get(6..).and_then(escaped_unit), Some(0xdc00..=0xdfff)) =>
            {
                12
            }
            (_, Some(0xd800..=0xdfff)) => {
                out.extend_from_slice(b"\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (b'\\', _) => 2,
            _ => 1,
        };
        let (taken, after) = rest.split_at(length.min(rest.len()));
        out.extend_from_slice(taken);
        rest = after;
    }
}

/// UTF-16 unit of the escape `\uXXXX` at the start of `text`.
fn escaped_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::object;

    /// The expected values are those of `json.loads` of Python 3.11, with `None` for the numbers
    /// that are not finite and U+FFFD for the half surrogates, which a Rust string cannot hold.
    #[test]
    fn json_is_read_as_python_reads_it() {
        for (text, expected) in [
            (
                r#"{"a": NaN, "b": -Infinity, "c": [Infinity, 1]}"#,
                json!({"a": null, "b": null, "c": [null, 1]}),
            ),
            (r#"{"a": 1e999, "b": -1e999, "c": 0.5}"#, json!({"a": null, "b": null, "c": 0.5})),
            ("\u{feff}{}", json!({})),
            ("null", json!({})),
            (
                r#"{"NaN": "NaN, Infinity \" -Infinity 1e999"}"#,
                json!({"NaN": "NaN, Infinity \" -Infinity 1e999"}),
            ),
            (r#"{"a": "\ud83d", "b": "x\\ud83d"}"#, json!({"a": "\u{fffd}", "b": "x\\ud83d"})),
            (
                r#"{"a": "\ud83d\ude00 \ude00\ud83d", "b": NaN}"#,
                json!({"a": "😀 \u{fffd}\u{fffd}", "b": null}),
            ),
            (r#"{"a": "\ud83d\u0041"}"#, json!({"a": "\u{fffd}A"})),
        ] {
            assert_eq!(object(text.as_bytes()).map(Value::Object), Ok(expected), "{text}");
        }
    }

    #[test]
    fn broken_json_is_refused_without_a_panic() {
        let whole = r#"{"a": NaN, "b\"": "\ud83d\ude00\\", "c": [1e999]}"#;
        assert!(object(whole.as_bytes()).is_ok());
        for length in 0..whole.len() {
            assert!(object(&whole.as_bytes()[..length]).is_err(), "{}", &whole[..length]);
        }
        for text in ["[1]", "3", "\"a\"", "{\"a\": nan}", "{\"a\": NaNN}", "{\"a\": +1}", "{a: 1}"]
        {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        assert!(object(b"{\"a\": \"\xff\"}").is_err());
    }
}
