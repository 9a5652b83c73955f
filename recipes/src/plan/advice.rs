//! Changes of a recipe that make it faster, and how much.

use serde::Serialize;

use super::rates::Rates;
use super::{Plan, plan};
use crate::schema::{Recipe, Recompute};

/// Least gain that is worth a change, as a fraction of the hours.
const WORTH: f64 = 0.005;

/// A change of the recipe that saves time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Options of the command line that make the change, such as `deterministic=false`.
    pub sets: Vec<String>,
    /// What has to be done besides; empty if the options are all.
    pub needs: String,
    /// Hours that the change saves.
    pub saves_hours: f64,
    /// Hours with the change.
    pub hours: f64,
}

/// Changes that make the recipe fit the memory if it does not, and otherwise changes that save time
/// and still fit: those of keys alone first, then those that need other data or machines, each by
/// the time that they save. Each is computed alone.
#[must_use]
pub fn advice(recipe: &Recipe, rates: &Rates) -> Vec<Change> {
    let now = plan(recipe, rates);
    if !fits(&now) {
        return fitting(recipe, rates, &now).into_iter().collect();
    }
    let least = WORTH * now.hours.value;
    let mut changes: Vec<Change> = candidates(recipe, rates)
        .into_iter()
        .filter_map(|Candidate { recipe, sets, needs }| {
            let then = plan(&recipe, rates);
            let saves_hours = now.hours.value - then.hours.value;
            (fits(&then) && saves_hours > least).then_some(Change {
                sets,
                needs,
                saves_hours,
                hours: then.hours.value,
            })
        })
        .collect();
    changes.sort_by(|a, b| {
        let free = |change: &Change| !change.needs.is_empty();
        free(a).cmp(&free(b)).then(b.saves_hours.total_cmp(&a.saves_hours))
    });
    changes
}

fn fits(plan: &Plan) -> bool {
    plan.stages.iter().all(|stage| stage.fits)
}

/// The fastest way to make each stage fit, as one change, or `None` if a stage fits in no way.
fn fitting(recipe: &Recipe, rates: &Rates, now: &Plan) -> Option<Change> {
    let mut changed = recipe.clone();
    let mut sets = Vec::new();
    for (index, stage) in recipe.stages.iter().enumerate() {
        if now.stages[index].fits {
            continue;
        }
        let rows = stage.batch.div_ceil(recipe.cluster.world_size().max(1));
        let sizes = std::iter::successors(Some(rows), |rows| (*rows > 1).then(|| rows.div_ceil(2)));
        let mut best: Option<(f64, usize, Recompute)> = None;
        for micro_batch in sizes {
            for recompute in [Recompute::None, Recompute::Mlp, Recompute::Block] {
                let mut tried = recipe.clone();
                tried.stages[index].micro_batch = Some(micro_batch);
                tried.stages[index].recompute = recompute;
                let found = &plan(&tried, rates).stages[index];
                let hours = found.hours.value;
                if found.fits && best.is_none_or(|(least, ..)| hours < least) {
                    best = Some((hours, micro_batch, recompute));
                }
            }
        }
        let (_, micro_batch, recompute) = best?;
        changed.stages[index].micro_batch = Some(micro_batch);
        changed.stages[index].recompute = recompute;
        sets.push(format!("stages.{index}.micro_batch={micro_batch}"));
        sets.push(format!("stages.{index}.recompute={}", name(recompute)));
    }
    let hours = plan(&changed, rates).hours.value;
    let saves_hours = now.hours.value - hours;
    Some(Change { sets, needs: String::new(), saves_hours, hours })
}

fn name(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "none",
        Recompute::Mlp => "mlp",
        Recompute::Block => "block",
    }
}

struct Candidate {
    recipe: Recipe,
    sets: Vec<String>,
    needs: String,
}

fn candidates(recipe: &Recipe, rates: &Rates) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut try_out = |change: &dyn Fn(&mut Recipe), sets: Vec<String>, needs: &str| {
        let mut changed = recipe.clone();
        change(&mut changed);
        if changed != *recipe {
            all.push(Candidate { recipe: changed, sets, needs: needs.to_owned() });
        }
    };
    let raw: Vec<&String> = recipe
        .data
        .sources
        .iter()
        .filter_map(|(name, source)| (!source.prepared).then_some(name))
        .collect();
    let prepared = |recipe: &mut Recipe| {
        recipe.data.sources.values_mut().for_each(|source| source.prepared = true);
    };
    let sets = raw.iter().map(|name| format!("data.sources.{name}.prepared=true")).collect();
    try_out(&prepared, sets, "prepare the shards with `vljepa-shards prepare`");
    for (index, stage) in recipe.stages.iter().enumerate() {
        for recompute in [Recompute::None, Recompute::Mlp] {
            let change = move |recipe: &mut Recipe| recipe.stages[index].recompute = recompute;
            try_out(&change, vec![format!("stages.{index}.recompute={}", name(recompute))], "");
        }
        let rows = stage.batch.div_ceil(recipe.cluster.world_size().max(1));
        if stage.micro_batch.is_some_and(|micro_batch| micro_batch < rows) {
            let change = move |recipe: &mut Recipe| recipe.stages[index].micro_batch = Some(rows);
            try_out(&change, vec![format!("stages.{index}.micro_batch={rows}")], "");
        }
    }
    try_out(&|recipe| recipe.deterministic = false, vec!["deterministic=false".to_owned()], "");
    try_out(&|recipe| recipe.optimizer.shard = false, vec!["optimizer.shard=false".to_owned()], "");
    for mib in [16, 128, 256] {
        let change = move |recipe: &mut Recipe| recipe.cluster.bucket_mib = mib;
        try_out(&change, vec![format!("cluster.bucket_mib={mib}")], "");
    }
    try_out(&|recipe| recipe.data.threads = 0, vec!["data.threads=0".to_owned()], "");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few CPUs")]
    let known = rates.cpus_per_rank as usize;
    let cpus = match recipe.cluster.slurm.cpus_per_rank {
        0 => known,
        cpus => cpus,
    };
    let more = 2 * cpus;
    let change = move |recipe: &mut Recipe| recipe.cluster.slurm.cpus_per_rank = more;
    let sets = vec![format!("cluster.slurm.cpus_per_rank={more}")];
    try_out(&change, sets, "nodes with twice the CPUs");
    all
}
