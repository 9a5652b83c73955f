//! Tests with real shards, photos and clips of other people. They are not part of the repository:
//! the tests read them from the folder `VLJEPA_MATERIAL`, by default `../shared/material` next to
//! the repository. Without the folder, each test prints that it did not run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(feature = "video")]
use std::time::{Duration, Instant};

use vljepa_data::decode::{Media, Picture, decode};
use vljepa_data::shard_index::ShardIndex;
use vljepa_data::storage::Storage;
use vljepa_data::{DataError, LoadOptions, SampleReader, reader};
use vljepa_recipes::schema::{Interpolation, Preprocessing, Transform};

/// Time limit for decoding one file. It is far longer than any of these small files needs, and
/// shorter than a user would wait.
#[cfg(feature = "video")]
const BOUND: Duration = Duration::from_secs(60);

const OPTIONS: LoadOptions = LoadOptions {
    frames: 4,
    image_size: 64,
    preprocessing: Preprocessing {
        transform: Transform::ResizeCenterCrop,
        interpolation: Interpolation::Bilinear,
    },
};

/// Returns a folder of the material, or prints that it does not exist and returns `None`.
#[expect(clippy::print_stderr, reason = "a test without material says that it did not run")]
pub fn material(folder: &str) -> Option<PathBuf> {
    let named = std::env::var_os("VLJEPA_MATERIAL").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/material");
    let path = named.unwrap_or_else(beside).join(folder);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("not run: {} does not exist (set VLJEPA_MATERIAL to another folder)", path.display());
    None
}

/// Returns the files of a folder with one of the extensions, sorted by name.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extensions.iter().any(|&e| extension == e))
    };
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(wanted).collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn shards_of_webdatasets_authors_are_grouped_as_they_are_written() {
    let Some(folder) = material("shards/webdataset") else { return };
    // The test reads copies, because a catalogue is written beside the shards.
    let copies = tempfile::tempdir().unwrap();
    let mut samples = BTreeMap::new();
    for path in files(&folder, &["tar"]) {
        let copy = copies.path().join(name(&path));
        fs::copy(&path, &copy).unwrap();
        let index = ShardIndex::read(&copy).unwrap();
        assert!(index.dropped.is_empty(), "{}: {:?}", name(&path), index.dropped);
        samples.insert(name(&path), (index.samples.len(), index.fields));
    }
    let field = |name: &str| vec![name.to_owned()];
    assert_eq!(samples["compressed.tar"], (3, field("txt.gz")));
    assert_eq!(samples["testgz.tar"], (1000, field("txt.gz")));
    assert_eq!(samples["mpdata.tar"], (100, field("mp")));
    let compressed = copies.path().join("sample.tgz");
    fs::copy(folder.join("sample.tgz"), &compressed).unwrap();
    let error = ShardIndex::read(&compressed).unwrap_err().to_string();
    assert!(error.contains("gzip-compressed") && error.contains("gunzip"), "{error}");
    // Samples with texts alone have no visual input: each gives a clear error and no panic.
    let reader = SampleReader::open(
        &Storage::default(),
        copies.path().join("testgz.tar").to_str().unwrap(),
        None,
    )
    .unwrap();
    for index in 0..10 {
        let error = reader.load(index, &OPTIONS).unwrap_err().to_string();
        assert!(error.contains("neither a picture nor a clip"), "{error}");
    }
}

#[test]
fn photos_decode_at_their_size_and_a_broken_one_is_named() {
    for folder in ["images/scikit-image", "images/img2dataset"] {
        let Some(folder) = material(folder) else { return };
        for path in files(&folder, &["jpg", "png"]) {
            let loaded = reader::load_file(&path, &OPTIONS);
            if name(&path) == "truncated.jpg" {
                let error = loaded.unwrap_err();
                assert!(matches!(error, DataError::BadSample { .. }));
                assert!(error.to_string().contains("truncated.jpg"), "{error}");
                continue;
            }
            let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(loaded.frames.len(), 4 * 64 * 64 * 3);
            let values: std::collections::BTreeSet<_> = loaded.frames.iter().collect();
            assert!(values.len() > 1, "{} is flat", name(&path));
            // The files of img2dataset are named WIDTH_HEIGHT.
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            if let Some((width, height)) = stem.split_once('_')
                && let (Ok(width), Ok(height)) = (width.parse::<u32>(), height.parse::<u32>())
            {
                let bytes = fs::read(&path).unwrap();
                let clip = decode(Media::Image, &bytes, 1, &mut Ok::<Picture, String>).unwrap();
                assert_eq!((clip.pictures[0].width, clip.pictures[0].height), (width, height));
            }
        }
    }
}

#[cfg(not(feature = "video"))]
#[test]
fn clips_without_ffmpeg_are_refused_in_words() {
    let Some(folder) = material("video/mmaction2") else { return };
    let error = reader::load_file(&folder.join("demo.mp4"), &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("built without"), "{error}");
}

/// The best video stream is stream 3. Its frame times must be those that torchcodec's authors
/// recorded.
#[cfg(feature = "video")]
#[test]
fn frame_times_are_those_recorded() {
    let Some(folder) = material("video/torchcodec") else { return };
    let times = |stream: u32| -> Vec<f64> {
        let path = folder.join(format!("nasa_13013.mp4.stream{stream}.all_frames_info.json"));
        let frames: Vec<BTreeMap<String, String>> =
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        frames.iter().map(|frame| frame["pts_time"].parse().unwrap()).collect()
    };
    let bytes = fs::read(folder.join("nasa_13013.mp4")).unwrap();
    let ours = vljepa_data::decode::video::frame_times(&bytes).unwrap();
    // The record has six decimals.
    let same = |golden: &[f64]| {
        golden.len() == ours.len() && ours.iter().zip(golden).all(|(a, b)| (a - b).abs() <= 0.6e-6)
    };
    assert!(same(&times(3)));
    assert!(!same(&times(0)), "another stream's times must not pass");
}

#[cfg(feature = "video")]
#[test]
fn clips_decode_or_are_refused_in_bounded_time() {
    for folder in ["video/torchcodec", "video/decord", "video/mmaction2"] {
        let Some(folder) = material(folder) else { return };
        for path in files(&folder, &["mp4", "mkv", "mov", "avi"]) {
            let start = Instant::now();
            let loaded = reader::load_file(&path, &OPTIONS);
            assert!(start.elapsed() < BOUND, "{} takes too long", name(&path));
            if name(&path) == "corrupted.mp4" {
                let error = loaded.unwrap_err().to_string();
                assert!(error.contains("corrupted.mp4: "), "{error}");
                continue;
            }
            let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(loaded.frames.len(), 4 * 64 * 64 * 3, "{}", name(&path));
        }
    }
}

/// Seeking to key frames must give the same frames as decoding the whole clip.
#[cfg(feature = "video")]
#[test]
fn frames_taken_by_seeking_are_the_same_as_frames_decoded_in_order() {
    use vljepa_data::decode::{uniform_frames, video::frame_times};
    for folder in ["video/torchcodec", "video/decord", "video/mmaction2"] {
        let Some(folder) = material(folder) else { return };
        for path in files(&folder, &["mp4", "mkv", "mov", "avi"]) {
            let bytes = fs::read(&path).unwrap();
            let Ok(times) = frame_times(&bytes) else { continue };
            let frames = |n: usize| {
                // Hashes instead of pixels, so that a whole clip fits in memory.
                let shaped =
                    |picture: Picture| Ok(Picture { pixels: pixel_hash(&picture), ..picture });
                decode(Media::Video, &bytes, n, &mut { shaped }).unwrap()
            };
            let all = frames(times.len());
            assert_eq!(all.order, uniform_frames(times.len(), times.len()), "{}", name(&path));
            for n in [1, 3, 8] {
                let some = frames(n);
                for (place, number) in some.order.iter().zip(uniform_frames(times.len(), n)) {
                    let (ours, other) = (&some.pictures[*place], &all.pictures[all.order[number]]);
                    assert_eq!(ours, other, "{} frame {number}", name(&path));
                }
            }
        }
    }
}

/// Prepares all clips with all their frames. Each has the frames and times of the original, and
/// only the one that is damaged is left out.
#[cfg(feature = "video")]
#[test]
fn prepared_clips_have_the_frames_and_times_of_the_real_ones() {
    use vljepa_data::decode::video::frame_times;
    use vljepa_data::prepare::sets::WebDatasetArgs;
    use vljepa_data::prepare::{FrameRate, OutputArgs, Progress, SetCommand, run};
    use vljepa_data::transform::Shrinker;
    let temporary = tempfile::tempdir().unwrap();
    let mut originals = BTreeMap::new();
    let mut builder = tar::Builder::new(fs::File::create(temporary.path().join("a.tar")).unwrap());
    for folder in ["video/torchcodec", "video/decord", "video/mmaction2"] {
        let Some(folder) = material(folder) else { return };
        for path in files(&folder, &["mp4", "mkv", "mov", "avi"]) {
            builder.append_path_with_name(&path, name(&path)).unwrap();
            originals.insert(path.file_stem().unwrap().to_string_lossy().into_owned(), path);
        }
    }
    builder.finish().unwrap();
    let into = temporary.path().join("into");
    let shards = vec![temporary.path().join("a.tar").display().to_string()];
    let output = OutputArgs {
        into: into.clone(),
        name: "shard".to_owned(),
        short_side: 128,
        quality: 90,
        frames_per_second: FrameRate::All,
        shard_mib: 256,
        threads: 0,
    };
    let command = SetCommand::WebDataset { set: WebDatasetArgs { shards }, output };
    let prepared = run(&command, &Progress::default()).unwrap();
    assert_eq!(prepared.stats.left_out, [("clip".to_owned(), 1)].into());
    let left_out = fs::read_to_string(into.join("left-out.jsonl")).unwrap();
    assert!(left_out.contains("corrupted"), "{left_out}");
    let mut archive = tar::Archive::new(fs::File::open(into.join("shard-000000.tar")).unwrap());
    let mut compared = 0;
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        if path.extension().is_none_or(|extension| extension != "mp4") {
            continue;
        }
        let mut stored = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut stored).unwrap();
        let original = fs::read(&originals[&*path.file_stem().unwrap().to_string_lossy()]).unwrap();
        // FFmpeg knows no times of the AVI.
        if let Ok(times) = frame_times(&original) {
            let ours = frame_times(&stored).unwrap();
            assert_eq!(ours.len(), times.len(), "{}", path.display());
            let off = ours.iter().zip(&times).map(|(ours, it)| (ours - (it - times[0])).abs());
            assert!(off.fold(0.0, f64::max) < 1e-6, "{}", path.display());
        }
        let frames = |clip: &[u8]| decode(Media::Video, clip, 5, &mut Ok::<Picture, String>);
        let (ours, theirs) = (frames(&stored).unwrap(), frames(&original).unwrap());
        let mut shrinker = Shrinker::new(128);
        for (ours, theirs) in ours.frames().zip(theirs.order.iter().map(|&n| &theirs.pictures[n])) {
            let theirs = shrinker.shrink(theirs.clone()).unwrap();
            let squares =
                ours.iter().zip(&theirs.pixels).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
            let mean = squares.sum::<f64>() / ours.len() as f64;
            // 25 dB, which test pictures with saturated colours reach. Real ones have 33 and more.
            assert!(mean < 206.0, "{}: mean square error {mean}", path.display());
        }
        compared += 1;
    }
    assert_eq!(compared, originals.len() - 1);
}

/// Annotations as published: their counts, and the answers of POPE.
#[test]
fn published_annotations_have_their_counts() {
    use vljepa_data::sets::OpenSet;
    use vljepa_recipes::schema::{Count, EvaluationSet};
    let Some(folder) = material("annotations") else { return };
    let set = |name: &str, root: &str| -> EvaluationSet {
        let sets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/evaluate/sets");
        let task = vljepa_recipes::load_set(&sets.join(name)).unwrap();
        EvaluationSet { root: folder.join(root), ..task.set.unwrap() }
    };
    let triplets = OpenSet::open(&set("sugarcrepe_pp.yaml", "sugarcrepe_pp")).unwrap();
    let mut subsets = BTreeMap::<&str, usize>::new();
    for sample in &triplets.samples {
        *subsets.entry(sample.texts.field("split").unwrap().unwrap()).or_default() += 1;
    }
    let counts: Vec<usize> = subsets.into_values().collect();
    assert_eq!(counts, [788, 1_652, 1_406, 666, 245]);

    let pope = OpenSet::open(&set("pope.yaml", "pope")).unwrap();
    assert_eq!((pope.samples.len(), pope.count(Count::Questions)), (500, 9_000));
    let mut answers = BTreeMap::<(&str, &str), usize>::new();
    for question in pope.samples.iter().flat_map(|sample| sample.texts.questions().unwrap()) {
        *answers.entry((&question.kind, &question.answer)).or_default() += 1;
    }
    assert_eq!(answers.into_values().collect::<Vec<_>>(), [1_500; 6]);

    let mut gqa = set("gqa.yaml", "");
    let temporary = tempfile::tempdir().unwrap();
    let answers = "trainval_label2ans.json";
    fs::copy(folder.join("gqa").join(answers), temporary.path().join(answers)).unwrap();
    let question = r#"{"1": {"question": "what?", "answer": "cat food", "imageId": "n1"}}"#;
    fs::write(temporary.path().join("testdev_balanced_questions.json"), question).unwrap();
    gqa.root = temporary.path().to_owned();
    let opened = OpenSet::read(&gqa).unwrap();
    assert_eq!(opened.count(Count::Labels), 1_842);
    let error = OpenSet::open(&gqa).unwrap_err().to_string();
    assert!(error.contains("1 questions, where 12578 are expected: 12577 fewer"), "{error}");
}

/// A video with sound and several video streams, of which a second is read by seeking.
#[cfg(feature = "video")]
#[test]
fn a_second_of_a_long_video_has_the_frames_of_the_whole_one() {
    use vljepa_data::decode::{MediaSource, video::Video};
    let Some(folder) = material("video/torchcodec") else { return };
    let open = || Video::open(&MediaSource::File(folder.join("nasa_13013.mp4"))).unwrap();
    let frames = |video: &mut Video, seconds: Option<std::ops::Range<f64>>, in_order: bool| {
        let mut frames = Vec::new();
        let choose = |count: usize, _: f64| (0..count).collect();
        let span = video.read(seconds.as_ref(), in_order, &choose, &mut |picture, time| {
            frames.push((pixel_hash(&picture), time));
            Ok(())
        });
        assert!(span.unwrap().is_some(), "the packets of H.264 tell the frames");
        frames
    };
    let whole = frames(&mut open(), None, true);
    assert_eq!(whole.len(), 390);
    // 30000/1001 frames a second.
    let mut video = open();
    for (seconds, numbers) in [(9.0..10.0, 270..300), (2.0..3.0, 60..90), (0.0..0.5, 0..15)] {
        assert_eq!(frames(&mut video, Some(seconds), false), whole[numbers]);
    }
}

/// Returns a hash of the pixels as bytes.
#[cfg(feature = "video")]
fn pixel_hash(picture: &Picture) -> Vec<u8> {
    let hash = picture.pixels.iter().fold(0_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5)
    });
    hash.to_le_bytes().to_vec()
}

/// The expected values are the mean red of the four quarters of the first frame, as FFmpeg 5.1.8
/// rotates and converts it: `ffmpeg -i video_90.mov -frames:v 1 -vf
/// scale=in_color_matrix=bt709:flags=accurate_rnd+full_chroma_int+neighbor -f rawvideo -pix_fmt
/// rgb24 out.rgb`. With BT.601 instead of BT.709 the means are 0.6 to 1.9 lower.
#[cfg(feature = "video")]
#[test]
fn rotated_clips_are_turned_upright() {
    let Some(folder) = material("video/decord") else { return };
    let goldens: [(&str, (u32, u32), [f64; 4]); 4] = [
        ("video_0.mov", (568, 320), [112.98, 120.57, 103.45, 109.38]),
        ("video_90.mov", (320, 568), [117.09, 119.14, 85.64, 100.34]),
        ("video_180.mov", (568, 320), [128.48, 141.87, 106.84, 118.03]),
        ("video_270.mov", (320, 568), [161.40, 158.18, 117.19, 102.86]),
    ];
    for (name, size, golden) in goldens {
        let bytes = fs::read(folder.join(name)).unwrap();
        // With more than one frame, the first one is the clip's first frame.
        let clip = decode(Media::Video, &bytes, 2, &mut Ok::<Picture, String>).unwrap();
        let first = &clip.pictures[clip.order[0]];
        assert_eq!((first.width, first.height), size, "{name}");
        let ours = quarter_means(first);
        // The record has two decimals, and FFmpeg rounds a few pixels differently.
        let worst = ours.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 0.05, "{name}: {ours:?}, recorded {golden:?}");
    }
}

/// Returns the mean red of the upper left, upper right, lower left and lower right quarter.
#[cfg(feature = "video")]
fn quarter_means(picture: &Picture) -> [f64; 4] {
    let (mut sums, mut counts) = ([0.0; 4], [0.0; 4]);
    let (width, height) = (picture.width, picture.height);
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    for ((x, y), pixel) in places.zip(picture.pixels.chunks_exact(3)) {
        let quarter = usize::from(x >= width / 2) + 2 * usize::from(y >= height / 2);
        sums[quarter] += f64::from(pixel[0]);
        counts[quarter] += 1.0;
    }
    std::array::from_fn(|quarter| sums[quarter] / counts[quarter])
}
