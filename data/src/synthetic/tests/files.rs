//! Tests of encoded samples and of the set on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vljepa_recipes::schema::Preprocessing;

use super::first_samples;
use crate::decode::{Media, Picture, decode};
use crate::fixtures::storage;
use crate::reader::{LoadOptions, SampleReader};
use crate::synthetic::design::{FRAMES, PIXEL, SIZE};
use crate::synthetic::names::Colour;
use crate::synthetic::raster::FRAME_BYTES;
use crate::synthetic::sample::{Sample, Scene, Split};
use crate::synthetic::{SynthArgs, encode, permille, run};

fn decoded(sample: &Sample) -> Vec<u8> {
    encode::prepare().unwrap();
    let (extension, bytes) = sample.encode().unwrap();
    let frames = sample.pixels.len() / FRAME_BYTES;
    let clip =
        decode(Media::of_extension(extension).unwrap(), &bytes, frames, &mut Ok::<Picture, String>)
            .unwrap();
    clip.frames().collect::<Vec<_>>().concat()
}

fn mean_error(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>() / a.len() as f64
}

fn nearest(pixel: &[u8]) -> Colour {
    let distance = |colour: &Colour| {
        colour.rgb().iter().zip(pixel).map(|(a, &b)| u32::from(a.abs_diff(b)).pow(2)).sum::<u32>()
    };
    Colour::ALL.into_iter().min_by_key(distance).unwrap()
}

#[test]
fn clips_survive_mp4() {
    let clips: Vec<Sample> = first_samples(Split::HeldOut).take(72).collect();
    for sample in &clips {
        let pixels = decoded(sample);
        // The noise has a mean absolute value of 1.6. The coding error must be smaller.
        let error = mean_error(&pixels, &sample.pixels);
        assert!(error < 1.6, "{}: {error}", sample.key);
        let Scene::Clip(clip) = &sample.scene else { panic!("no clip") };
        let truth = clip.frames();
        for (pixel, drawn) in
            pixels.chunks(3).zip(truth.chunks(3)).filter(|(_, drawn)| **drawn == clip.figure.rgb())
        {
            assert_eq!(
                Some(nearest(pixel)),
                clip.figure.colour(),
                "{}: {pixel:?} for {drawn:?}",
                sample.key
            );
        }
    }
    let (a, b) = (decoded(&clips[0]), &clips[1].pixels);
    assert!(mean_error(&a, b) > 5.0, "the error against another clip is larger");
    let frame = |t: usize| &clips[0].pixels[t * FRAME_BYTES..(t + 1) * FRAME_BYTES];
    assert!(
        mean_error(&a[..FRAME_BYTES], frame(FRAMES - 1)) > 5.0,
        "the error against another frame is larger"
    );
}

#[test]
fn a_clip_has_one_packet_per_frame_at_even_times() {
    encode::prepare().unwrap();
    let (_, bytes) = first_samples(Split::TrainClips).next().unwrap().encode().unwrap();
    let times = crate::decode::video::frame_times(&bytes).unwrap();
    assert_eq!(times.len(), FRAMES);
    for (index, time) in times.iter().enumerate() {
        assert!((time - index as f64 / 8.0).abs() < 1e-6, "{times:?}");
    }
}

#[test]
fn pictures_survive_jpeg_with_their_colours() {
    for sample in first_samples(Split::Colour).take(200) {
        let pixels = decoded(&sample);
        // As for clips, the coding error must be smaller than the noise.
        let error = mean_error(&pixels, &sample.pixels);
        assert!(error < 1.6, "{}: {error}", sample.key);
        let Scene::Picture(picture) = &sample.scene else { panic!("no picture") };
        for object in &picture.objects {
            // A point right of the centre, at 3/4 of the radius. It is inside every shape, even the
            // ring, except for the triangle.
            let point = (object.centre.0 + 3 * object.radius / 4, object.centre.1);
            let at = |v: i32| usize::try_from(v / PIXEL).unwrap();
            let start = (at(point.1) * SIZE + at(point.0)) * 3;
            if sample.pixels[start..start + 3].iter().all(|&value| value < 60) {
                continue; // The point is outside of the triangle.
            }
            assert_eq!(
                Some(nearest(&pixels[start..start + 3])),
                object.figure.colour(),
                "{}",
                sample.key
            );
        }
    }
}

#[test]
fn encoding_is_repeatable() {
    encode::prepare().unwrap();
    for split in [Split::TrainClips, Split::TrainQuestions] {
        let samples: Vec<Sample> = first_samples(split).take(2).collect();
        assert_eq!(samples[0].encode().unwrap(), samples[0].encode().unwrap());
        assert_ne!(samples[0].encode().unwrap(), samples[1].encode().unwrap());
    }
}

fn args(dir: &Path, seed: u64, scale_permille: u32) -> SynthArgs {
    SynthArgs { dir: dir.to_owned(), seed, scale_permille }
}

fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in ["", "train", "eval", "eval/world_prediction", "labels"] {
        for entry in fs::read_dir(dir.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.insert(
                    path.strip_prefix(dir).unwrap().display().to_string(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    files
}

#[test]
fn the_set_on_disk_is_complete_repeatable_and_left_alone_when_up_to_date() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(!run(&args(first.path(), 0, 70)).unwrap().up_to_date);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| run(&args(second.path(), 0, 70))).unwrap();
    let written = content(first.path());
    assert_eq!(written, content(second.path()), "the same bytes, on any number of threads");
    for name in [
        "train/clips-000001.tar",
        "train/images-000000.tar",
        "train/questions-000001.tar",
        "eval/heldout.tar",
        "eval/world_prediction.json",
        "eval/world_prediction/199-clips.mp4",
        "manifest.json",
    ] {
        assert!(written.contains_key(name), "{name} in {:?}", written.keys());
    }
    let again = run(&args(first.path(), 0, 70)).unwrap();
    assert!(again.up_to_date);
    assert_eq!(again.splits[0].samples, 1120);

    fs::write(first.path().join("eval/count.tar"), b"damaged").unwrap();
    assert!(
        !run(&args(first.path(), 0, 70)).unwrap().up_to_date,
        "a damaged file is written again"
    );
    assert_eq!(content(first.path()), written);

    run(&args(first.path(), 0, 5)).unwrap();
    let smaller = content(first.path());
    assert!(!smaller.contains_key("train/clips-000001.tar"), "shards of the larger set are gone");
    run(&args(first.path(), 1, 5)).unwrap();
    assert_ne!(
        content(first.path())["eval/heldout.tar"],
        smaller["eval/heldout.tar"],
        "another seed, other clips"
    );
}

#[test]
fn the_reader_reads_what_was_drawn() {
    let dir = tempfile::tempdir().unwrap();
    run(&args(dir.path(), 0, 1)).unwrap();
    for (file, split, frames) in [("heldout", Split::HeldOut, FRAMES), ("exists", Split::Exists, 1)]
    {
        let reader = SampleReader::open(
            &storage(),
            &dir.path().join(format!("eval/{file}.tar")).display().to_string(),
            None,
        )
        .unwrap();
        assert_eq!(reader.len(), split.len());
        let options =
            LoadOptions { frames, image_size: SIZE, preprocessing: Preprocessing::default() };
        for (index, drawn) in first_samples(split).take(20).enumerate() {
            let read = reader.load(index, &options).unwrap();
            assert_eq!(read.key, drawn.key);
            assert_eq!(read.texts.caption().unwrap(), drawn.description.caption.as_deref());
            assert_eq!(read.texts.questions().unwrap(), drawn.description.questions);
            assert!(mean_error(&read.frames, &drawn.pixels) < 1.6);
            if split == Split::HeldOut {
                let motion = drawn.description.motion.unwrap();
                assert_eq!(read.texts.field("motion").unwrap(), Some(&*motion.to_string()));
            }
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = run(&args(&file.join("set"), 0, 1)).unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
}

#[test]
fn scales_are_checked() {
    assert_eq!(permille("0.25"), Ok(250));
    assert_eq!(permille("1"), Ok(1000));
    for wrong in ["0", "-1", "1000", "nan", "full"] {
        assert!(permille(wrong).is_err(), "{wrong}");
    }
}
