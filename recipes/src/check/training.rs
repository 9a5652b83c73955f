//! Rules for the keys under `stages` and `optimizer`.

use super::Problems;
use crate::schema::{LossKind, Mixing, ModelKind, Optimizer, Recipe, Stage};
use crate::suggest::suggestion;

/// Parameter groups that `optimizer.multipliers` may name.
pub(crate) const GROUPS: [&str; 8] = [
    "x_encoder",
    "predictor",
    "y_encoder",
    "y_projection",
    "projections",
    "logit_scale",
    "y_decoder",
    "language_model",
];

/// Largest sum of a mixture's weights. The sum is the length of a cycle of draws in which each
/// source occurs exactly as often as its weight says.
const MAX_WEIGHT_SUM: u64 = 1_000_000;

/// Reports keys without which there is nothing to train.
pub(super) fn needed(recipe: &Recipe, found: &mut Problems) {
    if recipe.data.sources.is_empty() {
        let help = "add one: `name: {shards: …, visual: video, targets: [{from: caption}]}`";
        found.add("data.sources", "is empty", help);
    }
    if recipe.stages.is_empty() {
        found.add("stages", "is empty", "add a stage with its steps, batch and frames");
    }
}

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    for (index, stage) in recipe.stages.iter().enumerate() {
        let key = format!("stages.{index}");
        super::check_name(found, &format!("{key}.name"), &stage.name);
        if recipe.stages[..index].iter().any(|earlier| earlier.name == stage.name) {
            let what = format!("`{}` is the name of an earlier stage", stage.name);
            found.add(format!("{key}.name"), what, "give each stage a name of its own");
        }
        check_sizes(recipe, stage, &key, found);
        check_mixture(recipe, stage, &key, found);
        check_learning_rate(stage, &key, found);
    }
    let total = recipe.stages.iter().try_fold(0_u64, |sum, stage| sum.checked_add(stage.steps));
    if total.is_none() {
        found.add("stages", "the sum of all steps overflows 64 bits", "use fewer steps");
    }
    check_optimizer(&recipe.optimizer, found);
    super::logging::check(recipe, found);
}

fn check_sizes(recipe: &Recipe, stage: &Stage, key: &str, found: &mut Problems) {
    if stage.steps == 0 {
        found.add(format!("{key}.steps"), "is 0", "give it at least 1, or remove the stage");
    }
    let world_size = recipe.cluster.world_size();
    if stage.batch == 0 {
        found.add(format!("{key}.batch"), "is 0", "give it at least one sample per rank");
    } else if stage.batch < world_size {
        let what = format!("a batch of {} is smaller than the {world_size} ranks", stage.batch);
        let help =
            "every rank needs a sample: raise `batch`, or lower cluster.nodes × ranks_per_node";
        found.add(format!("{key}.batch"), what, help);
    } else if stage.batch == 1
        && recipe.model.kind == ModelKind::VlJepa
        && let Some(what) = needs_two(recipe.loss.kind)
    {
        found.add(format!("{key}.batch"), what, "use at least 2");
    }
    super::data::check_frames(recipe, &format!("{key}.frames"), stage.frames, found);
    if stage.micro_batch == Some(0) {
        let help = "give it at least 1, or remove it to embed a rank's whole share at once";
        found.add(format!("{key}.micro_batch"), "is 0", help);
    }
}

/// Why the loss needs two samples, if it does.
fn needs_two(kind: LossKind) -> Option<&'static str> {
    match kind {
        LossKind::InfoNce => {
            Some("InfoNCE compares the samples of a batch, and a single sample has no negatives")
        }
        LossKind::VicReg => Some("a single sample has no variance, which VICReg needs"),
        LossKind::Cosine | LossKind::L1 | LossKind::L2 | LossKind::SigReg => None,
    }
}

fn check_mixture(recipe: &Recipe, stage: &Stage, key: &str, found: &mut Problems) {
    let sources = &recipe.data.sources;
    for name in stage.mixture.keys().filter(|name| !sources.contains_key(*name)) {
        let names = || sources.keys().map(String::as_str);
        let help = suggestion(name, names()).unwrap_or_else(|| {
            format!("data.sources has {}", names().collect::<Vec<_>>().join(", "))
        });
        found.add(format!("{key}.mixture.{name}"), "is not in `data.sources`", help);
    }
    let sum: u64 = stage.mixture.values().map(|&weight| u64::from(weight)).sum();
    if sum == 0 {
        let what = if stage.mixture.is_empty() { "is empty" } else { "all weights are 0" };
        found.add(format!("{key}.mixture"), what, "give a source a weight above 0");
    } else if sum > MAX_WEIGHT_SUM {
        let what = format!("the weights add up to {sum}");
        let help = format!("use smaller weights, which add up to at most {MAX_WEIGHT_SUM}");
        found.add(format!("{key}.mixture"), what, help);
    }
    if stage.mixing == Mixing::Batch {
        return;
    }
    let used = stage.mixture.iter().filter(|(_, weight)| **weight > 0);
    let other = used
        .filter_map(|(name, _)| sources.get_key_value(name))
        .find_map(|(name, source)| Some((name, source.frames.filter(|&f| f != stage.frames)?)));
    if let Some((name, frames)) = other {
        let what = format!(
            "source `{name}` has {frames} frames and the stage has {}, but all samples of a batch need the same size",
            stage.frames
        );
        let help = "write `mixing: batch`, or remove the source's `frames`";
        found.add(format!("{key}.mixing"), what, help);
    }
}

fn check_learning_rate(stage: &Stage, key: &str, found: &mut Problems) {
    let rate = &stage.learning_rate;
    let key = format!("{key}.learning_rate");
    found.above_zero(&key, &[("peak", rate.peak)]);
    if rate.warmup_steps > stage.steps {
        let what =
            format!("{} warm-up steps in a stage of {} steps", rate.warmup_steps, stage.steps);
        let help = "the rate would never reach its peak: shorten the warm-up or lengthen the stage";
        found.add(format!("{key}.warmup_steps"), what, help);
    }
    if !(0.0..=1.0).contains(&rate.final_fraction) {
        let what = format!("{} is not a fraction of the peak", rate.final_fraction);
        found.add(format!("{key}.final_fraction"), what, "give it a number from 0 to 1");
    }
}

fn check_optimizer(optimizer: &Optimizer, found: &mut Problems) {
    for (index, beta) in optimizer.betas.iter().enumerate() {
        if !(0.0..1.0).contains(beta) {
            let what = format!("{beta} is not a decay rate");
            let help = "give it a number of at least 0 and below 1";
            found.add(format!("optimizer.betas.{index}"), what, help);
        }
    }
    found.above_zero("optimizer", &[("eps", optimizer.eps.into())]);
    for (key, value) in
        [("weight_decay", optimizer.weight_decay), ("clip_norm", optimizer.clip_norm)]
    {
        if !(value.is_finite() && value >= 0.0) {
            found.add(format!("optimizer.{key}"), format!("is {value}"), "give it 0 or more");
        }
    }
    for (group, value) in &optimizer.multipliers {
        let key = format!("optimizer.multipliers.{group}");
        if !GROUPS.contains(&group.as_str()) {
            let help = suggestion(group, GROUPS)
                .unwrap_or_else(|| format!("the groups are {}", GROUPS.join(", ")));
            found.add(&key, "is not a parameter group", help);
        }
        if !(value.is_finite() && *value >= 0.0) {
            found.add(&key, format!("is {value}"), "give it 0 or more");
        }
    }
}
