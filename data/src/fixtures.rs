//! Small shards, tokenizers and recipes for the tests of this crate.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use serde_json::json;
use vljepa_recipes::Recipe;

use crate::decode::{Picture, Region};
use crate::storage::Storage;

/// Vocabulary of the tests' tokenizer. Every other word is `[UNK]`, which has id 0.
const WORDS: [&str; 12] = [
    "[UNK]", "[BOS]", "[EOS]", "a", "picture", "number", "what", "colour", "red", "one", "two", "q",
];

/// Writes a word-level tokenizer whose post-processor adds `[BOS]` before and `[EOS]` after each
/// text.
pub(crate) fn write_tokenizer(folder: &Path) -> PathBuf {
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let piece = |word: &str| json!({"SpecialToken": {"id": word, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let token = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null,
        "padding": {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[BOS]"), sequence("A"), piece("[EOS]")],
            "pair": [sequence("A"), sequence("B")],
            "special_tokens": {"[BOS]": token(1), "[EOS]": token(2)},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    path
}

/// Storage with default options.
pub(crate) fn storage() -> Storage {
    Storage::default()
}

/// Copies `data/tests/cases/<name>` into `folder`, in which an index may be written beside it.
pub(crate) fn case(name: &str, folder: &Path) -> PathBuf {
    let path = folder.join(name);
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    std::fs::copy(cases.join(name), &path).unwrap();
    path
}

/// Writes a tar with the given (name, bytes) files.
pub(crate) fn write_tar<B: AsRef<[u8]>>(path: &Path, files: &[(String, B)]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.as_ref().len()).unwrap());
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_ref()).unwrap();
    }
    builder.finish().unwrap();
}

/// A PNG whose red and green depend on the position, and whose blue is `shade`.
pub(crate) fn png(width: u32, height: u32, shade: u8) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        let byte = |n: u32| u8::try_from(n % 256).unwrap();
        image::Rgb([byte(7 * x + 13 * y), byte(x * x + 3 * y), shade])
    });
    encoded(&image::DynamicImage::ImageRgb8(picture), image::ImageFormat::Png)
}

/// Encodes a picture into the bytes of a file.
pub(crate) fn encoded(picture: &image::DynamicImage, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Files of the samples `first` to `first + count` − 1. Each has a picture of 8×8 pixels whose blue
/// is the sample's number, a caption with the number, and two questions.
pub(crate) fn numbered(first: u8, count: u8) -> Vec<(String, Vec<u8>)> {
    let sample = |n: u8| {
        let json = json!({"questions": [
            {"question": "what number", "answer": format!("{n}"), "kind": "number"},
            {"question": "what colour", "answer": "red", "kind": "colour"},
        ]});
        [
            (format!("{n:03}.png"), png(8, 8, n)),
            (format!("{n:03}.txt"), format!("a picture number {n}\n").into_bytes()),
            (format!("{n:03}.json"), json.to_string().into_bytes()),
        ]
    };
    (first..first + count).flat_map(sample).collect()
}

/// A recipe with one stage over `shards`: frames of 8×8 pixels, two per sample.
pub(crate) fn recipe(folder: &Path, shards: &Path, batch: usize, steps: u64) -> Recipe {
    let tokenizer = write_tokenizer(folder);
    serde_json::from_value(json!({
        "name": "test", "seed": 5,
        "model": {
            "image_size": 8,
            "predictor": {"tokenizer": tokenizer, "vocab_size": WORDS.len(), "max_query_tokens": 6},
            "y_encoder": {"tokenizer": tokenizer, "vocab_size": WORDS.len(), "max_target_tokens": 8},
        },
        "data": {
            "sources": {"pictures": {
                "shards": shards, "visual": "image",
                "targets": [
                    {"from": "caption", "query": "a picture", "weight": 2},
                    {"from": "questions", "weight": 1},
                ],
            }},
            "threads": 3, "prefetch_batches": 2, "shuffle_window": 8,
        },
        "stages": [{
            "name": "only", "steps": steps, "batch": batch, "frames": 2,
            "mixture": {"pictures": 1}, "learning_rate": {"peak": 0.001},
        }],
    }))
    .unwrap()
}

/// Pixels of a region of a picture.
pub(crate) fn cut_out(picture: &Picture, region: Region) -> Picture {
    let Region { left, top, width, height } = region;
    let bytes = |pixels: u32| 3 * usize::try_from(pixels).unwrap();
    let rows = picture.pixels.chunks(bytes(picture.width));
    let rows = rows.skip(top as usize).take(height as usize);
    let pixels = rows.flat_map(|row| &row[bytes(left)..][..bytes(width)]).copied().collect();
    Picture { width, height, pixels }
}
