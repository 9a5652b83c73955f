//! The plan of a recipe: ranks, samples, operations and memory, computed from its keys. The only
//! access to the machine is counting the shards that exist on it.

use std::fmt;

use vljepa_recipes::cost::{ASSUMED_QUERY_TOKENS, ASSUMED_TARGET_TOKENS, Cost, StageCost, cost};
use vljepa_recipes::schema::{Device, ModelKind, Precision, Recipe, RowWeights, Table};
use vljepa_recipes::{is_remote, paper};

use crate::record::shards;
use crate::terminal::{table, thousands};

/// Dense bf16 operations per second of one H200, a measured 790 TFLOP/s. Predicted durations assume
/// this rate, so they are lower bounds.
const CUDA_RATE: f64 = 790e12;

/// Memory of one H200 as its driver reports it, MiB.
const H200_MIB: f64 = 143_771.0;

/// GPU memory of the context, cuBLASLt's workspaces and NCCL's buffers, MiB; an estimate.
const RESERVED_MIB: f64 = 2048.0;

/// Longest shard list whose files are looked up; longer lists take too long, and plans are also
/// made on machines without the data.
const MAX_COUNTED_SHARDS: usize = 10_000;

/// Tables and notes of the plan, in the order in which `--dry-run` prints them.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    facts: Vec<Vec<String>>,
    /// Parameters of the model, or rows of a table.
    parameters: Vec<Vec<String>>,
    stages: Vec<Vec<String>>,
    memory: Vec<Vec<String>>,
    sources: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Plan {
    /// Computes the plan of a recipe.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        if let Some(table) = &recipe.table {
            return Self::of_table(recipe, table);
        }
        let cost = cost(recipe);
        Self {
            facts: facts(recipe, &cost),
            parameters: parameters(recipe, &cost),
            stages: stages(recipe, &cost),
            memory: memory(&cost),
            sources: sources(recipe),
            notes: notes(recipe, &cost),
        }
    }
}

impl Plan {
    /// The plan of a table: what is measured. Its rows bring their own models.
    fn of_table(recipe: &Recipe, table: &Table) -> Self {
        let tasks = recipe.evaluation.tasks.len();
        let measures = match tasks {
            0 => "nothing; the runs of the rows have measured their scores".to_owned(),
            tasks => format!("{tasks} tasks for each of {} rows", table.rows.len()),
        };
        let mut facts = vec![row("plan", recipe.name.clone())];
        if tasks > 0 {
            facts.extend(machines(recipe));
        }
        facts.push(row("measures", measures));
        let header = ["row", "weights", "beside the paper's"].map(str::to_owned).to_vec();
        let mut rows = vec![header];
        let known = paper::TABLES.get(&table.of);
        rows.extend(table.rows.iter().map(|(name, row)| {
            let weights = match row.weights() {
                Some(RowWeights::Run(run, Some(step))) => format!("{}, step {step}", run.display()),
                Some(RowWeights::Run(path, None) | RowWeights::Export(path)) => {
                    path.display().to_string()
                }
                Some(RowWeights::Model(model)) => {
                    let path = model.x_encoder.weights().map(|path| path.display().to_string());
                    path.unwrap_or_else(|| "–".to_owned())
                }
                None => "–".to_owned(),
            };
            let twin = known.and_then(|known| known.row(row.in_paper(name)));
            let twin = twin.map_or_else(|| "–".to_owned(), |twin| twin.name.clone());
            vec![name.clone(), weights, twin]
        }));
        Self { facts, parameters: rows, ..Self::default() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { facts, parameters, stages, memory, sources, notes } = self;
        // A dual encoder has neither stages nor sources, so that their tables have only headers.
        let parts = [facts, parameters, stages, memory, sources];
        for (index, part) in parts.into_iter().filter(|part| part.len() > 1).enumerate() {
            let gap = if index > 0 { "\n\n" } else { "" };
            write!(f, "{gap}{}", table(part))?;
        }
        notes.iter().try_for_each(|note| write!(f, "\n\n{note}"))
    }
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn facts(recipe: &Recipe, cost: &Cost) -> Vec<Vec<String>> {
    let mut facts = vec![row("plan", recipe.name.clone())];
    facts.extend(machines(recipe));
    match recipe.model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::Vlm => {
            facts.extend(training(recipe, cost));
        }
        ModelKind::DualEncoder => {
            let tasks = recipe.evaluation.tasks.len();
            facts.push(row("tasks", format!("{tasks}, and no training: a dual encoder")));
        }
    }
    facts
}

/// Rows about devices and ranks.
fn machines(recipe: &Recipe) -> [Vec<String>; 2] {
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
fn training(recipe: &Recipe, cost: &Cost) -> Vec<Vec<String>> {
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
    if recipe.device == Device::Cuda {
        let ranks = recipe.cluster.world_size();
        let hours = hours(operations, ranks);
        let text = format!(
            "{hours:.1} h ({:.2} days) at {:.0} TFLOP/s per GPU, counting only these operations",
            hours / 24.0,
            CUDA_RATE / 1e12
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

fn parameters(recipe: &Recipe, cost: &Cost) -> Vec<Vec<String>> {
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

fn stages(recipe: &Recipe, cost: &Cost) -> Vec<Vec<String>> {
    let ranks = recipe.cluster.world_size();
    let cuda = recipe.device == Device::Cuda;
    let mut header = vec![
        "stage",
        "steps",
        "batch",
        "per rank",
        "frames",
        "samples",
        "GFLOP/sample",
        "total FLOP",
    ];
    header.extend(cuda.then_some("hours"));
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    rows.extend(recipe.stages.iter().zip(&cost.stages).map(|(stage, cost)| {
        let (fewest, most) = (stage.batch / ranks, stage.batch.div_ceil(ranks));
        let mut row = vec![
            stage.name.clone(),
            thousands(stage.steps),
            thousands(stage.batch as u64),
            if fewest == most { most.to_string() } else { format!("{fewest}–{most}") },
            stage.frames.to_string(),
            thousands(cost.samples),
            format!("{:.3}", cost.sample.total() / 1e9),
            format!("{:.3e}", cost.operations),
        ];
        row.extend(cuda.then(|| format!("{:.2}", hours(cost.operations, ranks))));
        row
    }));
    rows
}

/// Memory of the rank that needs most, MiB, and the data that it sends per step, MiB.
fn memory(cost: &Cost) -> Vec<Vec<String>> {
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

/// Notes about stages that need more memory than one H200 has.
fn notes(recipe: &Recipe, cost: &Cost) -> Vec<String> {
    let cuda = recipe.device == Device::Cuda;
    let full =
        cost.stages.iter().enumerate().filter(|(_, stage)| {
            cuda && in_mib(stage.most_memory.total()) > H200_MIB - RESERVED_MIB
        });
    full.map(|(index, stage)| {
        format!(
            "stage {} needs up to {:.0} MiB per rank, more than the {:.0} MiB that one H200 has: set stages.{index}.recompute or stages.{index}.micro_batch",
            stage.name,
            in_mib(stage.most_memory.total()),
            H200_MIB - RESERVED_MIB
        )
    })
    .collect()
}

fn in_mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "ranks are few")]
fn hours(operations: f64, ranks: usize) -> f64 {
    operations / (ranks.max(1) as f64 * CUDA_RATE) / 3600.0
}

fn sources(recipe: &Recipe) -> Vec<Vec<String>> {
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
