//! From a step's gradients to its update: sums over ranks, global norm, clipping, AdamW.
//!
//! Sharded (`optimizer.shard`, ZeRO-1), a rank keeps the moments of its shard of the flat buffers alone: the gradients' sum is
//! scattered to the owners, the norm is put together from their shares, each owner updates its shard, and the updated f32 weights
//! are gathered, on GPUs too: masters stay whole and the same on every rank, which evaluation and the check of agreement read.

use std::ops::Range;

use vljepa_kernels::{DType, copy, global_norm};
use vljepa_model::{Context, Layout};

use crate::collectives::{Collectives, GradientSum, Shares};
use crate::engine::{Engine, Training};

/// How flat buffers of `len` elements are shared: in rows of 64 elements, so that shards are aligned as parameters are.
///
/// # Panics
/// When `len` is no multiple of them: a bug.
#[must_use]
pub fn shards(len: usize, world_size: usize) -> Shares {
    assert!(len.is_multiple_of(Layout::ALIGNMENT), "flat buffers are aligned");
    Shares { global: len / Layout::ALIGNMENT, world_size }
}

/// The elements of flat buffers that one rank owns.
///
/// # Panics
/// When `len` is no multiple of 64: a bug.
///
/// ```
/// assert_eq!(vljepa_worker::optimize::shard(320, 1, 2), 128..320);
/// ```
#[must_use]
pub fn shard(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    let Range { start, end } = shards(len, world_size).rows(rank);
    start * Layout::ALIGNMENT..end * Layout::ALIGNMENT
}

/// The sum over ranks that begins while a backward pass still works; none where each rank needs the sum of its shard only.
#[must_use]
pub fn travelling_sums<'a>(
    training: &Training,
    collectives: &'a Collectives,
) -> Option<GradientSum<'a>> {
    training.shard().is_none().then(|| GradientSum::new(collectives, training.bucket_bytes))
}

/// Sums the gradients over ranks: what is left of all of them on every rank, or, sharded, what this rank owns.
///
/// # Errors
/// When the device or the data plane fails.
pub fn sum_gradients(
    cx: Context<'_>,
    training: &mut Training,
    collectives: &Collectives,
    sums: Option<GradientSum<'_>>,
) -> anyhow::Result<()> {
    let own = training.shard();
    let flat = &mut training.gradients.flat;
    if let Some(sums) = sums {
        return Ok(sums.finish(cx.stream, flat.view_mut())?);
    }
    let Range { start, end } = own.unwrap_or(0..flat.shape()[0]);
    let shares = shards(flat.shape()[0], collectives.world_size());
    let len = [end - start];
    let mut sum = cx.arena.take(DType::F32, &len)?;
    collectives.reduce_scatter_sum(cx.stream, flat.view(), shares, sum.view_mut())?;
    copy::copy(cx.stream, sum.view(), flat.view_mut().part(start, &len))?;
    Ok(())
}

/// Clips and applies the summed gradient; returns its norm and whether it was finite.
///
/// # Errors
/// When the device or the data plane fails.
pub fn update(
    engine: &mut Engine,
    training: &mut Training,
    collectives: &Collectives,
    learning_rate: f64,
) -> anyhow::Result<(f64, bool)> {
    let shard = training.shard();
    let Training { gradients, optimizer, clip_norm, .. } = training;
    let (stream, arena) = engine.stream_and_arena();
    let cx = Context { stream: &stream, arena: &arena };
    let mut squared = arena.take(DType::F32, &[1])?;
    let mut control = arena.take(DType::F32, &[2])?;
    let Range { start, end } = optimizer.range();
    let own = gradients.flat.view().part(start, &[end - start]);
    global_norm::squared_sum(&stream, own, squared.view_mut())?;
    if shard.is_some() {
        collectives.all_reduce_sum(&stream, squared.view_mut())?;
    }
    let max_norm = if *clip_norm > 0.0 { *clip_norm } else { f32::INFINITY };
    global_norm::control(&stream, squared.view(), max_norm, control.view_mut())?;
    // A snapshot may still be reading what is updated now.
    stream.after_snapshots()?;
    let parameters = &mut engine.parameters;
    optimizer.step(cx, parameters, gradients, control.view(), learning_rate)?;
    if let Some(Range { start, end }) = shard {
        let weights = &mut parameters.trainable;
        let shares = shards(weights.shape()[0], collectives.world_size());
        let len = [end - start];
        let mut own = arena.take(DType::F32, &len)?;
        copy::copy(&stream, weights.view().part(start, &len), own.view_mut())?;
        collectives.all_gather_rows(&stream, own.view(), shares, weights.view_mut())?;
        parameters.refresh_trainable(&stream)?;
    }
    let finite = control.to_f32()?[1] > 0.0;
    Ok((f64::from(squared.to_f32()?[0]).sqrt(), finite))
}
