//! Tables of a plan that need no rates: ranks, parameters, operations, memory and shards.

use vljepa_recipes::cost::{ASSUMED_QUERY_TOKENS, ASSUMED_TARGET_TOKENS, Cost, StageCost};
use vljepa_recipes::is_remote;
use vljepa_recipes::plan::Plan;
use vljepa_recipes::schema::{Device, ModelKind, Precision, Recipe};

use super::Lines;
use crate::record::shards;
use crate::terminal::thousands;

/// Longest shard list whose files are looked up; longer lists take too long, and plans are also
/// made on machines without the data.
const MAX_COUNTED_SHARDS: usize = 10_000;

pub(super) fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

pub(super) fn facts(recipe: &Recipe, cost: &Cost, plan: Option<&Plan>) -> Lines {
    let mut facts = vec![row("plan", recipe.name.clone())];
    facts.extend(machines(recipe));
    match recipe.model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::Vlm => {
            facts.extend(training(recipe, cost, plan));
        }
        ModelKind::DualEncoder => {
            let tasks = recipe.evaluation.tasks.len();
            facts.push(row("tasks", format!("{tasks}, and no training: a dual encoder")));
        }
    }
    facts
}

/// Rows about devices and ranks.
pub(super) fn machines(recipe: &Recipe) -> [Vec<String>; 2] {
    let cluster = &recipe.cluster;
    let device = match recipe.device {
        Device::Host => "the CPU",
        Device::Cuda => "CUDA",
    };
    let precision = match recipe.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let ranks = cluster.world_size();
    let nodes = if cluster.nodes == 1 {
        "one node".to_owned()
    } else {
        format!("each of {} nodes", cluster.nodes)
    };
    [
        row("device", format!("{device}, {precision}")),
        row("ranks", format!("{ranks} ({} on {nodes})", cluster.ranks_per_node)),
    ]
}

/// Rows about the training of all stages.
fn training(recipe: &Recipe, cost: &Cost, plan: Option<&Plan>) -> Lines {
    let samples: u64 = cost.stages.iter().map(|stage| stage.samples).sum();
    let operations: f64 = cost.stages.iter().map(|stage| stage.operations).sum();
    let mut facts = vec![
        row("steps", thousands(recipe.total_steps())),
        row("samples", thousands(samples)),
        row(
            "operations",
            format!(
                "{operations:.3e} FLOP, assuming {ASSUMED_QUERY_TOKENS} tokens per query and {ASSUMED_TARGET_TOKENS} per target"
            ),
        ),
        row("checkpoint", checkpoint(recipe, cost)),
    ];
    if let Some(plan) = plan {
        let hours = plan.least_hours;
        let text = format!(
            "{hours:.1} h ({:.2} days), counting only these operations at the highest rate ever measured",
            hours / 24.0
        );
        facts.push(row("at least", text));
    }
    facts
}

/// Size of a checkpoint: trainable weights and both moments in f32. Each rank keeps its part in
/// host memory for the next save.
#[expect(clippy::cast_precision_loss, reason = "parameters are far fewer than 2^53")]
fn checkpoint(recipe: &Recipe, cost: &Cost) -> String {
    let mib = in_mib(cost.parameters.checkpoint_bytes() as f64);
    let part = mib / recipe.cluster.world_size().max(1) as f64;
    // One more is written while the others are there.
    let most = recipe.most_checkpoints() + 1;
    let room = mib * most as f64;
    format!(
        "{mib:.1} MiB; at most {most} at once, {room:.1} MiB; each rank holds {part:.1} MiB of \
         host memory for saving"
    )
}

pub(super) fn parameters(recipe: &Recipe, cost: &Cost) -> Lines {
    let count = &cost.parameters;
    let part = |name: &str, value: usize| row(name, thousands(value as u64));
    let mut rows = vec![row("parameters", "count".to_owned()), part("x_encoder", count.x_encoder)];
    match recipe.model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => rows.extend([
            part("predictor, projections, head", count.predictor()),
            part("predictor's token embeddings", count.predictor_embedding),
            part("y_encoder", count.y_encoder()),
            part("y_encoder's head", count.y_head),
        ]),
        ModelKind::Vlm => rows.extend([
            part("projector", count.projector),
            part("language_model", count.language_model),
        ]),
        ModelKind::DualEncoder => rows
            .extend([part("x_encoder's head", count.x_head), part("y_encoder", count.y_encoder())]),
    }
    rows.extend((count.y_average > 0).then(|| part("y_encoder's average", count.y_average)));
    rows.extend((count.y_decoder > 0).then(|| part("y_decoder", count.y_decoder)));
    rows.extend([part("all", count.total()), part("trained", count.trainable)]);
    rows
}

pub(super) fn stages(recipe: &Recipe, cost: &Cost) -> Lines {
    let ranks = recipe.cluster.world_size();
    let header =
        ["stage", "steps", "batch", "per rank", "frames", "samples", "GFLOP/sample", "total FLOP"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(recipe.stages.iter().zip(&cost.stages).map(|(stage, cost)| {
        let (fewest, most) = (stage.batch / ranks, stage.batch.div_ceil(ranks));
        vec![
            stage.name.clone(),
            thousands(stage.steps),
            thousands(stage.batch as u64),
            if fewest == most { most.to_string() } else { format!("{fewest}–{most}") },
            stage.frames.to_string(),
            thousands(cost.samples),
            format!("{:.3}", cost.sample.total() / 1e9),
            format!("{:.3e}", cost.operations),
        ]
    }));
    rows
}

/// Memory of the rank that needs most, MiB, and the data that it sends per step, MiB.
pub(super) fn memory(cost: &Cost) -> Lines {
    let mib = |bytes: f64| format!("{:.1}", in_mib(bytes));
    let header = [
        "MiB per rank",
        "weights",
        "optimizer",
        "gradients",
        "activations",
        "embeddings",
        "all",
        "longest texts",
        "sent per step",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(cost.stages.iter().map(
        |StageCost { name, memory, most_memory, traffic, .. }| {
            vec![
                name.clone(),
                mib(memory.weights),
                mib(memory.optimizer),
                mib(memory.gradients),
                mib(memory.frames + memory.activations + memory.features),
                mib(memory.embeddings),
                mib(memory.total()),
                mib(most_memory.total()),
                mib(traffic.total()),
            ]
        },
    ));
    rows
}

fn in_mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

pub(super) fn sources(recipe: &Recipe) -> Lines {
    let mut rows = vec![["source", "shards", "here"].map(str::to_owned).to_vec()];
    rows.extend(recipe.data.sources.iter().map(|(name, source)| {
        let files = shards::files(&source.shards);
        let all = thousands(files.len() as u64);
        let counted = if is_remote(&source.shards) {
            "remote".to_owned()
        } else if files.len() > MAX_COUNTED_SHARDS {
            format!("{all} named, not counted")
        } else {
            let here = files.iter().filter(|file| file.is_file()).count();
            format!("{} of {all}", thousands(here as u64))
        };
        vec![name.clone(), source.shards.clone(), counted]
    }));
    rows
}
