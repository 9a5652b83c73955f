//! Members of a sample as stored in a shard, and the texts in them.

use std::io::Read;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::decode::Media;
use crate::error::DataError;
use crate::shards::OpenShard;

/// Largest size of a member after decompression, in bytes.
const LARGEST_UNPACKED: u64 = 1 << 30;

/// Question in the json of a sample, with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Question text, used as the query.
    pub question: String,
    /// Answer text, used as the target.
    pub answer: String,
    /// Kind of question (`count`, `colour`). Empty if the json does not say.
    #[serde(default)]
    pub kind: String,
}

/// Undecoded members of a sample: the picture or clip, and the texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSample {
    /// Key of the sample in the shard.
    pub key: String,
    /// Path of the shard.
    pub shard: Arc<str>,
    /// Type and bytes of the picture or clip, if there is one.
    pub visual: Option<(Media, Vec<u8>)>,
    /// Bytes of the `txt` member, if there is one.
    pub txt: Option<Vec<u8>>,
    /// Bytes of the `json` member, if there is one.
    pub json: Option<Vec<u8>>,
}

/// Caption, questions and json fields of a sample.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    /// Text of the `txt` member, or else `caption` in the json, without surrounding white space.
    /// Never an empty string.
    pub caption: Option<String>,
    /// Questions in the json's `questions`.
    pub questions: Vec<Question>,
    /// All fields of the json, including `caption` and `questions`.
    pub fields: Map<String, Value>,
}

impl Texts {
    /// The text of a field of the json without surrounding white space, or with `None` the sample's
    /// caption. `None` if there is no such text or it is empty.
    #[must_use]
    pub fn caption(&self, field: Option<&str>) -> Option<&str> {
        match field {
            None => self.caption.as_deref(),
            Some(field) => {
                let text = self.fields.get(field)?.as_str()?.trim();
                (!text.is_empty()).then_some(text)
            }
        }
    }
}

impl RawSample {
    /// Reads the members of sample `number`. If several members match, an exact field name (`jpg`)
    /// takes precedence over one that only ends with it (`0.jpg`), and the first in the tar over
    /// later ones. If `wanted` is given, only members of that type are read as the picture or clip.
    /// Members may be compressed (`txt.gz`).
    ///
    /// # Errors
    /// [`DataError::Io`] if the shard cannot be read, [`DataError::BadSample`] if a compressed
    /// member cannot be decompressed.
    pub fn read(
        shard: &OpenShard,
        number: usize,
        wanted: Option<Media>,
    ) -> Result<Self, DataError> {
        let sample = shard.sample(number);
        let find = |wants: &dyn Fn(&str) -> bool| {
            let name = |member| plain_name(shard.field(member));
            let exact = sample.members.iter().find(|member| wants(name(member)));
            exact.or_else(|| {
                let last = |member| name(member).rsplit('.').next().unwrap_or_default();
                sample.members.iter().find(|member| wants(last(member)))
            })
        };
        let read = |wants: &dyn Fn(&str) -> bool| -> Result<Option<Vec<u8>>, DataError> {
            let Some(member) = find(wants) else { return Ok(None) };
            let bytes = shard.read(member)?;
            if !shard.field(member).ends_with(".gz") {
                return Ok(Some(bytes));
            }
            unpack(&bytes).map(Some).map_err(|reason| DataError::BadSample {
                shard: shard.path.to_string(),
                key: sample.key.to_string(),
                reason: format!("member `{}`: {reason}", shard.field(member)),
            })
        };
        let mut visual = None;
        for media in [Media::Video, Media::Image] {
            if visual.is_none() && wanted.is_none_or(|wanted| wanted == media) {
                let is_media = |field: &str| Media::of_extension(field) == Some(media);
                visual = read(&is_media)?.map(|bytes| (media, bytes));
            }
        }
        Ok(Self {
            key: sample.key.to_string(),
            shard: Arc::clone(&shard.path),
            visual,
            txt: read(&|field| field == "txt")?,
            json: read(&|field| field == "json")?,
        })
    }

    /// Parses the texts of the sample.
    ///
    /// # Errors
    /// A message if the caption is not UTF-8, or the json does not have the expected form.
    pub fn texts(&self) -> Result<Texts, String> {
        let mut texts = Texts::default();
        if let Some(json) = &self.json {
            let value: Value = serde_json::from_slice(json)
                .map_err(|error| format!("the json member cannot be parsed: {error}"))?;
            let Value::Object(fields) = value else {
                return Err("the json member is not an object".to_owned());
            };
            if let Some(questions) = fields.get("questions") {
                texts.questions = Vec::deserialize(questions).map_err(|error| {
                    format!(
                        "`questions` in the json member is not a list of {{question, answer}}: {error}"
                    )
                })?;
            }
            texts.fields = fields;
        }
        let caption = match &self.txt {
            Some(txt) => Some(
                std::str::from_utf8(txt)
                    .map_err(|error| format!("the caption is not UTF-8: {error}"))?,
            ),
            None => texts.fields.get("caption").and_then(Value::as_str),
        };
        let caption = caption.map(str::trim).filter(|caption| !caption.is_empty());
        texts.caption = caption.map(str::to_owned);
        Ok(texts)
    }
}

/// Field name without the suffix `.gz`.
fn plain_name(field: &str) -> &str {
    field.strip_suffix(".gz").unwrap_or(field)
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(LARGEST_UNPACKED).read_to_end(&mut unpacked);
    match read {
        Ok(length) if u64::try_from(length) == Ok(LARGEST_UNPACKED) => {
            Err(format!("decompressed, it has {LARGEST_UNPACKED} bytes or more"))
        }
        Ok(_) => Ok(unpacked),
        Err(error) => Err(format!("it cannot be decompressed: {error}")),
    }
}
