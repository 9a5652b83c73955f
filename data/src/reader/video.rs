//! Reads windows of a sample that is a long video.

use std::ops::Range;
use std::sync::Arc;

use super::{LoadOptions, LoadedSample, Located, SampleName, SampleReader, name};
use crate::decode::video::LongVideo;
use crate::decode::{Media, MediaSource};
use crate::error::DataError;
use crate::sample::RawSample;
use crate::texts::Texts;
use crate::transform::Shaper;

/// Long video of a sample, of which windows are read.
#[derive(Debug)]
pub struct SampleVideo {
    name: SampleName,
    video: LongVideo,
}

impl SampleReader {
    /// Opens sample number `index`, which is a long video. A video of a set stays on the disk.
    ///
    /// # Errors
    /// [`DataError::BadSample`] if the sample is no video or cannot be decoded or the file of a set
    /// cannot be read, [`DataError::Io`] if the shard cannot be read.
    ///
    /// # Panics
    /// If `index` is not below [`SampleReader::len`].
    pub fn video(&self, index: usize) -> Result<SampleVideo, DataError> {
        let (name, source) = match self.locate(index)? {
            Located::Shard(shard, number) => {
                let RawSample { key, shard, visual, .. } =
                    RawSample::read(&shard, number, &[Media::Video])?;
                let bytes = visual.map(|(_, bytes)| MediaSource::Bytes(Arc::from(bytes)));
                let bytes = bytes.ok_or_else(|| "the sample has no video".to_owned());
                (SampleName { shard, key }, bytes)
            }
            Located::File(sample, _) => {
                let visual = sample.visual.as_ref().ok_or_else(|| "it has no video".to_owned());
                let path = visual.and_then(|visual| match visual.seconds {
                    None => visual.existing(),
                    Some(_) => {
                        Err("windows are read of a whole video, not of a segment".to_owned())
                    }
                });
                (name(sample), path.map(MediaSource::File))
            }
        };
        match source.and_then(|source| LongVideo::open(&source)) {
            Ok(video) => Ok(SampleVideo { name, video }),
            Err(reason) => Err(name.bad(reason)),
        }
    }
}

impl SampleName {
    fn bad(&self, reason: String) -> DataError {
        DataError::BadSample { shard: self.shard.to_string(), key: self.key.clone(), reason }
    }
}

impl SampleVideo {
    /// Duration of the video in seconds.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        self.video.duration_s()
    }

    /// Reads and decodes windows, in seconds after the start of the video. Their samples have no
    /// texts.
    ///
    /// # Errors
    /// [`DataError::BadSample`] if the video cannot be decoded.
    pub fn windows(
        &mut self,
        windows: &[Range<f64>],
        options: &LoadOptions,
    ) -> Result<Vec<LoadedSample>, DataError> {
        let Self { name, video } = self;
        let size = u32::try_from(options.image_size);
        let size = size.map_err(|_| name.bad("image_size is too large".to_owned()))?;
        let mut shaper = Shaper::new(options.preprocessing, size);
        let clip = video.decode(windows, options.frames, &mut shaper);
        let clip = clip.map_err(|reason| name.bad(reason))?;
        let frames: Vec<&[u8]> = clip.frames().collect();
        let sample = |frames: &[&[u8]]| LoadedSample {
            key: name.key.clone(),
            shard: name.shard.to_string(),
            frames: frames.concat(),
            texts: Texts::default(),
        };
        Ok(frames.chunks(options.frames).map(sample).collect())
    }
}
