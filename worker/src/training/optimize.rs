//! Turns the gradients of a step into an update: sums over ranks, global norm, clipping, AdamW.
//!
//! With a sharded optimizer (`optimizer.shard`, ZeRO-1), a rank keeps only the moments of its shard
//! of the flat buffers. The sum of the gradients is scattered to the owners, the norm is the sum
//! over their shards, and each owner updates its shard. Then the updated f32 weights are gathered,
//! on GPUs too: every rank keeps all master weights, which evaluation and the check of agreement
//! read. Both collectives work in place, on buffers with padding ([`crate::sharding::Shards`]).

use std::ops::Range;

use vljepa_kernels::{DType, global_norm};
use vljepa_model::Context;

use crate::collectives::{Collectives, GradientSum};
use crate::engine::{Engine, Network, Training};

/// Prepares the sum over ranks that begins during the backward pass. Returns `None` if the
/// optimizer is sharded, because each rank then needs only the sum of its shard.
#[must_use]
pub fn travelling_sums<'a>(
    training: &Training,
    collectives: &'a Collectives,
) -> Option<GradientSum<'a>> {
    (!training.is_sharded).then(|| GradientSum::new(collectives, training.bucket_bytes))
}

/// Sums the gradients over ranks. With `sums`, completes the sum of all gradients on every rank.
/// Without, each rank gets the sum of the elements that it owns.
///
/// # Errors
/// Fails if the device or the communication fails.
pub fn sum_gradients(
    cx: Context<'_>,
    training: &mut Training,
    collectives: &Collectives,
    sums: Option<GradientSum<'_>>,
) -> anyhow::Result<()> {
    let flat = &mut training.gradients.flat;
    match sums {
        Some(sums) => sums.finish(cx.stream, flat.view_mut())?,
        None => collectives.reduce_scatter_sum(cx.stream, flat.with_padding_mut())?,
    }
    Ok(())
}

/// Clips the summed gradient and updates the parameters and the moving average. Returns the
/// gradient norm before clipping, and whether it was finite.
///
/// # Errors
/// Fails if the device or the communication fails.
pub fn update<M: Network>(
    engine: &mut Engine<M>,
    training: &mut Training,
    collectives: &Collectives,
    learning_rate: f64,
) -> anyhow::Result<(f64, bool)> {
    let Training { gradients, optimizer, clip_norm, is_sharded, .. } = training;
    let (stream, arena) = engine.stream_and_arena();
    let cx = Context { stream: &stream, arena: &arena };
    let mut squared = arena.take(DType::F32, &[1])?;
    let mut control = arena.take(DType::F32, &[2])?;
    let Range { start, end } = optimizer.range();
    let own = gradients.flat.view().part(start, &[end - start]);
    global_norm::squared_sum(&stream, own, squared.view_mut())?;
    if *is_sharded {
        collectives.all_reduce_sum(&stream, squared.view_mut())?;
    }
    let max_norm = if *clip_norm > 0.0 { *clip_norm } else { f32::INFINITY };
    global_norm::control(&stream, squared.view(), max_norm, control.view_mut())?;
    // A snapshot may still be reading the parameters that are updated next.
    stream.after_snapshots()?;
    let parameters = &mut engine.parameters;
    optimizer.step(cx, parameters, gradients, control.view(), learning_rate)?;
    if *is_sharded {
        collectives.all_gather_slots(&stream, parameters.trainable.with_padding_mut())?;
        parameters.refresh_trainable(&stream)?;
    }
    let finite = control.to_f32()?[1] > 0.0;
    if finite {
        engine.model.move_average(&stream, parameters)?;
    }
    Ok((f64::from(squared.to_f32()?[0]).sqrt(), finite))
}
