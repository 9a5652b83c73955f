//! Encodes the pictures or clip of an item as they are stored.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::item::{MediaSource, Visual};
use super::jpeg::JpegEncoder;
use super::options::{FrameRate, Options};
use super::stats::Stats;
use crate::decode::{
    self, JpegClipWriter, Picture, is_upright_jpeg, picture_format, uniform_frames,
};
use crate::storage::{Location, Storage};
use crate::transform::Shrinker;

/// Number of frames below which a clip is not thinned: twice the most frames that a stage of the
/// paper takes from a clip (32), so that short clips keep enough of them.
const LEAST_FRAMES: usize = 64;

/// Largest size of a stored clip in bytes. Threads hold clips in memory.
#[cfg(feature = "video")]
const LARGEST_CLIP: usize = 256 << 20;

/// Picture or clip as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Encoded {
    /// Ending of the member: `jpg` or `mp4`.
    pub(super) extension: &'static str,
    pub(super) bytes: Vec<u8>,
    /// What the json says about it.
    pub(super) facts: Map<String, Value>,
    /// Format of the source.
    format: String,
    kept: bool,
    clip: Option<ClipCounts>,
}

/// Counts of a clip.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ClipCounts {
    seconds: f64,
    source_frames: usize,
    frames: usize,
}

impl Encoded {
    /// Adds the sample to counts.
    pub(super) fn count(&self, stats: &mut Stats) {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        stats.samples += 1;
        stats.media_bytes += number(self.bytes.len());
        *stats.formats.entry(self.format.clone()).or_default() += 1;
        match self.clip {
            Some(ClipCounts { seconds, source_frames, frames }) => {
                stats.clips += 1;
                stats.clip_seconds += seconds;
                stats.source_frames += number(source_frames);
                stats.frames += number(frames);
            }
            None => {
                stats.pictures += 1;
                stats.pictures_kept += u64::from(self.kept);
            }
        }
    }
}

/// Why an item was not encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The item is left out.
    Item { class: &'static str, reason: String },
    /// The whole preparation ends.
    Fatal(String),
}

impl Failure {
    pub(super) fn item(class: &'static str, reason: impl Into<String>) -> Self {
        Self::Item { class, reason: reason.into() }
    }
}

/// Encodes items one after the other. The last video file stays open, because the next item is
/// often a part of the same video.
pub(super) struct Encoder<'a> {
    options: &'a Options,
    shrinker: Shrinker,
    jpeg: JpegEncoder,
    #[cfg(feature = "video")]
    open: Option<(MediaSource, decode::video::Video)>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(options: &'a Options) -> Result<Self, String> {
        Ok(Self {
            options,
            shrinker: Shrinker::new(options.short_side),
            jpeg: JpegEncoder::new(options.quality)?,
            #[cfg(feature = "video")]
            open: None,
        })
    }

    pub(super) fn encode(&mut self, visual: &Visual) -> Result<Encoded, Failure> {
        match visual {
            Visual::Picture(source) => self.picture(source),
            Visual::Pictures(sources) => self.pictures(sources),
            Visual::Clip { video, seconds } => self.clip(video, seconds.as_ref()),
        }
    }

    /// A JPEG whose short side is not too long is kept byte for byte, unless it must be turned: the
    /// stored pictures are upright for readers that ignore EXIF too.
    fn picture(&mut self, source: &MediaSource) -> Result<Encoded, Failure> {
        let bytes = bytes(source)?;
        let (picture, format) = decoded(source, &bytes)?;
        let (width, height) = (picture.width, picture.height);
        let kept = width.min(height) <= self.options.short_side && is_upright_jpeg(&bytes);
        let bytes = if kept { bytes.to_vec() } else { self.stored(picture)? };
        let mut facts = Map::new();
        facts.insert("width".to_owned(), width.into());
        facts.insert("height".to_owned(), height.into());
        facts.insert("codec".to_owned(), format.into());
        let format = format.to_owned();
        Ok(Encoded { extension: "jpg", bytes, facts, format, kept, clip: None })
    }

    fn stored(&mut self, picture: Picture) -> Result<Vec<u8>, Failure> {
        let picture = self.shrinker.shrink(picture);
        let jpeg = picture.and_then(|picture| self.jpeg.encode(&picture));
        jpeg.map_err(|reason| Failure::item("encoding", reason))
    }

    /// Several pictures become a clip of one frame per picture and second. The frames of a clip
    /// have one size. If the pictures do not have the same size after they are scaled down, each is
    /// cut to the square in its middle, whose side is the shortest side of all of them: that is
    /// what the default transform of a recipe takes from a picture.
    fn pictures(&mut self, sources: &[MediaSource]) -> Result<Encoded, Failure> {
        let wrong = |reason: String| Failure::item("encoding", reason);
        let (mut pictures, mut sizes, mut formats) = (Vec::new(), Vec::new(), Vec::new());
        for source in sources {
            let (picture, format) = decoded(source, &bytes(source)?)?;
            sizes.push(json!([picture.width, picture.height]));
            formats.push(format);
            pictures.push(self.shrinker.shrink(picture).map_err(wrong)?);
        }
        let size = |picture: &Picture| (picture.width, picture.height);
        let Some(first) = pictures.first().map(size) else {
            return Err(Failure::item("no picture", "the list of its pictures is empty"));
        };
        if pictures.iter().any(|picture| size(picture) != first) {
            let short = |picture: &Picture| picture.width.min(picture.height);
            let side = pictures.iter().map(short).min().unwrap_or(1);
            for picture in &mut pictures {
                *picture = self.shrinker.square(picture, side).map_err(wrong)?;
            }
        }
        let (width, height) = size(&pictures[0]);
        let mut clip = JpegClipWriter::new(1, width, height).map_err(wrong)?;
        for (second, picture) in (0..).zip(&pictures) {
            clip.push(second, &self.jpeg.encode(picture).map_err(wrong)?).map_err(wrong)?;
        }
        let frames = pictures.len();
        let bytes = clip.finish(u64::try_from(frames).unwrap_or(u64::MAX)).map_err(wrong)?;
        formats.dedup();
        let mut facts = Map::new();
        facts.insert("sizes".to_owned(), sizes.into());
        facts.insert("codec".to_owned(), formats.join(", ").into());
        #[expect(clippy::cast_precision_loss, reason = "a number of pictures")]
        let seconds = frames as f64;
        let counts = ClipCounts { seconds, source_frames: frames, frames };
        let format = "pictures".to_owned();
        Ok(Encoded { extension: "mp4", bytes, facts, format, kept: false, clip: Some(counts) })
    }
}

/// A clip of a video.
#[cfg(feature = "video")]
impl Encoder<'_> {
    fn clip(
        &mut self,
        source: &MediaSource,
        seconds: Option<&Range<f64>>,
    ) -> Result<Encoded, Failure> {
        let wrong = |reason: String| Failure::item("clip", named(source, reason));
        // Only the last video file stays open.
        let mut video = match self.open.take().filter(|(open, _)| open == source) {
            Some((_, video)) => video,
            None => decode::video::Video::open(source).map_err(wrong)?,
        };
        let mut encoded = None;
        // If the packets do not tell which frames the decoder shows, the video is decoded in order.
        for in_order in [false, true] {
            encoded = self.clip_of(&mut video, seconds, in_order).map_err(wrong)?;
            if encoded.is_some() {
                break;
            }
        }
        if let MediaSource::File(_) = source {
            self.open = Some((source.clone(), video));
        }
        encoded.ok_or_else(|| wrong("its frames cannot be found".to_owned()))
    }

    fn clip_of(
        &mut self,
        video: &mut decode::video::Video,
        seconds: Option<&Range<f64>>,
        in_order: bool,
    ) -> Result<Option<Encoded>, String> {
        let (rate, scale) = video.ticks_per_s();
        let mut clip: Option<(JpegClipWriter, i64, [u32; 2])> = None;
        let mut frames = 0;
        let mut size = [0, 0];
        let choose = |count, seconds| chosen(count, seconds, self.options.frames_per_second);
        let (shrinker, jpeg) = (&mut self.shrinker, &mut self.jpeg);
        let span = video.read(seconds, in_order, &choose, &mut |picture, time| {
            let original = [picture.width, picture.height];
            let picture = shrinker.shrink(picture)?;
            let (writer, start, stored) = match &mut clip {
                Some(clip) => clip,
                None => {
                    size = original;
                    let writer = JpegClipWriter::new(rate, picture.width, picture.height)?;
                    clip.insert((writer, time, [picture.width, picture.height]))
                }
            };
            if [picture.width, picture.height] != *stored {
                return Err(format!("its frames change their size, from {size:?} to {original:?}"));
            }
            writer.push(ticks(time - *start, scale), &jpeg.encode(&picture)?)?;
            frames += 1;
            if writer.len() > LARGEST_CLIP {
                return Err(format!(
                    "it would have more than {} MiB; cut it into parts, or keep fewer frames with \
                     --frames-per-second",
                    LARGEST_CLIP >> 20
                ));
            }
            Ok(())
        })?;
        let Some((span, (writer, start, _))) = span.zip(clip) else { return Ok(None) };
        let duration = ticks(span.end - start, scale);
        #[expect(clippy::cast_precision_loss, reason = "ticks of a video stay far below 2⁵³")]
        let duration_s = duration as f64 / f64::from(rate);
        let bytes = writer.finish(duration)?;
        let mut facts = Map::new();
        facts.insert("width".to_owned(), size[0].into());
        facts.insert("height".to_owned(), size[1].into());
        facts.insert("codec".to_owned(), video.codec().into());
        if let Some(seconds) = seconds {
            // A clip that goes to the end of its video has no end.
            let open = !seconds.end.is_finite();
            let end = if open { seconds.start + duration_s } else { seconds.end };
            facts.insert("seconds".to_owned(), json!([seconds.start, end]));
        }
        facts.insert("frames".to_owned(), frames.into());
        facts.insert("source_frames".to_owned(), span.frames.into());
        let counts = ClipCounts { seconds: duration_s, source_frames: span.frames, frames };
        let format = video.codec().to_owned();
        let clip = Some(counts);
        Ok(Some(Encoded { extension: "mp4", bytes, facts, format, kept: false, clip }))
    }
}

/// Ticks of a video as ticks of a clip, of which `scale` make one.
#[cfg(feature = "video")]
fn ticks(ticks: i64, scale: u32) -> u64 {
    u64::try_from(ticks).unwrap_or(0).saturating_mul(u64::from(scale))
}

#[cfg(not(feature = "video"))]
impl Encoder<'_> {
    fn clip(
        &mut self,
        _source: &MediaSource,
        _seconds: Option<&Range<f64>>,
    ) -> Result<Encoded, Failure> {
        let reason = "the set has clips, which need FFmpeg, but this program was built without \
                      it; build it with `--features video`";
        Err(Failure::Fatal(reason.to_owned()))
    }
}

/// Numbers of the frames that are kept of `count` frames in a number of seconds. They are chosen as
/// training chooses frames: uniformly by number, with the first and the last one.
#[cfg_attr(not(any(test, feature = "video")), expect(dead_code, reason = "only clips have frames"))]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a product that is negative or too large becomes 0 or the largest number"
)]
fn chosen(count: usize, seconds: f64, rate: FrameRate) -> Vec<usize> {
    let most = match rate {
        FrameRate::All => count,
        FrameRate::AtMost(rate) => LEAST_FRAMES.max((seconds * f64::from(rate)).ceil() as usize),
    };
    if most < count { uniform_frames(count, most) } else { (0..count).collect() }
}

fn decoded(source: &MediaSource, bytes: &[u8]) -> Result<(Picture, &'static str), Failure> {
    let wrong = |reason| Failure::item("picture", named(source, reason));
    let picture = decode::picture(bytes).map_err(wrong)?;
    Ok((picture, picture_format(bytes).unwrap_or("unknown")))
}

/// The reason with the name of the file.
fn named(source: &MediaSource, reason: String) -> String {
    match source {
        MediaSource::Bytes(_) => reason,
        MediaSource::File(path) => format!("{}: {reason}", path.display()),
    }
}

fn bytes(source: &MediaSource) -> Result<Arc<[u8]>, Failure> {
    match source {
        MediaSource::Bytes(bytes) => Ok(Arc::clone(bytes)),
        MediaSource::File(path) => {
            let read = Storage::default().read(&Location::from(&**path));
            let read = read.map_err(|error| Failure::item("no file", error.to_string()));
            Ok(read?.into())
        }
    }
}

#[cfg(test)]
mod tests;
