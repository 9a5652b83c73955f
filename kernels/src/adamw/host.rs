//! AdamW on the host: one vectorised pass over the four arrays.

use super::{Hyper, State};
use crate::parallel::{BLOCK, blocks3, round};

pub(super) fn step(state: State<'_>, gradient: &[f32], hyper: Hyper, clip_factor: f32) {
    let (correction1, correction2) = hyper.bias_corrections();
    let keep = round(1.0 - hyper.lr * hyper.weight_decay);
    let step_size = round(hyper.lr / correction1);
    let root_scale = round(1.0 / correction2.sqrt());
    let (gain1, beta2) = (round(1.0 - hyper.beta1), round(hyper.beta2));
    let (gain2, eps) = (round(1.0 - hyper.beta2), round(hyper.eps));
    let State { weights, m, v } = state;
    blocks3(gradient.len(), (weights, BLOCK), (m, BLOCK), (v, BLOCK), |block, weights, m, v| {
        let moments = m.iter_mut().zip(v);
        let gradient = &gradient[block * BLOCK..];
        for ((w, (m, v)), &g) in weights.iter_mut().zip(moments).zip(gradient) {
            let g = g * clip_factor;
            *m = gain1.mul_add(g - *m, *m);
            *v = (gain2 * g).mul_add(g, beta2 * *v);
            let divisor = v.sqrt().mul_add(root_scale, eps);
            *w = (*w * keep) - step_size * (*m / divisor);
        }
    });
}
