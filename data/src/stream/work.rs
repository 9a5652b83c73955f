//! Measures the work of reader threads, by kind of sample and part of the work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{DataPart, KindWork};
use vljepa_recipes::schema::Visual;

use crate::decode::{Clip, Media, Part, Picture, Region, Shape, decode};
use crate::error::DataError;
use crate::sample::RawSample;
use crate::shards::OpenShard;

/// Work of all threads that share this meter, since it was read last.
#[derive(Debug, Default)]
pub struct WorkMeter {
    images: Counters,
    clips: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    samples: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: [AtomicU64; DataPart::ALL.len()],
}

impl WorkMeter {
    fn of(&self, media: Media) -> &Counters {
        match media {
            Media::Image => &self.images,
            Media::Video => &self.clips,
        }
    }

    fn add(&self, media: Media, part: DataPart, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.of(media).nanoseconds[part as usize].fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Runs `work`, which is a part of the work on a sample.
    pub fn time<T>(&self, media: Media, part: DataPart, work: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let result = work();
        self.add(media, part, since.elapsed());
        result
    }

    /// Reads sample `number` of a shard, see [`RawSample::read`]. A sample without picture or clip
    /// counts for `wanted`.
    ///
    /// # Errors
    /// The errors of [`RawSample::read`].
    pub fn read(
        &self,
        shard: &OpenShard,
        number: usize,
        wanted: &[Media],
    ) -> Result<RawSample, DataError> {
        let since = Instant::now();
        let sample = RawSample::read(shard, number, wanted)?;
        let media = sample.visual.as_ref().map(|(media, _)| *media);
        let media = media.or(wanted.first().copied()).unwrap_or(Media::Image);
        self.add(media, DataPart::Read, since.elapsed());
        let visual = sample.visual.as_ref().map_or(0, |(_, bytes)| bytes.len());
        let bytes = u64::try_from(visual + sample.texts.bytes()).unwrap_or(u64::MAX);
        self.of(media).bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(sample)
    }

    /// Decodes a picture or clip, see [`decode`]. The time in `shape` counts as resizing.
    ///
    /// # Errors
    /// The errors of [`decode`].
    pub fn decode(
        &self,
        media: Media,
        bytes: &[u8],
        frames: usize,
        shape: &mut dyn Shape,
    ) -> Result<Clip, String> {
        let since = Instant::now();
        let mut timed = TimedShape { shape, time: Duration::ZERO };
        let clip = decode(media, bytes, frames, &mut timed);
        let resized = timed.time;
        self.add(media, DataPart::Resize, resized);
        self.add(media, DataPart::Decode, since.elapsed().saturating_sub(resized));
        self.of(media).samples.fetch_add(1, Ordering::Relaxed);
        clip
    }

    /// Work since the last call, without kinds that had none.
    pub fn take(&self) -> BTreeMap<Visual, KindWork> {
        let kinds = [(Visual::Image, &self.images), (Visual::Video, &self.clips)];
        let kinds = kinds.map(|(kind, counters)| (kind, counters.take()));
        kinds.into_iter().filter(|(_, work)| work.total_s() > 0.0).collect()
    }
}

impl Counters {
    fn take(&self) -> KindWork {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let seconds = |part: DataPart| {
            let nanoseconds = take(&self.nanoseconds[part as usize]);
            (part, Duration::from_nanos(nanoseconds).as_secs_f64())
        };
        KindWork {
            samples: take(&self.samples),
            bytes: take(&self.bytes),
            seconds: DataPart::ALL.map(seconds).into_iter().collect(),
        }
    }
}

/// A shape that measures its own time.
struct TimedShape<'a> {
    shape: &'a mut dyn Shape,
    time: Duration,
}

impl Shape for TimedShape<'_> {
    fn region(&self, width: u32, height: u32) -> Region {
        self.shape.region(width, height)
    }

    fn shape(&mut self, part: Part) -> Result<Picture, String> {
        let since = Instant::now();
        let picture = self.shape.shape(part);
        self.time += since.elapsed();
        picture
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vljepa_recipes::protocol::DataPart;
    use vljepa_recipes::schema::{Preprocessing, Visual};

    use super::WorkMeter;
    use crate::decode::{Media, Part, Picture, Region, Shape};
    use crate::fixtures::png;
    use crate::transform::Shaper;

    /// A shape that takes 20 ms.
    struct Slow(Shaper);

    impl Shape for Slow {
        fn region(&self, width: u32, height: u32) -> Region {
            self.0.region(width, height)
        }

        fn shape(&mut self, part: Part) -> Result<Picture, String> {
            std::thread::park_timeout(Duration::from_millis(20));
            self.0.shape(part)
        }
    }

    #[test]
    fn resizing_is_no_part_of_decoding_and_work_is_counted_once() {
        let meter = WorkMeter::default();
        let mut slow = Slow(Shaper::new(Preprocessing::default(), 8));
        let bytes = png(16, 16, 7);
        for _ in 0..3 {
            meter.decode(Media::Image, &bytes, 2, &mut slow).unwrap();
        }
        meter.time(Media::Image, DataPart::Tokenise, || {
            std::thread::park_timeout(Duration::from_millis(5));
        });
        let work = meter.take();
        assert_eq!(work.keys().collect::<Vec<_>>(), [&Visual::Image]);
        let images = &work[&Visual::Image];
        assert_eq!(images.samples, 3);
        // A wait may end early without a reason, but not all of them.
        assert!(images.seconds[&DataPart::Resize] > 0.02, "{images:?}");
        assert!(images.seconds[&DataPart::Decode] > 0.0, "{images:?}");
        assert_eq!(images.longest().unwrap().0, DataPart::Resize);
        assert!(images.seconds[&DataPart::Read] < 1e-9, "nothing was read: {images:?}");
        assert!(meter.take().is_empty(), "the work was taken");
    }
}
