//! One line of an annotation file: a conversation and the media that it is about.

use serde_json::{Map, Value, json};

use crate::prepare::item::{Item, MediaSource, Visual};
use crate::prepare::sets::files::{MediaFolder, optional_number, span};
use crate::prepare::sets::left_out::{NO_PICTURE, NO_TEXT, NO_VIDEO, REGION, Reason, TEXT_ONLY};

/// Conversation about pictures or a video.
pub(super) struct Record {
    visual: Visual,
    /// Answers in their order.
    pub(super) turns: Vec<Result<Turn, Reason>>,
    /// All other fields of the line.
    fields: Map<String, Value>,
}

/// Text of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// Question and answer.
    Answer { question: String, answer: String },
    /// Caption without a question, from the field `text` of a line without a conversation.
    Caption(String),
}

impl Record {
    pub(super) fn of(mut fields: Map<String, Value>, media: &MediaFolder) -> Result<Self, Reason> {
        let visual = visual(&fields, media)?;
        let turns = match (fields.remove("conversations"), fields.get("text")) {
            (Some(Value::Array(messages)), _) => turns(&messages)?,
            (Some(_), _) => return Err(Reason::broken("`conversations` is not a list")),
            (None, Some(Value::String(text))) if !text.trim().is_empty() => {
                vec![Ok(Turn::Caption(text.trim().to_owned()))]
            }
            (None, _) => return Err(Reason::broken("it has no `conversations`")),
        };
        Ok(Self { visual, turns, fields })
    }

    /// The item of one of the turns.
    pub(super) fn item(&self, key: String, turn: &Turn) -> Item {
        let mut json = self.fields.clone();
        let caption = match turn {
            Turn::Answer { question, answer } => {
                let questions = json!([{"question": question, "answer": answer}]);
                json.insert("questions".to_owned(), questions);
                None
            }
            Turn::Caption(text) => Some(text.clone()),
        };
        Item { key, visual: self.visual.clone(), caption, json }
    }
}

/// Answers of a conversation. As in PLM, messages of the assistant before the first question are
/// skipped, and only these two speak.
fn turns(messages: &[Value]) -> Result<Vec<Result<Turn, Reason>>, Reason> {
    let no_answer = || Err(Reason::new(NO_TEXT, "the question has no answer"));
    let (mut turns, mut question, mut started) = (Vec::new(), None, false);
    for message in messages {
        let value = message.get("value");
        match message.get("from").and_then(Value::as_str) {
            Some("assistant") if !started => {}
            Some("assistant") => turns.push(match (question.take(), value.and_then(answer)) {
                (None, _) => Err(Reason::broken("the answer has no question")),
                (Some(_), None) => no_answer(),
                (Some(question), Some(answer)) => Ok(Turn::Answer { question, answer }),
            }),
            Some("human") => {
                let Some(Value::String(text)) = value else {
                    return Err(Reason::broken("a question is not a text"));
                };
                if question.replace(without_tags(text)).is_some() {
                    turns.push(no_answer());
                }
                started = true;
            }
            Some(other) => {
                let text = format!("a message is from `{other}`, not from human or assistant");
                return Err(Reason::broken(text));
            }
            None => return Err(Reason::broken("a message does not say from whom it is")),
        }
    }
    if question.is_some() {
        turns.push(no_answer());
    }
    if turns.is_empty() {
        return Err(Reason::new(NO_TEXT, "the conversation has no question"));
    }
    Ok(turns)
}

/// Text of an answer that is not empty. A number counts as its text, as in PLM.
fn answer(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// The question without the tags that mark the place of the media, and without the line break
/// beside each. PLM puts the frames before the first question, or in the place of the tags if
/// there are several pictures; here they always come before the query.
fn without_tags(text: &str) -> String {
    let mut text = text.to_owned();
    for tag in ["<image>", "<video>"] {
        for place in [format!("{tag}\n"), format!("\n{tag}"), tag.to_owned()] {
            text = text.replace(&place, "");
        }
    }
    text.trim().to_owned()
}

fn visual(fields: &Map<String, Value>, media: &MediaFolder) -> Result<Visual, Reason> {
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
    for region in ["bbox", "bbox_map"] {
        if given(region).is_some() {
            let text = format!("the question is about the region `{region}`, which is not drawn");
            return Err(Reason::new(REGION, text));
        }
    }
    let picture = |value: &Value| match value {
        Value::String(name) => Ok(MediaSource::File(media.file(name, NO_PICTURE)?)),
        _ => Err(Reason::broken("`image` is neither a path nor a list of paths")),
    };
    match (given("image"), given("video")) {
        (Some(Value::Array(names)), _) => match &names[..] {
            [] => Err(Reason::broken("`image` is an empty list")),
            [name] => Ok(Visual::Picture(picture(name)?)),
            names => Ok(Visual::Pictures(names.iter().map(picture).collect::<Result<_, _>>()?)),
        },
        (Some(name), _) => Ok(Visual::Picture(picture(name)?)),
        (None, Some(Value::String(name))) => {
            let start = optional_number(fields, "start_time")?;
            let end = optional_number(fields, "end_time")?;
            let seconds = match (start, end) {
                (None, None) => None,
                (start, end) => Some(span(start.unwrap_or(0.0), end.unwrap_or(f64::INFINITY))?),
            };
            let video = MediaSource::File(media.file(name, NO_VIDEO)?);
            Ok(Visual::Clip { video, seconds })
        }
        (None, Some(_)) => Err(Reason::broken("`video` is not a path")),
        (None, None) => Err(Reason::new(TEXT_ONLY, "it has neither `image` nor `video`")),
    }
}
