//! Tests that batches depend only on the recipe and the step, not on the number of ranks or threads
//! or on the cache, and that bad samples are replaced.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use vljepa_recipes::schema::{
    Decoding, EmbeddingGemma, EmbeddingSource, LlamaDecoder, ModelKind, YDecoder, YEncoder,
};
use vljepa_recipes::{RankId, Recipe};

use super::BatchStream;
use crate::batch::Batch;
use crate::error::DataError;
use crate::fixtures::{numbered, png, recipe, write_tar};

/// Folder with two shards, of 7 and 5 samples.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_tar(&folder.path().join("a-0.tar"), &numbered(0, 7));
    write_tar(&folder.path().join("a-1.tar"), &numbered(7, 5));
    folder
}

fn batches(recipe: &Recipe, rank: usize, world_size: usize, first_step: u64) -> Vec<Batch> {
    let mut stream = BatchStream::open(recipe, 0, RankId { rank, world_size }, first_step).unwrap();
    let batches = (first_step..recipe.stages[0].steps).map(|_| stream.next().unwrap()).collect();
    assert!(matches!(stream.next(), Err(DataError::Ended(_))), "more batches than steps");
    batches
}

/// Joins the batches of several ranks into one batch.
fn joined(parts: &[Batch]) -> Batch {
    let mut whole = parts[0].clone();
    for part in &parts[1..] {
        assert_eq!(part.first_row, whole.rows());
        whole.frames_shape[0] += part.rows();
        whole.frames.extend(&part.frames);
        for (ours, theirs) in [(&mut whole.query, &part.query), (&mut whole.target, &part.target)] {
            for row in theirs.cu_seqlens.windows(2) {
                let range = usize::try_from(row[0]).unwrap()..usize::try_from(row[1]).unwrap();
                ours.push(&theirs.ids[range]);
            }
        }
        whole.target_hashes.extend(&part.target_hashes);
        whole.query_texts.extend(part.query_texts.clone());
        whole.target_texts.extend(part.target_texts.clone());
        whole.samples.extend(part.samples.clone());
        whole.skipped.extend(part.skipped.clone());
    }
    whole
}

#[test]
fn a_batch_is_the_same_on_any_number_of_ranks_and_threads() {
    let folder = folder();
    let mut recipe = recipe(folder.path(), folder.path(), 8, 5);
    let whole = batches(&recipe, 0, 1, 0);
    for (world_size, threads) in [(2, 1), (3, 4), (8, 2)] {
        recipe.data.threads = threads;
        let ranks: Vec<Vec<Batch>> =
            (0..world_size).map(|rank| batches(&recipe, rank, world_size, 0)).collect();
        for (step, expected) in whole.iter().enumerate() {
            let parts: Vec<Batch> = ranks.iter().map(|rank| rank[step].clone()).collect();
            assert_eq!(joined(&parts), *expected, "{world_size} ranks, step {step}");
        }
    }
    recipe.seed += 1;
    assert_ne!(batches(&recipe, 0, 1, 0), whole, "another seed gives other batches");
}

#[test]
fn a_row_is_its_sample() {
    let folder = folder();
    let recipe = recipe(folder.path(), folder.path(), 8, 6);
    let mut by_kind = [0, 0];
    for batch in batches(&recipe, 0, 1, 0) {
        assert_eq!(batch.frames_shape, [8, 2, 8, 8, 3]);
        for row in 0..8 {
            let sample = &batch.samples[row];
            let number: u8 = sample.key.parse().unwrap();
            let shard = if number < 7 { "a-0.tar" } else { "a-1.tar" };
            assert!(sample.shard.ends_with(shard) && sample.source == "pictures");
            let frames = &batch.frames[row * 384..(row + 1) * 384];
            assert_eq!(frames[..192], frames[192..], "a picture is repeated");
            assert!(frames.chunks(3).all(|pixel| pixel[2] == number));
            let tokens = |ragged: &crate::Ragged| {
                let bound = |i: usize| usize::try_from(ragged.cu_seqlens[i]).unwrap();
                ragged.ids[bound(row)..bound(row + 1)].to_vec()
            };
            let (query, target) = (&batch.query_texts[row], &batch.target_texts[row]);
            assert_eq!(batch.target_hashes[row], crate::target_hash(target));
            if *target == format!("a picture number {number}") {
                by_kind[0] += 1;
                assert_eq!(query, "a picture");
                assert_eq!(tokens(&batch.query), [1, 3, 4, 2]);
                assert_eq!(tokens(&batch.target), [1, 3, 4, 5, 0, 2]);
            } else {
                by_kind[1] += 1;
                let answer =
                    if query == "what colour" { "red".to_owned() } else { number.to_string() };
                assert_eq!(*target, answer);
            }
        }
    }
    // With weights 2 and 1, 32 captions among 48 rows are expected, with σ = 3.3.
    assert!((18..46).contains(&by_kind[0]) && by_kind[1] > 2, "{by_kind:?}");
}

#[test]
fn a_decoder_gets_the_target_texts_in_its_tokens_and_reads_frames_only_for_predictions() {
    let folder = folder();
    let mut recipe = recipe(folder.path(), folder.path(), 8, 6);
    let without = batches(&recipe, 0, 1, 0);
    assert!(without.iter().all(|batch| batch.output.rows() == 0));
    recipe.model.kind = ModelKind::YDecoder;
    let end = "[EOS]".to_owned();
    let tokenizer = recipe.model.predictor.tokenizer.clone();
    let decoder = LlamaDecoder { tokenizer, end, vocab_size: 12, ..LlamaDecoder::default() };
    recipe.model.y_decoder = Some(YDecoder::Llama(decoder));
    let texts = batches(&recipe, 0, 1, 0);
    let embeddings = EmbeddingSource::Predictions;
    recipe.stages[0].decoding = Some(Decoding { embeddings, ..Decoding::default() });
    let clips = batches(&recipe, 0, 1, 0);
    for ((without, texts), clips) in without.iter().zip(&texts).zip(&clips) {
        assert_eq!((texts.frames_shape, texts.frames.len()), ([8, 0, 8, 8, 3], 0));
        assert_eq!((&clips.frames, &clips.target), (&without.frames, &without.target));
        assert_eq!((&texts.samples, &texts.target), (&without.samples, &without.target));
        assert_eq!(texts.output, clips.output);
        // The words of the targets, with an end and without a begin.
        let mut expected = crate::Ragged::new();
        for row in without.target.cu_seqlens.windows(2) {
            let range = usize::try_from(row[0]).unwrap()..usize::try_from(row[1]).unwrap();
            expected.push(&without.target.ids[range][1..]);
        }
        assert_eq!(texts.output, expected);
    }
}

#[test]
fn resuming_gives_the_batches_that_were_left() {
    let folder = folder();
    let recipe = recipe(folder.path(), folder.path(), 8, 6);
    let whole = batches(&recipe, 0, 1, 0);
    for first_step in [1, 4, 6] {
        let rest = batches(&recipe, 0, 1, first_step);
        assert_eq!(rest, whole[usize::try_from(first_step).unwrap()..]);
    }
    assert_ne!(whole[1].samples, whole[0].samples);
}

#[test]
fn memory_changes_neither_order_nor_pixels() {
    let folder = folder();
    for transform in ["resize_center_crop", "random_resized_crop", "squash"] {
        let mut recipe = recipe(folder.path(), folder.path(), 8, 6);
        recipe.model.image_size = 6;
        let source = recipe.data.sources.get_mut("pictures").unwrap();
        source.transform = serde_json::from_value(json!(transform)).unwrap();
        let decoded_anew = batches(&recipe, 0, 1, 0);
        recipe.data.cache_mib = 1;
        assert_eq!(batches(&recipe, 0, 1, 0), decoded_anew, "{transform}");
        let mut stream = BatchStream::open(&recipe, 0, RankId::SINGLE, 0).unwrap();
        for _ in 0..6 {
            stream.next().unwrap();
        }
        let stats = stream.stats();
        assert_eq!((stats.samples_read, stats.bad_samples, stats.cached_samples), (48, 0, 12));
        // Three threads may decode the same sample at the same time, so some hits are lost.
        assert!(stats.cache_hits >= 20 && stats.cached_bytes > 12 * 6 * 6 * 3, "{stats:?}");
    }
}

/// (name, bytes) of the members of a tar.
type Files = Vec<(String, Vec<u8>)>;

/// Folder with one shard of 6 good samples and the given files.
fn with_bad(files: Files) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut all = numbered(0, 6);
    all.extend(files);
    write_tar(&folder.path().join("a.tar"), &all);
    folder
}

#[test]
fn every_kind_of_bad_sample_is_skipped_counted_and_named_or_stops_the_run() {
    let text = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    let kinds: [(Files, &str); 9] = [
        (vec![text("bad.png", &png(8, 8, 1)[..60]), text("bad.txt", b"a")], "cannot be decoded"),
        (vec![text("bad.jpg", b"junk"), text("bad.txt", b"a")], "neither a JPEG nor a PNG"),
        (vec![text("bad.png", b""), text("bad.txt", b"a")], "the picture or clip is empty"),
        (vec![text("bad.png", &png(8, 8, 1))], "the sample has no caption (neither a txt nor"),
        (
            vec![text("bad.png", &png(8, 8, 1)), text("bad.txt", b" \n")],
            "the sample has no caption",
        ),
        (vec![text("bad.png", &png(8, 8, 1)), text("bad.txt", b"a \xff")], "is not UTF-8"),
        (
            vec![text("bad.png", &png(8, 8, 1)), text("bad.json", b"{\"caption\"")],
            "json member cannot be parsed",
        ),
        (vec![text("bad.txt", b"a")], "the sample has no picture"),
        (vec![text("bad.mp4", b"a"), text("bad.txt", b"a")], "the sample has no picture"),
    ];
    for (files, reason) in kinds {
        let folder = with_bad(files);
        let mut recipe = recipe(folder.path(), folder.path(), 7, 4);
        let all = batches(&recipe, 0, 1, 0);
        let skipped: Vec<_> = all.iter().flat_map(|batch| &batch.skipped).collect();
        // Four epochs of seven samples reach the bad sample four times. Replacements may draw it
        // again.
        assert!((4..20).contains(&skipped.len()), "{reason}: {}", skipped.len());
        for one in &skipped {
            assert_eq!((one.source.as_str(), one.key.as_str()), ("pictures", "bad"));
            assert!(one.shard.ends_with("a.tar"));
            assert!(one.reason.contains(reason), "{reason}: {}", one.reason);
        }
        assert!(all.iter().all(|b| b.rows() == 7 && b.samples.iter().all(|s| s.key != "bad")));
        let halves: Vec<_> = (0..2).map(|rank| batches(&recipe, rank, 2, 0)).collect();
        let parts = [halves[0][3].clone(), halves[1][3].clone()];
        assert_eq!(joined(&parts), all[3], "replacements depend on the number of ranks");
        recipe.data.bad_samples.max_consecutive = 0;
        let error = first_error(&recipe);
        let DataError::TooManyInARow { count: 1, allowed: 0, key, reason: said, .. } = &error
        else {
            panic!("{reason}: {error}")
        };
        assert!(key == "bad" && said.contains(reason) && error.to_string().contains("a.tar"));
    }
}

fn first_error(recipe: &Recipe) -> DataError {
    let mut stream = BatchStream::open(recipe, 0, RankId::SINGLE, 0).unwrap();
    let error = (0..recipe.stages[0].steps).find_map(|_| stream.next().err()).unwrap();
    assert!(matches!(stream.next(), Err(DataError::Ended(_))));
    error
}

#[test]
fn a_source_of_bad_samples_only_stops_after_the_allowed_number() {
    let folder = tempfile::tempdir().unwrap();
    write_tar(&folder.path().join("a.tar"), &[("x.png".to_owned(), b"junk".to_vec())]);
    let mut recipe = recipe(folder.path(), folder.path(), 4, 3);
    recipe.data.bad_samples.max_consecutive = 9;
    let error = first_error(&recipe);
    assert!(matches!(error, DataError::TooManyInARow { count: 10, allowed: 9, .. }), "{error}");
}

#[test]
fn a_half_sample_is_never_completed_from_the_next_shard() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a-0.tar"), folder.path().join("a-1.tar"));
    write_tar(&first, &numbered(0, 4));
    // The second shard starts with a caption whose key is that of the sample that is cut in the
    // first shard.
    let mut files = vec![("003.txt".to_owned(), b"a picture of another".to_vec())];
    files.extend(numbered(4, 4));
    write_tar(&second, &files);
    let index = crate::shard_index::ShardIndex::read(&first).unwrap();
    let picture = index.samples[3].members[0];
    let cut = usize::try_from((picture.offset + picture.length).next_multiple_of(512)).unwrap();
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, &bytes[..cut]).unwrap();
    let recipe = recipe(folder.path(), folder.path(), 8, 10);
    for batch in batches(&recipe, 0, 1, 0) {
        assert!(batch.samples.iter().all(|sample| sample.key != "003"));
        assert!(batch.target_texts.iter().all(|target| !target.contains("another")));
        assert!(batch.skipped.iter().all(|skipped| skipped.shard.ends_with("a-1.tar")));
    }
}

#[test]
fn dropping_a_stream_in_the_middle_ends_its_threads() {
    let folder = folder();
    let mut recipe = recipe(folder.path(), folder.path(), 8, 1_000_000);
    recipe.data.threads = 4;
    for taken in [0, 1, 20] {
        let start = Instant::now();
        let mut stream = BatchStream::open(&recipe, 0, RankId::SINGLE, 0).unwrap();
        for _ in 0..taken {
            stream.next().unwrap();
        }
        let shared = std::sync::Arc::downgrade(&stream.shared);
        drop(stream);
        assert_eq!(shared.strong_count(), 0, "a thread still holds the stream");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn batches_of_one_source_may_have_their_own_frames() {
    let folder = folder();
    let mut recipe = recipe(folder.path(), folder.path(), 6, 6);
    let mut single = recipe.data.sources["pictures"].clone();
    single.frames = Some(1);
    recipe.data.sources.insert("single".to_owned(), single);
    recipe.stages[0].mixture.insert("single".to_owned(), 1);
    let error = opened(&recipe).err().unwrap().to_string();
    assert!(error.contains("data.sources.single.frames"), "{error}");
    recipe.stages[0].mixing = vljepa_recipes::schema::Mixing::Batch;
    let mut counts = [0, 0];
    for batch in batches(&recipe, 0, 1, 0) {
        let source = &batch.samples[0].source;
        assert!(batch.samples.iter().all(|sample| sample.source == *source));
        let single = usize::from(source == "single");
        counts[single] += 1;
        assert_eq!(batch.frames_shape[1], 2 - single);
    }
    assert_eq!(counts, [3, 3]);
}

fn opened(recipe: &Recipe) -> Result<BatchStream, DataError> {
    BatchStream::open(recipe, 0, RankId::SINGLE, 0)
}

#[test]
fn what_the_data_cannot_give_is_refused_at_the_start() {
    let folder = folder();
    let base = recipe(folder.path(), folder.path(), 8, 5);
    let refused = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = base.clone();
        change(&mut recipe);
        opened(&recipe).err().unwrap().to_string()
    };
    let gemma = |recipe: &mut Recipe, change: &dyn Fn(&mut EmbeddingGemma)| {
        let YEncoder::EmbeddingGemma(keys) = &mut recipe.model.y_encoder else {
            panic!("the default family")
        };
        change(keys);
    };
    let shards = |recipe: &mut Recipe, path: &Path| {
        let source = recipe.data.sources.get_mut("pictures").unwrap();
        source.shards = path.to_string_lossy().into_owned();
    };
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(&|r| shards(r, empty.path())).contains("no shard found"));
    write_tar(&empty.path().join("a.tar"), &[("README".to_owned(), "nothing")]);
    assert!(refused(&|r| shards(r, empty.path())).contains("no complete sample"));
    assert!(refused(&|r| r.model.predictor.tokenizer = None).contains("model.predictor.tokenizer"));
    assert!(
        refused(&|r| gemma(r, &|keys| keys.vocab_size = 3)).contains("model.y_encoder.vocab_size")
    );
    let missing = refused(&|r| gemma(r, &|keys| keys.tokenizer = Some("none.json".into())));
    assert!(missing.contains("none.json"), "{missing}");
    let error = BatchStream::open(&base, 0, RankId { rank: 0, world_size: 9 }, 0)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("too few for 9 ranks"), "{error}");
    assert!(BatchStream::open(&base, 1, RankId::SINGLE, 0).is_err());
    assert!(BatchStream::open(&base, 0, RankId::SINGLE, 6).is_err());
}

#[test]
fn a_caption_rule_reads_the_field_of_the_json_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for number in 0..8_u8 {
        files.push((format!("{number}.png"), png(8, 8, number)));
        files.push((format!("{number}.txt"), b"a picture".to_vec()));
        let text = " one number ";
        let nested = json!({"action": text, "gpt": {"action": {"brief": text}}});
        let json = if number == 5 { json!({"gpt": {}}) } else { nested };
        files.push((format!("{number}.json"), json.to_string().into_bytes()));
    }
    write_tar(&folder.path().join("a.tar"), &files);
    let mut recipe = recipe(folder.path(), folder.path(), 8, 2);
    for field in ["action", "gpt.action.brief"] {
        let source = recipe.data.sources.get_mut("pictures").unwrap();
        source.targets =
            serde_json::from_value(json!([{"from": "caption", "field": field}])).unwrap();
        let mut skipped = Vec::new();
        for batch in batches(&recipe, 0, 1, 0) {
            assert!(batch.target_texts.iter().all(|text| text == "one number"));
            skipped.extend(batch.skipped.into_iter().map(|skipped| (skipped.key, skipped.reason)));
        }
        assert!(!skipped.is_empty(), "a sample lacks the field");
        for (key, reason) in skipped {
            let said = format!("no text in `{field}`");
            assert!(key == "5" && reason.contains(&said), "{key}: {reason}");
        }
    }
}

mod members;
