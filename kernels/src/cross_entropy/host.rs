//! Cross-entropy on the host: blocks of tokens in parallel, exponentials that vectorise.

use super::target_index;
use crate::math::exp;
use crate::parallel::{blocks, blocks2, round, rows_per_block, sum1};

pub(super) fn forward(
    logits: &[f32],
    targets: &[i32],
    v: usize,
    losses: &mut [f32],
    lse: &mut [f32],
) {
    let rows = rows_per_block(targets.len(), v);
    blocks2(logits.len(), (losses, rows), (lse, rows), |block, losses, lse| {
        let tokens = block * rows..block * rows + losses.len();
        let logits = logits[tokens.start * v..tokens.end * v].chunks_exact(v.max(1));
        let outputs = losses.iter_mut().zip(lse);
        for ((row, &target), (loss, lse)) in logits.zip(&targets[tokens]).zip(outputs) {
            let max = row.iter().fold(f32::NEG_INFINITY, |max, &z| max.max(z));
            let r = f64::from(max) + f64::from(sum1(row, |z| exp(z - max))).ln();
            *lse = round(r);
            *loss = target_index(target).map_or(0.0, |t| round(r - f64::from(row[t])));
        }
    });
}

pub(super) fn backward(logits: &mut [f32], targets: &[i32], lse: &[f32], v: usize, factor: f32) {
    let rows = rows_per_block(targets.len(), v);
    blocks(logits.len(), (logits, rows * v), |block, logits| {
        let tokens = block * rows..;
        let tokens = targets[tokens.clone()].iter().zip(&lse[tokens]);
        for (row, (&target, &lse)) in logits.chunks_exact_mut(v.max(1)).zip(tokens) {
            let Some(target) = target_index(target) else {
                row.fill(0.0);
                continue;
            };
            for z in row.iter_mut() {
                *z = factor * exp(*z - lse);
            }
            row[target] -= factor;
        }
    });
}
