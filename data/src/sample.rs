//! Members of a sample as stored in a shard.

use std::io::Read;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::decode::Media;
use crate::error::DataError;
use crate::shards::OpenShard;
use crate::tar::prefix_and_extension;
use crate::texts::Texts;

/// Largest picture or clip that is read, in bytes before and after decompression: members are read
/// as a whole.
const LARGEST_MEDIA: u64 = 4 << 30;

/// Largest text that is read, in bytes.
const LARGEST_TEXT: u64 = 64 << 20;

/// Sample with its undecoded picture or clip.
#[derive(Debug, Clone, PartialEq)]
pub struct RawSample {
    /// Key of the sample in the shard.
    pub key: String,
    /// Path of the shard.
    pub shard: Arc<str>,
    /// Type and bytes of the picture or clip, if there is one.
    pub visual: Option<(Media, Vec<u8>)>,
    /// Texts of the `txt` and the `json` member.
    pub texts: Texts,
}

impl RawSample {
    /// Reads the members of sample `number`. Only members of a type in `wanted` are read as the
    /// picture or clip, the first type first. Members may be compressed (`txt.gz`).
    ///
    /// Members with a prefix (`0.jpg`) are read only if no picture, clip or text lacks one; the
    /// index ensures that all of them then have the same prefix. If several members match, the
    /// first in the tar is read.
    ///
    /// # Errors
    /// [`DataError::Io`] if the shard cannot be read, [`DataError::BadSample`] if the picture or
    /// clip cannot be decompressed.
    pub fn read(shard: &OpenShard, number: usize, wanted: &[Media]) -> Result<Self, DataError> {
        let key = shard.sample(number).key.to_string();
        let mut visual = None;
        for &media in wanted {
            if visual.is_none() {
                let is_media = |extension: &str| Media::of_extension(extension) == Some(media);
                visual = read_member(shard, number, is_media)?.map(|bytes| (media, bytes));
            }
        }
        let visual = visual.map(|(media, bytes)| Ok((media, bytes?))).transpose();
        let visual = visual.map_err(|reason| DataError::BadSample {
            shard: shard.path.to_string(),
            key: key.clone(),
            reason,
        })?;
        Ok(Self { key, shard: Arc::clone(&shard.path), visual, texts: texts(shard, number)? })
    }
}

/// Reads the texts of sample `number` without its picture or clip.
///
/// # Errors
/// [`DataError::Io`] if the shard cannot be read.
pub fn texts(shard: &OpenShard, number: usize) -> Result<Texts, DataError> {
    let txt = read_member(shard, number, |extension| extension == "txt")?;
    Ok(Texts::parse(txt, read_member(shard, number, |extension| extension == "json")?))
}

/// Bytes of the first member whose extension `wants` accepts, or the reason why it cannot be read
/// or decompressed. `None` if the sample has no such member.
pub(crate) fn read_member(
    shard: &OpenShard,
    number: usize,
    wants: impl Fn(&str) -> bool,
) -> Result<Option<Result<Vec<u8>, String>>, DataError> {
    let sample = shard.sample(number);
    let is_read =
        |extension| matches!(extension, "txt" | "json") || Media::of_extension(extension).is_some();
    let fields = || sample.members.iter().map(|member| prefix_and_extension(shard.field(member)));
    let plain = fields().any(|(prefix, extension)| prefix.is_empty() && is_read(extension));
    let found = sample
        .members
        .iter()
        .zip(fields())
        .find(|(_, (prefix, extension))| wants(extension) && (prefix.is_empty() || !plain));
    let Some((member, _)) = found else { return Ok(None) };
    let field = shard.field(member);
    let is_text = ["txt", "json"].contains(&prefix_and_extension(field).1);
    let largest = if is_text { LARGEST_TEXT } else { LARGEST_MEDIA };
    if member.length > largest {
        let length = member.length;
        return Ok(Some(Err(format!(
            "member `{field}` has {length} bytes, and at most {largest} are read"
        ))));
    }
    let bytes = shard.read(member)?;
    if !field.ends_with(".gz") {
        return Ok(Some(Ok(bytes)));
    }
    Ok(Some(unpack(&bytes, largest).map_err(|reason| format!("member `{field}`: {reason}"))))
}

fn unpack(bytes: &[u8], largest: u64) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(largest).read_to_end(&mut unpacked);
    match read {
        Ok(length) if u64::try_from(length) == Ok(largest) => {
            Err(format!("decompressed, it has {largest} bytes or more"))
        }
        Ok(_) => Ok(unpacked),
        Err(error) => Err(format!("it cannot be decompressed: {error}")),
    }
}
