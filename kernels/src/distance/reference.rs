//! Distances by their definition. The host also runs this code, because distances are a negligible
//! part of a step.

use super::Distance;

#[expect(clippy::cast_precision_loss, reason = "widths are below 2^24")]
fn width(e: usize) -> f32 {
    e as f32
}

/// Σ over rows of the distance, with differences and sums in f64.
pub(super) fn forward(pred: &[f32], target: &[f32], e: usize, kind: Distance) -> f64 {
    let pairs = || pred.iter().zip(target).map(|(&p, &t)| (f64::from(p), f64::from(t)));
    let scale = f64::from(width(e.max(1)));
    match kind {
        Distance::Cosine => {
            let rows = f64::from(width(pred.len().checked_div(e).unwrap_or(0)));
            rows - pairs().map(|(p, t)| p * t).sum::<f64>()
        }
        Distance::L1 => pairs().map(|(p, t)| (p - t).abs()).sum::<f64>() / scale,
        Distance::L2 => pairs().map(|(p, t)| (p - t) * (p - t)).sum::<f64>() / scale,
    }
}

/// Gradients of `factor` · [`forward`].
pub(super) fn backward(
    pred: &[f32],
    target: &[f32],
    e: usize,
    kind: Distance,
    factor: f32,
    d_pred: &mut [f32],
    d_target: &mut [f32],
) {
    let each = factor / width(e.max(1));
    let gradients = d_pred.iter_mut().zip(d_target);
    for ((d_p, d_t), (&p, &t)) in gradients.zip(pred.iter().zip(target)) {
        let difference = p - t;
        (*d_p, *d_t) = match kind {
            Distance::Cosine => (-factor * t, -factor * p),
            Distance::L1 if difference > 0.0 => (each, -each),
            Distance::L1 if difference < 0.0 => (-each, each),
            // The difference is 0, which is the gradient, or NaN, which propagates.
            Distance::L1 => (difference, -difference),
            Distance::L2 => (2.0 * each * difference, -2.0 * each * difference),
        };
    }
}
