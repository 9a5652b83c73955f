//! Damaged pictures and clips.

use std::path::{Path, PathBuf};

use vljepa_data::{LoadOptions, reader};
use vljepa_recipes::schema::{Interpolation, Preprocessing, Transform};

use super::draw::Draw;
use super::fuzz;
use crate::programs::repository;

/// Committed pictures or clips of at most 100 kB with one of these extensions.
fn cases(extensions: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(repository().join("data/tests/cases")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension))
            && path.metadata().unwrap().len() <= 100_000
    });
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

fn sample_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Damages one of `cases` and decodes it into four frames of 32×32 pixels. Returns whether it could
/// be decoded.
fn decode_damaged(cases: &[(PathBuf, Vec<u8>)], folder: &Path, draw: &mut Draw) -> bool {
    let (path, bytes) = draw.pick(cases);
    let transforms = [Transform::ResizeCenterCrop, Transform::CenterCrop, Transform::Squash];
    let options = LoadOptions {
        frames: 4,
        image_size: 32,
        preprocessing: Preprocessing {
            transform: *draw.pick(&transforms),
            interpolation: *draw.pick(&[Interpolation::Bilinear, Interpolation::Bicubic]),
        },
    };
    let target = folder.join(path.file_name().unwrap());
    std::fs::write(&target, draw.damaged(bytes)).unwrap();
    let loaded = reader::load_file(&target, &options);
    match &loaded {
        Ok(sample) => assert_eq!(sample.frames.len(), 4 * 32 * 32 * 3),
        Err(error) => assert!(error.to_string().contains(&sample_name(&target)), "{error}"),
    }
    loaded.is_ok()
}

#[test]
fn a_damaged_picture_is_decoded_or_refused() {
    let cases = cases(&["jpg", "png", "webp"]);
    assert!(cases.len() > 20);
    fuzz("fuzzing::media::a_damaged_picture_is_decoded_or_refused", 30_000, |folder, draw| {
        decode_damaged(&cases, folder, draw)
    });
}

#[cfg(feature = "video")]
#[test]
fn a_damaged_clip_is_decoded_or_refused() {
    let cases = cases(&["mp4", "mkv", "webm", "avi", "ts", "flv", "avif"]);
    assert!(cases.len() > 15);
    fuzz("fuzzing::media::a_damaged_clip_is_decoded_or_refused", 6000, |folder, draw| {
        decode_damaged(&cases, folder, draw)
    });
}
