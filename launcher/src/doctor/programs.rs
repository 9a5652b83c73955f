//! The programs of a run: whether they are found, work, and can do what the recipe needs.

use vljepa_recipes::schema::Recipe;

use super::finding::{Fact, Finding};
use crate::error::LaunchError;
use crate::process;
use crate::programs::{Features, Programs, needs};

/// Looks for the programs, as a start does.
pub(super) async fn look(
    found: &Result<Programs, LaunchError>,
    recipe: Option<&Recipe>,
) -> Finding {
    let programs = match found {
        Ok(programs) => programs,
        Err(error) => return Finding::refused(Fact::Programs, error),
    };
    let features = match programs.features().await {
        Ok(features) => features,
        Err(error) => return Finding::refused(Fact::Programs, &error),
    };
    if let Some(recipe) = recipe
        && let Err(error) = needs::check(recipe, programs).await
    {
        return Finding::refused(Fact::Programs, &error);
    }
    let mpirun = match &programs.mpirun {
        None => "no mpirun".to_owned(),
        Some(path) => {
            let path = path.display().to_string();
            let said = process::inquire(&path, &["--version"]).await.unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            said.lines().next().unwrap_or("mpirun").trim().to_owned()
        }
    };
    let found = format!("vljepa-worker with {}; {mpirun}", names(&features));
    if programs.mpirun.is_none() && recipe.is_none() {
        let help = "for several ranks on CPUs: apt-get install openmpi-bin";
        return Finding::warn(Fact::Programs, found, help);
    }
    Finding::pass(Fact::Programs, found)
}

fn names(features: &Features) -> String {
    let all = [("mpi", features.mpi), ("video", features.video), ("cuda", features.cuda)];
    let there: Vec<&str> = all.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    if there.is_empty() { "no feature".to_owned() } else { there.join(", ") }
}
