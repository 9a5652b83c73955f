//! Cross-entropy by its definition, with sums in f64.

use super::target_index;
use crate::parallel::round;

pub(super) fn forward(
    logits: &[f32],
    targets: &[i32],
    v: usize,
    losses: &mut [f32],
    lse: &mut [f32],
) {
    let outputs = losses.iter_mut().zip(lse);
    for ((row, &target), (loss, lse)) in logits.chunks_exact(v.max(1)).zip(targets).zip(outputs) {
        let max = row.iter().fold(f64::NEG_INFINITY, |m, &z| m.max(f64::from(z)));
        let sum: f64 = row.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        let r = max + sum.ln();
        *lse = round(r);
        *loss = target_index(target).map_or(0.0, |t| round(r - f64::from(row[t])));
    }
}

pub(super) fn backward(logits: &mut [f32], targets: &[i32], lse: &[f32], v: usize, factor: f32) {
    let rows = logits.chunks_exact_mut(v.max(1));
    for ((row, &target), &lse) in rows.zip(targets).zip(lse) {
        let Some(target) = target_index(target) else {
            row.fill(0.0);
            continue;
        };
        for (j, z) in row.iter_mut().enumerate() {
            let p = (f64::from(*z) - f64::from(lse)).exp();
            let own = f64::from(u8::from(j == target));
            *z = round(f64::from(factor) * (p - own));
        }
    }
}
