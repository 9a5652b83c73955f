//! A sample as it stands in a shard: its members, and the texts in them.

use std::io::Read;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::decode::Media;
use crate::error::DataError;
use crate::shards::OpenShard;

/// Most bytes that a compressed member may unfold to.
const LARGEST_UNPACKED: u64 = 1 << 30;

/// One question of a sample's json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The query.
    pub question: String,
    /// The target.
    pub answer: String,
    /// What sort of question it is (`count`, `colour`); empty when the json does not say.
    #[serde(default)]
    pub kind: String,
}

/// The members of a sample that are of use: pixels and texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSample {
    /// The sample's key.
    pub key: String,
    /// Path of the shard.
    pub shard: Arc<str>,
    /// The pixels' bytes, and what they are.
    pub visual: Option<(Media, Vec<u8>)>,
    /// The `txt` member.
    pub txt: Option<Vec<u8>>,
    /// The `json` member.
    pub json: Option<Vec<u8>>,
}

/// The texts of a sample.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    /// The `txt` member, or `caption` in the json, without surrounding white space; never empty.
    pub caption: Option<String>,
    /// `questions` in the json.
    pub questions: Vec<Question>,
    /// All fields of the json.
    pub fields: Map<String, Value>,
}

impl RawSample {
    /// Reads a sample's members. Of several that would do, an exact field name (`jpg`) goes before one that only ends so (`0.jpg`), and
    /// the first in the tar before later ones. `wanted` takes pixels of that sort only. Members may be compressed (`txt.gz`).
    ///
    /// # Errors
    /// [`DataError::Io`] when the shard cannot be read; [`DataError::BadSample`] when a compressed member cannot be unfolded.
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

    /// The sample's texts.
    ///
    /// # Errors
    /// In words, when the caption is not UTF-8, or the json is not of the expected form.
    pub fn texts(&self) -> Result<Texts, String> {
        let mut texts = Texts::default();
        if let Some(json) = &self.json {
            let value: Value = serde_json::from_slice(json)
                .map_err(|error| format!("its json cannot be read: {error}"))?;
            let Value::Object(fields) = value else {
                return Err("its json is not an object".to_owned());
            };
            if let Some(questions) = fields.get("questions") {
                texts.questions = Vec::deserialize(questions).map_err(|error| {
                    format!(
                        "`questions` in its json is not a list of {{question, answer}}: {error}"
                    )
                })?;
            }
            texts.fields = fields;
        }
        let caption = match &self.txt {
            Some(txt) => Some(
                std::str::from_utf8(txt)
                    .map_err(|error| format!("its caption is not UTF-8: {error}"))?,
            ),
            None => texts.fields.get("caption").and_then(Value::as_str),
        };
        let caption = caption.map(str::trim).filter(|caption| !caption.is_empty());
        texts.caption = caption.map(str::to_owned);
        Ok(texts)
    }
}

/// A field without the name of its compression.
fn plain_name(field: &str) -> &str {
    field.strip_suffix(".gz").unwrap_or(field)
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(LARGEST_UNPACKED).read_to_end(&mut unpacked);
    match read {
        Ok(length) if u64::try_from(length) == Ok(LARGEST_UNPACKED) => {
            Err(format!("it unfolds to {LARGEST_UNPACKED} bytes or more"))
        }
        Ok(_) => Ok(unpacked),
        Err(error) => Err(format!("it cannot be decompressed: {error}")),
    }
}
