//! `vljepa-launch plan RECIPE`: how long a run takes, what limits it, and what to change.

use std::collections::BTreeMap;
use std::path::Path;

use vljepa_recipes::plan::{Estimate, Rates, advice, plan, scaling, with_devices};
use vljepa_recipes::run_directory::atomic_write;
use vljepa_recipes::schema::{Device, Recipe};
use vljepa_recipes::{load, load_rates};

use super::jobs::show_json;
use crate::cli::{self, Devices};
use crate::error::LaunchError;
use crate::plan::{Overview, PlanReport, RatesOrigin};
use crate::{report, terminal};

/// Name of the recipe's own reading among the days.
const AS_WRITTEN: &str = "as_written";

/// Prints the plan, or writes it as a page.
pub(crate) fn plan_recipe(arguments: &cli::Plan) -> Result<u8, LaunchError> {
    let cli::Plan { recipe: path, set, gpus, rates, json, html } = arguments;
    let loaded = load(path, set)?;
    super::train::warn(&loaded);
    let given = rates.as_deref().map(load_rates).transpose()?;
    let on = |recipe: &Recipe| on(recipe, *gpus);
    let recipe = on(&loaded.recipe)?;
    let rates = rates_of(&recipe, given.as_ref()).filter(|_| !recipe.stages.is_empty());
    let Some(rates) = rates else {
        if *json || html.is_some() {
            return Err(LaunchError::NoTimes { recipe: path.clone() });
        }
        terminal::result(&Overview::of(&recipe).to_string());
        return Ok(0);
    };
    let own = plan(&recipe, rates);
    let mut days = BTreeMap::from([(AS_WRITTEN.to_owned(), in_days(own.hours))]);
    for (name, changes) in &recipe.readings {
        days.insert(name.clone(), reading(path, set, changes, rates, &on)?);
    }
    let counts = gpus
        .filter(|gpus| gpus.first < gpus.last)
        .map(|gpus| (gpus.first, gpus.counts(recipe.cluster.world_size())));
    if let Some((first, counts)) = &counts
        && counts.iter().all(|count| with_devices(&recipe, *count).is_none())
    {
        let per_node = recipe.cluster.ranks_per_node;
        return Err(LaunchError::NotWholeNodes { gpus: *first, per_node });
    }
    let scaling = counts.map(|(_, counts)| scaling(&recipe, rates, &counts));
    let found = PlanReport {
        name: recipe.name.clone(),
        rates: RatesOrigin::of(rates),
        plan: own,
        days,
        changes: advice(&recipe, rates),
        scaling,
    };
    if let Some(page) = html {
        atomic_write(page, report::plan_page(&found, rates).as_bytes())?;
        terminal::note(&format!("the plan is in {}", page.display()));
    }
    if *json {
        return show_json(&found);
    }
    let tables = found.tables().iter().map(|rows| terminal::table(rows)).collect::<Vec<_>>();
    let mut parts = vec![Overview::with_rates(&recipe, Some(rates)).to_string()];
    parts.extend(tables);
    parts.push(found.notes().join("\n"));
    terminal::result(&parts.join("\n\n"));
    Ok(0)
}

/// The recipe on the number of GPUs of the command line, if it is one number.
pub(super) fn on(recipe: &Recipe, gpus: Option<Devices>) -> Result<Recipe, LaunchError> {
    let recipe = match gpus {
        Some(Devices { first, last }) if first == last => {
            with_devices(recipe, first).ok_or(LaunchError::NotWholeNodes {
                gpus: first,
                per_node: recipe.cluster.ranks_per_node,
            })?
        }
        _ => recipe.clone(),
    };
    match recipe.stages.iter().find(|stage| stage.batch < recipe.cluster.world_size()) {
        Some(stage) => Err(LaunchError::TooManyGpus {
            gpus: recipe.cluster.world_size(),
            stage: stage.name.clone(),
            batch: stage.batch,
        }),
        None => Ok(recipe),
    }
}

/// Rates of the recipe's device: those that were given, or else those of H200.
pub(super) fn rates_of<'a>(recipe: &Recipe, given: Option<&'a Rates>) -> Option<&'a Rates> {
    let known: Option<&'static Rates> = (recipe.device == Device::Cuda).then(Rates::h200);
    given.or(known)
}

/// Days of another reading of the recipe.
fn reading(
    path: &Path,
    set: &[String],
    changes: &[String],
    rates: &Rates,
    on: &dyn Fn(&Recipe) -> Result<Recipe, LaunchError>,
) -> Result<Estimate, LaunchError> {
    let all: Vec<String> = set.iter().chain(changes).cloned().collect();
    let recipe = on(&load(path, &all)?.recipe)?;
    Ok(in_days(plan(&recipe, rates).hours))
}

fn in_days(hours: Estimate) -> Estimate {
    hours.times(1.0 / 24.0)
}
