//! AdamW as `torch.optim.AdamW` documents it; all arithmetic between reading and writing is in f64.

use super::{Hyper, State};
use crate::parallel::round;

pub(super) fn step(state: State<'_>, gradient: &[f32], hyper: Hyper, clip_factor: f32) {
    let (correction1, correction2) = hyper.bias_corrections();
    for (i, &gradient) in gradient.iter().enumerate() {
        let g = f64::from(gradient) * f64::from(clip_factor);
        let decayed = f64::from(state.weights[i]) * (1.0 - hyper.lr * hyper.weight_decay);
        let m = hyper.beta1 * f64::from(state.m[i]) + (1.0 - hyper.beta1) * g;
        let v = hyper.beta2 * f64::from(state.v[i]) + (1.0 - hyper.beta2) * g * g;
        let (m_hat, v_hat) = (m / correction1, v / correction2);
        let w = decayed - hyper.lr * m_hat / (v_hat.sqrt() + hyper.eps);
        (state.weights[i], state.m[i], state.v[i]) = (round(w), round(m), round(v));
    }
}
