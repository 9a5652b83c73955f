//! Writes a trained model as a folder that Python reads: each part loads in Hugging Face
//! transformers by itself, and `modeling_vl_jepa.py` composes the parts.
//!
//! - `x_encoder/`, `predictor/` and `y_encoder/`: `config.json` and `model.safetensors` of a class
//!   of transformers, and how pictures or texts are prepared;
//! - `projections.safetensors`: maps between the parts, and the temperature;
//! - `vl_jepa.json`: how the parts are composed;
//! - `modeling_vl_jepa.py`: the composition, in PyTorch.
//!
//! A part of a family that transformers lacks has no `config.json`.

mod configs;
mod preparation;

use std::path::Path;

use serde_json::{Value, json};
use vljepa_recipes::schema;

use crate::layers::Pooling;
use crate::{ModelError, Parameters, VlJepa, weights};

/// Composition of the parts in PyTorch.
const MODELING: &str = include_str!("modeling_vl_jepa.py");

/// Writes the model to `folder`, and returns the names of the files in it. Clips have `frames`
/// frames unless a caller of the Python model says otherwise. Tokenizers are copied from the files
/// that the recipe names.
///
/// # Errors
/// If a file cannot be written, or a tokenizer cannot be read.
pub fn export(
    model: &VlJepa,
    parameters: &Parameters,
    frames: usize,
    folder: &Path,
) -> Result<Vec<String>, ModelError> {
    weights::export(model, parameters, folder)?;
    let mut names: Vec<String> =
        weights::exported(model, folder).map(|(source, _)| source.file().to_owned()).collect();
    for (name, text) in texts(model, frames) {
        let path = folder.join(&name);
        written(&path, text.as_bytes())?;
        names.push(name);
    }
    for (part, tokenizer, _) in tokenizers(model.recipe()) {
        let name = format!("{part}/tokenizer.json");
        let error = |cause| ModelError::File { path: tokenizer.to_owned(), cause };
        written(&folder.join(&name), &std::fs::read(tokenizer).map_err(error)?)?;
        names.push(name);
    }
    Ok(names)
}

/// Writes the trained Y-decoder of a model to `folder`, with its tokenizer, and returns the names
/// of the files.
///
/// # Errors
/// Same as [`export`], and if the model has no decoder that is trained.
pub fn export_decoder(
    model: &VlJepa,
    parameters: &Parameters,
    folder: &Path,
) -> Result<Vec<String>, ModelError> {
    let mut names = vec![weights::export_decoder(model, parameters, folder)?.to_owned()];
    if let Some(tokenizer) = model.recipe().decoder().and_then(schema::YDecoder::tokenizer) {
        let name = "y_decoder/tokenizer.json".to_owned();
        let error = |cause| ModelError::File { path: tokenizer.to_owned(), cause };
        written(&folder.join(&name), &std::fs::read(tokenizer).map_err(error)?)?;
        names.push(name);
    }
    Ok(names)
}

/// Reason why transformers cannot run the model, or `None` if it can.
#[must_use]
pub fn unsupported(recipe: &schema::Model) -> Option<String> {
    configs::x_encoder(recipe, 1).err().or_else(|| configs::y_encoder(recipe).err())
}

/// Names and contents of the text files.
fn texts(model: &VlJepa, frames: usize) -> Vec<(String, String)> {
    let recipe = model.recipe();
    let mut files = vec![
        ("modeling_vl_jepa.py".to_owned(), MODELING.to_owned()),
        ("vl_jepa.json".to_owned(), pretty(&composition(model, frames))),
        ("predictor/config.json".to_owned(), pretty(&configs::predictor(recipe))),
    ];
    let mut add = |name: &str, value: &Value| files.push((name.to_owned(), pretty(value)));
    if let Ok(config) = configs::x_encoder(recipe, frames) {
        add("x_encoder/config.json", &config);
    }
    let (name, preprocessor) = preparation::of_pictures(model);
    add(&format!("x_encoder/{name}"), &preprocessor);
    if let Ok(config) = configs::y_encoder(recipe) {
        add("y_encoder/config.json", &config);
    }
    for (folder, config) in configs::dense(recipe) {
        add(&format!("y_encoder/{folder}/config.json"), &config);
    }
    for (part, _, max_tokens) in tokenizers(recipe) {
        add(&format!("{part}/tokenizer_config.json"), &preparation::of_texts(max_tokens));
    }
    files
}

/// Folders of the tokenizers that the recipe names, with the files and the greatest number of
/// tokens of a text.
fn tokenizers(recipe: &schema::Model) -> impl Iterator<Item = (&'static str, &Path, usize)> {
    let (queries, targets) = (&recipe.predictor, &recipe.y_encoder);
    let parts = [
        ("predictor", queries.tokenizer.as_deref(), queries.max_query_tokens),
        ("y_encoder", targets.tokenizer(), targets.max_target_tokens()),
    ];
    parts.into_iter().filter_map(|(part, file, max_tokens)| Some((part, file?, max_tokens)))
}

/// How the parts are composed: `vl_jepa.json`.
fn composition(model: &VlJepa, frames: usize) -> Value {
    let recipe = model.recipe();
    let (x, y) = (&recipe.x_encoder, &recipe.y_encoder);
    let pooling = |pooling| match pooling {
        Pooling::Mean => "mean",
        Pooling::Last => "last",
    };
    let (final_norm, pool) = match x {
        schema::XEncoder::Vjepa2(_)
        | schema::XEncoder::Vjepa2_1(_)
        | schema::XEncoder::ClipResnet(_) => (true, 1),
        schema::XEncoder::Pe(keys) => (keys.final_norm, keys.pool),
        schema::XEncoder::Siglip2(keys) => (true, keys.pool),
        schema::XEncoder::Clip(keys) => (keys.final_norm, keys.pool),
    };
    let dense: Vec<&str> = configs::dense(recipe).into_iter().map(|(folder, _)| folder).collect();
    let mut composition = json!({
        "format": 1,
        "unsupported": unsupported(recipe),
        "image_size": recipe.image_size,
        "frames": frames,
        "tubelet_size": x.sizes().tubelet_size,
        "embed_dim": recipe.embed_dim,
        "normalise": model.predictor.head.normalise,
        "x_encoder": {"family": tag(x), "final_norm": final_norm, "pool": pool},
        "predictor": {
            "family": recipe.predictor.family,
            "attention": recipe.predictor.attention,
            "pooling": pooling(model.predictor.head.pooling),
            "max_tokens": recipe.predictor.max_query_tokens,
        },
        "y_encoder": {
            "family": tag(y),
            "pooling": pooling(model.y_encoder.head.pooling),
            "dense": dense,
            "prompt": y.prompt(),
            "max_tokens": y.max_target_tokens(),
        },
    });
    if let (Value::Object(all), Value::Object(pixels)) =
        (&mut composition, preparation::pixels(model))
    {
        all.extend(pixels);
    }
    composition
}

/// Value of the key `family` of an encoder.
fn tag(encoder: &impl serde::Serialize) -> Value {
    let keys = serde_json::to_value(encoder).unwrap_or_default();
    keys.get("family").cloned().unwrap_or_default()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Writes a file, and the folder that holds it.
fn written(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let error = |cause| ModelError::File { path: path.to_owned(), cause };
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(error)?;
    std::fs::write(path, bytes).map_err(error)
}
