//! Commands for programmes: lists of recipes whose runs read each other's directories.
//!
//! Nothing is stored about a programme. Its state follows from the run directories and Slurm's
//! queue, so the same command continues the programme from any state.

mod check;
mod launch;
mod plan;
mod progress;
mod queue;
mod state;
mod status;
mod stop;

use std::path::Path;

use vljepa_recipes::Programme;

pub(crate) use launch::launch;
pub(crate) use plan::plan;
pub(crate) use status::status;
pub(crate) use stop::stop;

use crate::error::LaunchError;
use crate::terminal;

/// Whether a path of the command line is the file of a programme. False for a run directory and for
/// a missing file.
pub(crate) fn is_programme(path: &Path) -> Result<bool, LaunchError> {
    Ok(path.is_file() && vljepa_recipes::is_programme(path)?)
}

/// Loads a programme, and prints each warning of its recipes once.
fn load(path: &Path, sets: &[String]) -> Result<Programme, LaunchError> {
    let programme = vljepa_recipes::load_programme(path, sets)?;
    let mut shown: Vec<&String> = Vec::new();
    for run in &programme.runs {
        for warning in &run.loaded.warnings {
            if !shown.contains(&warning) {
                shown.push(warning);
                terminal::note(&format!("warning: {}: {warning}", run.file.display()));
            }
        }
    }
    Ok(programme)
}
