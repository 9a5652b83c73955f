//! Rules for the keys under `data`, and for the tokenizers.

use std::path::Path;

use super::Problems;
use crate::schema::{Recipe, Source, TextSource};
use crate::shard_names::is_remote;

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    let data = &recipe.data;
    for (name, source) in &data.sources {
        super::check_name(found, &format!("data.sources.{name}"), name);
        check_source(recipe, name, source, found);
    }
    let window = [
        ("prefetch_batches", data.prefetch_batches),
        ("lanes", data.lanes),
        ("shuffle_window", data.shuffle_window),
    ];
    found.positive("data", &window);
    if data.shard_cache.as_ref().is_some_and(|cache| cache.gib == 0) {
        found.add("data.shard_cache.gib", "is 0", "give it at least 1, or remove `shard_cache`");
    }
    if !(0.0..=1.0).contains(&data.bad_samples.max_fraction) {
        let what = format!("{} is not a fraction", data.bad_samples.max_fraction);
        found.add("data.bad_samples.max_fraction", what, "give it a number from 0 to 1");
    }
}

fn check_source(recipe: &Recipe, name: &str, source: &Source, found: &mut Problems) {
    let key = format!("data.sources.{name}");
    shards(found, &key, &source.shards, source.catalogue.as_deref());
    if let Some(frames) = source.frames {
        check_frames(recipe, &format!("{key}.frames"), frames, found);
    }
    if source.targets.is_empty() {
        let help = "add one: `- {from: caption}`";
        found.add(format!("{key}.targets"), "is empty, so no text can be the target", help);
    } else if source.targets.iter().all(|rule| rule.weight == 0) {
        let help = "give one of them a weight above 0";
        found.add(format!("{key}.targets"), "all weights are 0", help);
    }
    for (index, rule) in source.targets.iter().enumerate() {
        let key = format!("{key}.targets.{index}");
        match rule.from {
            TextSource::Caption if rule.kind.is_some() => {
                let help = "remove `kind`, or write `from: questions`";
                found.add(format!("{key}.kind"), "captions have no `kind`", help);
            }
            TextSource::Questions if !rule.query.is_empty() => {
                let help = "remove `query`, or write `from: caption`";
                found.add(format!("{key}.query"), "each question is its own query", help);
            }
            TextSource::Questions if rule.field.is_some() => {
                let help = "remove `field`, or write `from: caption`";
                found.add(format!("{key}.field"), "questions are read from `questions`", help);
            }
            TextSource::Caption => {
                if let Some(name) = &rule.field {
                    field(found, format!("{key}.field"), name);
                }
            }
            TextSource::Questions => {}
        }
    }
}

/// Largest number of nested objects that the name of a field leads through. Action100M has 3. A
/// name with n dots can be read in 2ⁿ ways, because keys may hold dots.
const FIELD_LEVELS: usize = 8;

/// Reports the name of a json field that is empty or leads through too many objects.
pub(super) fn field(found: &mut Problems, key: String, name: &str) {
    let levels = name.split('.').count();
    if name.is_empty() {
        found.add(key, "is empty", "name a field of the samples' json, such as `gpt.action.brief`");
    } else if levels > FIELD_LEVELS {
        let what = format!("`{name}` has {levels} levels");
        found.add(key, what, format!("name a field at most {FIELD_LEVELS} levels deep"));
    }
}

/// Reports a number of frames that cannot be divided into tubelets.
pub(super) fn check_frames(recipe: &Recipe, key: &str, frames: usize, found: &mut Problems) {
    let tubelet = recipe.model.x_encoder.sizes().tubelet_size;
    let is_image = frames == 1 && recipe.model.x_encoder.encodes_images();
    if frames == 0 {
        found.add(key, "is 0", "give it at least one tubelet's frames");
    } else if tubelet > 0 && !frames.is_multiple_of(tubelet) && !is_image {
        let what = format!("{frames} frames do not divide into tubelets of {tubelet}");
        let more = frames.next_multiple_of(tubelet);
        let help = format!("use a multiple of model.x_encoder.tubelet_size, such as {more}");
        found.add(key, what, help);
    }
}

/// Reports a shard name that is empty, has a faulty brace or an unknown scheme, and remote shards
/// without a folder for their catalogue. `of` is the key of the source or task.
pub(super) fn shards(found: &mut Problems, of: &str, shards: &str, catalogue: Option<&Path>) {
    let (key, shards) = (format!("{of}.shards"), shards.trim());
    if shards.is_empty() {
        found.add(
            key,
            "is empty",
            "name a folder, a tar, or a range such as `clips-{000000..000127}.tar`",
        );
    } else if let Some((scheme, _)) = shards.split_once("://")
        && !SCHEMES.contains(&scheme)
    {
        let what = format!("`{scheme}://` is not supported");
        found.add(key, what, "give a local path, or a URL with s3, gs, http or https");
    } else if is_remote(shards) && catalogue.is_none() {
        let help = "add `catalogue: FOLDER`, a folder on a disk that all nodes share";
        found.add(key, "has remote shards, whose catalogue needs a folder", help);
    } else if let Err(why) = crate::shard_names::first_and_last(shards) {
        found.add(key, why, "a range is `clips-{000000..000127}.tar`");
    }
}

/// Schemes of URLs from which shards can be read.
const SCHEMES: [&str; 4] = ["s3", "gs", "http", "https"];
