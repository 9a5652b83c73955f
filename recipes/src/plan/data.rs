//! Samples that the CPUs of a rank decode, and bytes that they need from storage.

use serde::Serialize;

use super::Estimate;
use super::rates::{Beyond, Rates};
use crate::cost::real;
use crate::schema::{Recipe, Stage, Visual};

/// What a rank's CPUs can deliver in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Supply {
    /// CPUs that decode for a rank.
    pub cpus: f64,
    /// Samples per second of these CPUs. `None` if the stage sees neither pictures nor clips.
    pub rank_samples_per_s: Option<Estimate>,
    /// Mean size in storage of the frames of a sample, bytes; 0 if the stage sees none.
    pub bytes_per_sample: f64,
    /// Share of samples that are clips.
    pub clip_share: f64,
    /// Whether all samples of the stage are prepared.
    pub prepared: bool,
}

/// CPUs that decode for a rank.
pub(super) fn cpus(recipe: &Recipe, rates: &Rates) -> f64 {
    let there = match recipe.cluster.slurm.cpus_per_rank {
        0 => rates.cpus_per_rank,
        cpus => real(cpus),
    };
    // Threads beyond the CPUs decode nothing more.
    match recipe.data.threads {
        0 => there,
        threads => real(threads).min(there),
    }
}

/// Samples per second that the CPUs of a rank decode in a stage.
pub(super) fn supply(recipe: &Recipe, stage: &Stage, rates: &Rates) -> Supply {
    let cpus = cpus(recipe, rates);
    let used: Vec<_> = crate::cost::sources(recipe, stage).collect();
    let sees = crate::cost::sees_frames(recipe, stage);
    let prepared = used.iter().all(|(_, source)| source.prepared);
    let mut seconds = Estimate::default();
    let (mut bytes_per_sample, mut clip_share) = (0.0, 0.0);
    for (weight, source) in used {
        let form = rates.form(source.visual, source.prepared);
        let frames = source.frames.unwrap_or(stage.frames);
        let curve = &form.samples_per_cpu_s;
        let of_sample = weight / curve.at(frames, Beyond::Line);
        seconds =
            Estimate::new(seconds.value + of_sample, seconds.deviation + of_sample * curve.spread);
        bytes_per_sample += if sees { weight * 1e3 * form.kilobytes.value } else { 0.0 };
        clip_share += if source.visual == Visual::Video { weight } else { 0.0 };
    }
    let rate = Estimate::ratio(cpus, seconds);
    let rank_samples_per_s = (sees && seconds.value > 0.0).then_some(rate);
    Supply { cpus, rank_samples_per_s, bytes_per_sample, clip_share, prepared }
}
