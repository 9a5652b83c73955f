//! Reads samples one by one, in the order of the shards or of a set's annotations, for evaluation,
//! questions and search.

mod video;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use vljepa_recipes::schema::{Preprocessing, SampleSource, Task};

use crate::catalogue::{Catalogue, SetIdentity};
use crate::decode::video::Segments;
use crate::decode::{Clip, Media, decode};
use crate::error::DataError;
use crate::sample::{self, RawSample};
use crate::sets::{OpenSet, SetSample};
use crate::shards::{OpenShard, ShardSet};
use crate::storage::Storage;
use crate::texts::Texts;
use crate::transform::Shaper;

pub use self::video::SampleVideo;

/// Number of frames, size and transform that a sample is loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Number of frames. A picture is repeated that often.
    pub frames: usize,
    /// Side of the square frames, in pixels.
    pub image_size: usize,
    /// How frames are brought to `image_size`. A random crop is for training only; here it is
    /// treated as `resize_center_crop`.
    pub preprocessing: Preprocessing,
}

/// Decoded sample with its texts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedSample {
    /// Key of the sample in its shard, or the name of a single file.
    pub key: String,
    /// Path of the shard or of the single file.
    pub shard: String,
    /// Pixels, (T, H, W, 3), in the order red, green, blue.
    pub frames: Vec<u8>,
    /// Caption, questions and json fields. Empty for a single file.
    pub texts: Texts,
}

/// Name of a sample in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleName {
    /// Path of the shard, or of the picture or video of a set.
    pub shard: Arc<str>,
    /// Key of the sample in the shard or set.
    pub key: String,
}

/// Reads the samples of shards or of an evaluation set by number. Threads may share a reader.
#[derive(Debug)]
pub struct SampleReader {
    samples: Samples,
    identity: SetIdentity,
}

#[derive(Debug)]
enum Samples {
    Shards {
        shards: ShardSet,
        /// Number of the first sample of each shard, followed by the number of all samples.
        starts: Vec<usize>,
    },
    Set {
        samples: Vec<SetSample>,
        segments: Segments,
    },
}

impl SampleReader {
    /// Opens the shards of an entry, whose catalogue is in the folder `catalogue` or beside them.
    ///
    /// # Errors
    /// The errors of [`Catalogue::open`].
    pub fn open(
        storage: &Storage,
        shards: &str,
        catalogue: Option<&Path>,
    ) -> Result<Self, DataError> {
        let catalogue = Catalogue::open(storage, shards, catalogue)?;
        let mut starts = vec![0];
        let mut next = 0;
        for length in catalogue.lengths() {
            next += usize::try_from(length).unwrap_or(usize::MAX);
            starts.push(next);
        }
        let identity = catalogue.identity();
        let shards = ShardSet::new(storage.clone(), Arc::new(catalogue));
        Ok(Self { samples: Samples::Shards { shards, starts }, identity })
    }

    /// Reads the samples of a set.
    #[must_use]
    pub fn of_set(set: OpenSet) -> Self {
        let identity = set.identity();
        let samples = Samples::Set { samples: set.samples, segments: Segments::default() };
        Self { samples, identity }
    }

    /// Identity of the samples when the shards or the set were opened.
    #[must_use]
    pub fn identity(&self) -> &SetIdentity {
        &self.identity
    }

    /// Opens the shards or the set of an evaluation task.
    ///
    /// # Errors
    /// The errors of [`Catalogue::open`] and [`OpenSet::open`].
    pub fn of_task(storage: &Storage, task: &Task) -> Result<Self, DataError> {
        match task.source() {
            SampleSource::Shards { shards, catalogue } => Self::open(storage, shards, catalogue),
            SampleSource::Set(set) => Ok(Self::of_set(OpenSet::open(set)?)),
        }
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.samples {
            Samples::Shards { starts, .. } => starts.last().copied().unwrap_or(0),
            Samples::Set { samples, .. } => samples.len(),
        }
    }

    /// Whether there are no samples. False for shards, because [`SampleReader::open`] rejects a set
    /// of shards without samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads and decodes sample number `index`.
    ///
    /// # Errors
    /// [`DataError::BadSample`] if the sample cannot be decoded or the file of a set cannot be
    /// read, [`DataError::Io`] if the shard cannot be read.
    ///
    /// # Panics
    /// If `index` is not below [`SampleReader::len`].
    pub fn load(&self, index: usize, options: &LoadOptions) -> Result<LoadedSample, DataError> {
        let (shard, number) = match self.locate(index)? {
            Located::Shard(shard, number) => (shard, number),
            Located::File(sample, segments) => return load_of_set(sample, segments, options),
        };
        let raw = RawSample::read(&shard, number, &[Media::Video, Media::Image])?;
        let bad = |reason| DataError::BadSample {
            shard: raw.shard.to_string(),
            key: raw.key.clone(),
            reason,
        };
        let Some((media, bytes)) = &raw.visual else {
            return Err(bad("the sample has neither a picture nor a clip".to_owned()));
        };
        let frames = pixels(*media, bytes, options).map_err(bad)?;
        let RawSample { key, shard, texts, .. } = raw;
        Ok(LoadedSample { key, shard: shard.to_string(), frames, texts })
    }

    /// Reads the texts of sample number `index`, and names it.
    ///
    /// # Errors
    /// [`DataError::Io`] if the shard cannot be read.
    ///
    /// # Panics
    /// If `index` is not below [`SampleReader::len`].
    pub fn texts(&self, index: usize) -> Result<(SampleName, Texts), DataError> {
        match self.locate(index)? {
            Located::Shard(shard, number) => {
                let key = shard.sample(number).key.to_string();
                let name = SampleName { shard: Arc::clone(&shard.path), key };
                Ok((name, sample::texts(&shard, number)?))
            }
            Located::File(sample, _) => Ok((name(sample), sample.texts.clone())),
        }
    }

    fn locate(&self, index: usize) -> Result<Located<'_>, DataError> {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        match &self.samples {
            Samples::Shards { shards, starts } => {
                let number = starts.partition_point(|&start| start <= index) - 1;
                Ok(Located::Shard(shards.shard(number)?, index - starts[number]))
            }
            Samples::Set { samples, segments } => Ok(Located::File(&samples[index], segments)),
        }
    }
}

/// Where a sample is.
enum Located<'a> {
    /// In a shard, with its number there.
    Shard(Arc<OpenShard>, usize),
    /// In a file of a set.
    File(&'a SetSample, &'a Segments),
}

fn name(sample: &SetSample) -> SampleName {
    let path = sample.visual.as_ref().map(|visual| visual.path.to_string_lossy());
    SampleName { shard: path.unwrap_or_default().into(), key: sample.key.clone() }
}

/// Reads and decodes a sample of a set.
fn load_of_set(
    sample: &SetSample,
    segments: &Segments,
    options: &LoadOptions,
) -> Result<LoadedSample, DataError> {
    let SampleName { shard, key } = name(sample);
    let bad = |reason| DataError::BadSample { shard: shard.to_string(), key: key.clone(), reason };
    let visual = sample.visual.as_ref();
    let visual = visual.ok_or_else(|| bad("a triplet of texts has no picture".to_owned()))?;
    let path = visual.existing().map_err(bad)?;
    let frames = match (&visual.seconds, &visual.second) {
        (None, None) => file_pixels(&path, options),
        (_, Some(second)) => halves([&path, second], options),
        (Some(seconds), None) => {
            let segment =
                &|frames, shaper: &mut Shaper| segments.decode(&path, seconds, frames, shaper);
            shaped(segment, options)
        }
    };
    let (frames, shard) = (frames.map_err(bad)?, path.to_string_lossy().into_owned());
    Ok(LoadedSample { key, shard, frames, texts: sample.texts.clone() })
}

/// Reads and decodes a single file, a picture or clip (`jpg`, `jpeg`, `png`; `mp4`, `mkv`, `webm`,
/// `avi`, `mov`). The sample has no texts.
///
/// # Errors
/// [`DataError::Io`] if the file cannot be read, [`DataError::BadSample`] if it cannot be decoded.
pub fn load_file(path: &Path, options: &LoadOptions) -> Result<LoadedSample, DataError> {
    let key = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let shard: Arc<str> = path.to_string_lossy().into();
    let bad = |reason: String| DataError::BadSample {
        shard: shard.to_string(),
        key: key.clone(),
        reason,
    };
    let media = media_of(path).map_err(bad)?;
    let bytes = fs::read(path).map_err(DataError::io("read", path))?;
    let frames = pixels(media, &bytes, options).map_err(bad)?;
    Ok(LoadedSample { key, shard: shard.to_string(), frames, texts: Texts::default() })
}

fn media_of(path: &Path) -> Result<Media, String> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let media = Media::of_extension(&extension);
    media.ok_or_else(|| {
        "not a picture (jpg, jpeg, png, webp, avif) or clip (mp4, mkv, webm, avi, mov)".to_owned()
    })
}

fn file_pixels(path: &Path, options: &LoadOptions) -> Result<Vec<u8>, String> {
    let media = media_of(path)?;
    let bytes = fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    pixels(media, &bytes, options)
}

/// Pixels of a clip whose halves each repeat one picture. The middle frame of an odd number shows
/// the first picture.
fn halves([first, second]: [&Path; 2], options: &LoadOptions) -> Result<Vec<u8>, String> {
    if options.frames < 2 {
        return Err("a clip of two pictures has at least 2 frames".to_owned());
    }
    let of = |path: &Path, frames| file_pixels(path, &LoadOptions { frames, ..*options });
    let later = options.frames / 2;
    Ok([of(first, options.frames - later)?, of(second, later)?].concat())
}

fn pixels(media: Media, bytes: &[u8], options: &LoadOptions) -> Result<Vec<u8>, String> {
    shaped(&|frames, shaper: &mut Shaper| decode(media, bytes, frames, shaper), options)
}

/// Pixels of all frames that a decoder makes in the shape of the options.
fn shaped(
    decode: &dyn Fn(usize, &mut Shaper) -> Result<Clip, String>,
    options: &LoadOptions,
) -> Result<Vec<u8>, String> {
    let size = u32::try_from(options.image_size).map_err(|_| "image_size is too large")?;
    let clip = decode(options.frames, &mut Shaper::new(options.preprocessing, size))?;
    Ok(clip.frames().collect::<Vec<_>>().concat())
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::schema::{Interpolation, Preprocessing, Transform};

    use super::{LoadOptions, SampleReader, load_file};
    use crate::error::DataError;
    use crate::fixtures::{numbered, png, storage, write_tar};

    const OPTIONS: LoadOptions = LoadOptions {
        frames: 2,
        image_size: 8,
        preprocessing: Preprocessing {
            transform: Transform::ResizeCenterCrop,
            interpolation: Interpolation::Bilinear,
        },
    };

    #[test]
    fn samples_come_in_the_shards_order_with_their_texts() {
        let folder = tempfile::tempdir().unwrap();
        write_tar(&folder.path().join("a-0.tar"), &numbered(0, 3));
        write_tar(&folder.path().join("a-1.tar"), &numbered(3, 2));
        let reader = SampleReader::open(&storage(), folder.path().to_str().unwrap(), None).unwrap();
        assert_eq!((reader.len(), reader.is_empty()), (5, false));
        for number in 0..5_u8 {
            let sample = reader.load(usize::from(number), &OPTIONS).unwrap();
            assert_eq!(sample.key, format!("{number:03}"));
            assert!(sample.shard.ends_with(if number < 3 { "a-0.tar" } else { "a-1.tar" }));
            assert_eq!(sample.frames.len(), 2 * 8 * 8 * 3);
            assert!(sample.frames.chunks(3).all(|pixel| pixel[2] == number));
            let caption = format!("a picture number {number}");
            assert_eq!(sample.texts.caption(), Ok(Some(&*caption)));
            let questions = sample.texts.questions().unwrap();
            let kinds: Vec<_> = questions.iter().map(|q| q.kind.as_str()).collect();
            assert_eq!(kinds, ["number", "colour"]);
            assert_eq!(reader.texts(usize::from(number)).unwrap().1, sample.texts);
        }
    }

    #[test]
    fn a_bad_sample_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        write_tar(&path, &[("x.png".to_owned(), b"junk".to_vec()), ("x.txt".to_owned(), vec![])]);
        let reader = SampleReader::open(&storage(), path.to_str().unwrap(), None).unwrap();
        let error = reader.load(0, &OPTIONS).unwrap_err();
        assert!(matches!(&error, DataError::BadSample { key, .. } if key == "x"), "{error}");
        assert!(error.to_string().contains("a.tar"));
    }

    #[test]
    fn one_file_loads_by_its_extension() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photo.PNG");
        std::fs::write(&path, png(8, 8, 7)).unwrap();
        let loaded = load_file(&path, &OPTIONS).unwrap();
        assert_eq!((loaded.key.as_str(), loaded.frames.len()), ("photo.PNG", 384));
        let text = folder.path().join("notes.txt");
        assert!(load_file(&text, &OPTIONS).unwrap_err().to_string().contains("not a picture"));
        let missing = load_file(&folder.path().join("none.png"), &OPTIONS).unwrap_err();
        assert!(matches!(missing, DataError::Io { .. }));
    }
}
