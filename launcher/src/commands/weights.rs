//! `vljepa-launch weights`: which models a file of published weights holds, and how a recipe reads
//! them.

use std::path::Path;

use serde_json::{Map, Value};
use vljepa_recipes::protocol::{
    Extent, KnownModel, KnownWeights, Names, NearestModel, UnknownWeights, Weights,
};
use vljepa_recipes::published_models;

use super::jobs::{path_error, show_json};
use crate::error::LaunchError;
use crate::programs::{self, Programs};
use crate::{cli, terminal};

/// Prints the models of a file, or of the file to which they were copied.
pub(crate) async fn weights(arguments: &cli::Weights) -> Result<u8, LaunchError> {
    let cli::Weights { file, convert, json } = arguments;
    if file.is_dir() {
        return Err(path_error("the weights", file, &files_of(file)));
    }
    let found = programs::weights(&Programs::find()?, file, convert.as_deref()).await?;
    let (what, help) = match found {
        Weights::Known(known) => {
            if *json {
                show_json(&known)?;
            } else {
                terminal::result(&text(&known));
            }
            if convert.is_some() {
                terminal::note(&format!("written: {}", known.path.display()));
            }
            return Ok(0);
        }
        Weights::Unknown(unknown) => (no_model(&unknown), advice(&unknown)),
        Weights::Failed { error } => {
            (error, "name a whole file of weights, and a new file to convert it to".to_owned())
        }
    };
    Err(LaunchError::File { what, help })
}

/// Sentence that says which files of a folder to name instead.
fn files_of(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let endings = [".safetensors", ".safetensors.index.json", ".pt", ".pth"];
    names.retain(|name| endings.iter().any(|ending| name.ends_with(ending)));
    names.sort();
    let mut text = "are a folder".to_owned();
    if !names.is_empty() {
        let names: Names = names.iter().cloned().collect();
        text += &format!("; name one of its files: {names}");
    }
    if names.iter().any(|name| name == "projections.safetensors") {
        text +=
            &format!(". A run starts from the whole with init: {{export: {}}}", folder.display());
    }
    text
}

fn text(known: &KnownWeights) -> String {
    let mut rows = vec![cells("file", format!("{}: {}", known.path.display(), size(&known.all)))];
    let mut recipes = String::new();
    for model in &known.models {
        rows.push(cells("model", format!("{}: {}", model.name, size(&model.held))));
        rows.push(cells("size", published(model)));
        recipes += &format!("\n\n{}", model.recipe);
    }
    if known.unused.count > 0 {
        let Names { count, .. } = known.unused;
        rows.push(cells("not used", format!("{}: {}", tensors(count), known.unused)));
    }
    format!("{}\n\nlines of a recipe:{recipes}", terminal::table(&rows))
}

fn cells(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

/// Published size of a model, or its own sizes and the nearest published one.
fn published(model: &KnownModel) -> String {
    if let [first, others @ ..] = &model.sizes[..] {
        let also: String = others.iter().map(|size| format!(" or {size}")).collect();
        return format!("{first}{also}");
    }
    if model.shown.is_empty() {
        return "–".to_owned();
    }
    let own = keys(&model.shown);
    let near = model
        .nearest
        .as_ref()
        .map(|near| format!("; the nearest, {}, has {}", near.size, keys(&near.differs)));
    format!("not published: {own}{}", near.unwrap_or_default())
}

fn keys(keys: &Map<String, Value>) -> String {
    let number = |value: &Value| {
        value.as_u64().map_or_else(|| value.to_string().replace(',', ", "), terminal::thousands)
    };
    let keys: Vec<String> =
        keys.iter().map(|(key, value)| format!("{key} {}", number(value))).collect();
    keys.join(", ")
}

fn size(extent: &Extent) -> String {
    let parameters = terminal::thousands(extent.parameters);
    format!("{}, {parameters} parameters, {}", tensors(extent.tensors), extent.types.join(", "))
}

fn tensors(count: usize) -> String {
    format!("{} tensor{}", terminal::thousands(count as u64), if count == 1 { "" } else { "s" })
}

/// Says that a file holds no model, and how it differs from the nearest one.
fn no_model(unknown: &UnknownWeights) -> String {
    let (path, names) = (unknown.path.display(), &unknown.names);
    let mut text = format!("{path} holds no model that a recipe can use: {}", size(&unknown.all));
    let Some(near) = &unknown.nearest else {
        text += &format!(" ({names})");
        return text;
    };
    let NearestModel { name, key, family, missing, misshapen, unknown } = near;
    let family = family.as_ref().map_or_else(String::new, |family| format!(", family {family}"));
    text += &format!(". It is nearest to {name} ({key}{family}), but");
    let differences = [(missing, "missing"), (misshapen, "of another shape"), (unknown, "unknown")];
    let differences =
        differences.iter().filter(|(names, _)| names.count > 0).map(|(names, what)| {
            let are = if names.count == 1 { "is" } else { "are" };
            format!(" {} {are} {what}: {names}", tensors(names.count))
        });
    text + &differences.collect::<Vec<_>>().join(";")
}

fn advice(unknown: &UnknownWeights) -> String {
    if unknown.names.first.iter().any(|name| name == "first_moment") {
        return "these are buffers of a checkpoint; a run starts from it with init: {run: RUN}"
            .to_owned();
    }
    let mut families: Vec<&str> = published_models().iter().map(|model| model.family).collect();
    families.dedup();
    format!("name a file of a published model; families: {}", families.join(", "))
}
