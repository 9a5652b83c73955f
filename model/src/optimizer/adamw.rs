//! AdamW over the flat parameter buffers.

use std::ops::Range;

use vljepa_kernels::adamw::{self, Hyper};
use vljepa_kernels::{DType, Device, Tensor, View};
use vljepa_recipes::schema;

use crate::{Context, Gradients, Group, Layout, ModelError, Parameter, Parameters};

/// AdamW and its moments for a range of the trainable buffer: the whole buffer, or one rank's
/// shard.
#[derive(Debug)]
pub struct AdamW {
    /// First moments, f32 (length of the range).
    pub m: Tensor,
    /// Second moments, f32 (length of the range).
    pub v: Tensor,
    /// Number of updates, including updates that were skipped because a gradient was not finite.
    pub step: u64,
    range: Range<usize>,
    runs: Vec<Run>,
    betas: [f64; 2],
    eps: f64,
}

/// Neighbouring parameters with the same multiplier and weight decay.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    range: Range<usize>,
    multiplier: f64,
    weight_decay: f64,
}

impl AdamW {
    /// Creates an optimizer for all trainable parameters.
    ///
    /// # Errors
    /// If the recipe sets a multiplier for a group that does not exist, or memory runs out.
    pub fn new(
        layout: &Layout,
        device: Device,
        recipe: &schema::Optimizer,
    ) -> Result<Self, ModelError> {
        let all = 0..layout.trainable_len;
        Self::of_range(layout, device, recipe, all.clone(), all.len())
    }

    /// Creates an optimizer for the trainable parameters in `range` of the flat buffers. It does
    /// not touch the others. Each moment has memory for `room` elements; see [`Tensor::padded`].
    ///
    /// # Errors
    /// If the recipe sets a multiplier for a group that does not exist, or memory runs out.
    pub fn of_range(
        layout: &Layout,
        device: Device,
        recipe: &schema::Optimizer,
        range: Range<usize>,
        room: usize,
    ) -> Result<Self, ModelError> {
        let known = |name: &str| Group::ALL.iter().any(|g| g.name() == name);
        if let Some(name) = recipe.multipliers.keys().find(|name| !known(name)) {
            return Err(ModelError::Config {
                key: "optimizer.multipliers".to_owned(),
                what: format!(
                    "there is no group `{name}`; the groups are {}",
                    Group::ALL.map(Group::name).join(", ")
                ),
            });
        }
        Ok(Self {
            m: Tensor::padded(device, DType::F32, &[range.len()], room)?,
            v: Tensor::padded(device, DType::F32, &[range.len()], room)?,
            step: 0,
            runs: runs(layout, recipe, &range),
            range,
            betas: recipe.betas.map(decimal),
            eps: decimal(recipe.eps),
        })
    }

    /// Range of the flat buffers that this optimizer updates.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Performs one update. Each group uses `learning_rate` times its multiplier, and only matrices
    /// decay. `control` (2) holds the clip factor and the finite flag of
    /// [`vljepa_kernels::global_norm`]. If the flag says that a gradient is not finite, only the
    /// step count changes.
    ///
    /// # Errors
    /// If the buffers do not match the layout of this optimizer.
    pub fn step(
        &mut self,
        cx: Context<'_>,
        parameters: &mut Parameters,
        gradients: &Gradients,
        control: View<'_>,
        learning_rate: f64,
    ) -> Result<(), ModelError> {
        self.step += 1;
        for run in &self.runs {
            let (start, len) = (run.range.start, [run.range.len()]);
            let own = start - self.range.start;
            let hyper = Hyper {
                lr: learning_rate * run.multiplier,
                beta1: self.betas[0],
                beta2: self.betas[1],
                eps: self.eps,
                weight_decay: run.weight_decay,
                step: self.step,
            };
            let (weights, copies) = parameters.update(&run.range);
            adamw::step(
                cx.stream,
                weights,
                self.m.view_mut().part(own, &len),
                self.v.view_mut().part(own, &len),
                gradients.flat.view().part(start, &len),
                hyper,
                control,
                copies,
            )?;
        }
        Ok(())
    }
}

/// Splits `range` into maximal runs of equal hyper-parameters. The padding after a parameter
/// belongs to its run: the padding is zero, its gradient is zero, and it stays zero.
fn runs(layout: &Layout, recipe: &schema::Optimizer, range: &Range<usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let trainable: Vec<&Parameter> = layout.parameters.iter().filter(|p| p.trainable).collect();
    for (i, parameter) in trainable.iter().enumerate() {
        let padded_end = trainable.get(i + 1).map_or(layout.trainable_len, |p| p.range.start);
        let start = parameter.range.start.max(range.start);
        let end = padded_end.min(range.end);
        if start >= end || parameter.group == Group::YAverage {
            continue;
        }
        let multiplier = parameter.group.multiplier(&recipe.multipliers);
        let weight_decay = if parameter.decay { decimal(recipe.weight_decay) } else { 0.0 };
        let same = |run: &Run| {
            run.range.end == start
                && run.multiplier.to_bits() == multiplier.to_bits()
                && run.weight_decay.to_bits() == weight_decay.to_bits()
        };
        match runs.last_mut() {
            Some(run) if same(run) => run.range.end = end,
            Some(_) | None => runs.push(Run { range: start..end, multiplier, weight_decay }),
        }
    }
    runs
}

/// Converts an f32 to the f64 that its decimal form in the recipe means: 0.95, not 0.949999988.
fn decimal(written: f32) -> f64 {
    written.to_string().parse().unwrap_or_else(|_| f64::from(written))
}
