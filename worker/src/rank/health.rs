//! The job `check`: tests whether ranks could run on this node, without communication between
//! ranks. It usually takes a second or two, and longer while a killed process still holds a GPU.

use std::path::Path;

use vljepa_recipes::node::{self, Judgement};
use vljepa_recipes::protocol::{Check, CheckName, Checked};
use vljepa_recipes::{Loaded, RunDirectory, clock};

use crate::rank::control::Control;
use crate::rank::environment::Environment;
use crate::rank::{device, sources};

/// Runs every check and returns one JSON line per check.
///
/// # Errors
/// Fails if the run directory does not hold a run: then no check is possible.
pub fn check(run: &Path, expected: &Check) -> anyhow::Result<String> {
    let environment = Environment::read();
    let directory = RunDirectory::open(run)?;
    let loaded = directory.load_recipe()?;
    let lines = CheckName::ALL.map(|check| {
        let found = run_check(check, &directory, &loaded, expected, &environment);
        let (passed, detail) = match found {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        let (host, time_s) = (environment.host.clone(), clock::now().as_second());
        let line = Checked { host, check, passed, detail, time_s };
        serde_json::to_string(&line)
    });
    let lines: Result<Vec<String>, _> = lines.into_iter().collect();
    Ok(lines?.join("\n"))
}

fn run_check(
    check: CheckName,
    directory: &RunDirectory,
    loaded: &Loaded,
    expected: &Check,
    environment: &Environment,
) -> Judgement {
    let recipe = &loaded.recipe;
    match check {
        CheckName::Binary => {
            // The build text is the version, followed by the beginning of the hash.
            let own = environment.build.rsplit(' ').next().unwrap_or_default();
            let same = !own.is_empty() && expected.binary.starts_with(own);
            let binary = &expected.binary;
            if same {
                Ok(own.to_owned())
            } else {
                Err(format!("{own}, but the supervisor has {binary}"))
            }
        }
        CheckName::Recipe => {
            let (own, supervisors) = (&loaded.hash, &expected.recipe_hash);
            if own == supervisors {
                return Ok(own.clone());
            }
            Err(format!(
                "its hash is {own}, but {supervisors} at the supervisor: this node sees other files"
            ))
        }
        // Only the supervisor knows when it has asked.
        CheckName::Clock => Ok(clock::now().to_string()),
        CheckName::Device => {
            device::examine(recipe, expected.ranks).map_err(|error| format!("{error:#}"))
        }
        CheckName::Cpus => node::cpus(recipe, environment.cpus_of_ranks(recipe, expected.ranks)),
        CheckName::RunDirectory => node::writable(directory.path(), &environment.host),
        CheckName::Room => node::room(&directory.checkpoints(), expected.checkpoint_bytes),
        CheckName::SharedMemory => node::shared_memory(recipe, expected.ranks),
        CheckName::Shards => sources::check(recipe),
        CheckName::Control => Control::knock(&expected.control, &environment.token)
            .map(|()| expected.control.clone())
            .map_err(|error| format!("{error:#}")),
    }
}
