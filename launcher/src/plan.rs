//! What a recipe will do, from its keys alone: ranks, samples, operations, memory. Pure, apart from counting shards that are here.

use std::fmt;

use vljepa_recipes::schema::{Device, Precision, Recipe};

use crate::provenance;
use crate::terminal::{table, thousands};

/// A plan, as `--dry-run` prints it.
#[derive(Debug)]
pub(crate) struct Plan {
    facts: Vec<Vec<String>>,
    stages: Vec<Vec<String>>,
    sources: Vec<Vec<String>>,
}

impl Plan {
    /// Works it out.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        Self { facts: facts(recipe), stages: stages(recipe), sources: sources(recipe) }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}\n", table(&self.facts), table(&self.stages))?;
        write!(f, "{}", table(&self.sources))
    }
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn facts(recipe: &Recipe) -> Vec<Vec<String>> {
    let cluster = &recipe.cluster;
    let (device, precision) = match (recipe.device, recipe.precision) {
        (Device::Host, Precision::F32) => ("the CPU", "f32"),
        (Device::Host, Precision::Bf16) => ("the CPU", "bf16"),
        (Device::Cuda, Precision::F32) => ("CUDA", "f32"),
        (Device::Cuda, Precision::Bf16) => ("CUDA", "bf16"),
    };
    let ranks = cluster.world_size();
    let steps: u64 = recipe.stages.iter().map(|stage| stage.steps).sum();
    let samples: u64 = recipe.stages.iter().map(|stage| stage.steps * stage.batch as u64).sum();
    vec![
        row("plan", recipe.name.clone()),
        row("device", format!("{device}, {precision}")),
        row(
            "ranks",
            format!("{ranks} ({} on each of {} nodes)", cluster.ranks_per_node, cluster.nodes),
        ),
        row("steps", thousands(steps)),
        row("samples", thousands(samples)),
    ]
}

fn stages(recipe: &Recipe) -> Vec<Vec<String>> {
    let ranks = recipe.cluster.world_size();
    let header = ["stage", "steps", "batch", "per rank", "frames", "samples"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(recipe.stages.iter().map(|stage| {
        let (fewest, most) = (stage.batch / ranks, stage.batch.div_ceil(ranks));
        vec![
            stage.name.clone(),
            thousands(stage.steps),
            thousands(stage.batch as u64),
            if fewest == most { most.to_string() } else { format!("{fewest}–{most}") },
            stage.frames.to_string(),
            thousands(stage.steps * stage.batch as u64),
        ]
    }));
    rows
}

fn sources(recipe: &Recipe) -> Vec<Vec<String>> {
    let mut rows = vec![["source", "shards", "here"].map(str::to_owned).to_vec()];
    rows.extend(recipe.data.sources.iter().map(|(name, source)| {
        let files = provenance::shard_files(&source.shards);
        let here = files.iter().filter(|file| file.is_file()).count();
        let counted = format!("{} of {}", thousands(here as u64), thousands(files.len() as u64));
        vec![name.clone(), source.shards.clone(), counted]
    }));
    rows
}
