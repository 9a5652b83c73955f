//! `vljepa-launch doctor`: what is wrong with this machine, or with the nodes of this Slurm job.

use std::path::PathBuf;

use vljepa_recipes::load_rates;
use vljepa_recipes::plan::Rates;
use vljepa_recipes::schema::{Device, Recipe};

use super::jobs::{path_error, show_json};
use super::train::run_dir;
use crate::cli;
use crate::doctor::finding::State;
use crate::doctor::node::{Request, serve};
use crate::doctor::{examine, table};
use crate::error::LaunchError;
use crate::terminal;

/// Exit code if a fact fails: this machine lacks something.
const LACKS_SOMETHING: u8 = 3;

/// Prints one line for each fact, and returns [`LACKS_SOMETHING`] if one fails.
pub(crate) async fn doctor(arguments: &cli::Doctor) -> Result<u8, LaunchError> {
    if arguments.node {
        return serve().await;
    }
    let (shared, nodes) = examine(request(arguments)?).await?;
    let merged = table::merge(&shared, &nodes);
    if arguments.json {
        show_json(&merged)?;
    } else {
        terminal::result(&merged.to_string());
    }
    Ok(match merged.state {
        State::Pass | State::Warn => 0,
        State::Fail => LACKS_SOMETHING,
    })
}

fn request(arguments: &cli::Doctor) -> Result<Request, LaunchError> {
    let options = &arguments.options;
    let Some(recipe) = &arguments.recipe else {
        if let Some(set) = options.set.first() {
            let what = format!("--set {set} changes a recipe, and none is given");
            let help = "name the recipe: vljepa-launch doctor RECIPE --set KEY=VALUE".to_owned();
            return Err(LaunchError::File { what, help });
        }
        let folder = options.run.clone().unwrap_or_else(|| PathBuf::from("."));
        return Ok(Request { yaml: None, folder: absolute(folder)?, nodes: 1, rates: None });
    };
    let loaded = vljepa_recipes::load(recipe, &options.set)?;
    for warning in &loaded.warnings {
        terminal::note(&format!("warning: {warning}"));
    }
    let folder = absolute(run_dir(options, &loaded.recipe))?;
    let rates = if arguments.bench { Some(rates(arguments, &loaded.recipe)?) } else { None };
    Ok(Request { yaml: Some(loaded.yaml), folder, nodes: 1, rates })
}

/// Rates with which the devices are compared.
fn rates(arguments: &cli::Doctor, recipe: &Recipe) -> Result<String, LaunchError> {
    let rates = match (&arguments.rates, recipe.device) {
        (Some(file), _) => load_rates(file)?,
        (None, Device::Cuda) => Rates::h200().clone(),
        (None, Device::Host) => {
            let what = "--bench needs rates to compare with, and `device: host` has no default";
            let help = "name a file: --rates FILE; `vljepa-worker rates RECIPE` writes one";
            return Err(LaunchError::File { what: what.to_owned(), help: help.to_owned() });
        }
    };
    rates.to_yaml().map_err(|error| LaunchError::Start {
        what: "writing the rates for the nodes".to_owned(),
        why: error.to_string(),
    })
}

fn absolute(path: PathBuf) -> Result<PathBuf, LaunchError> {
    std::path::absolute(&path)
        .map_err(|error| path_error("the run directory", &path, &error.to_string()))
}
