//! AdamW as one pass over the flat buffers. See `launch.rs` for the memory floor, the tiling and
//! the alternatives considered.

use cubecl::prelude::*;
use half::bf16;

/// Updates `count` vectors of parameters. `control` holds the clip factor and the finite flag. If
/// `copied`, `copy` receives the weights in bf16.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn adamw_step<N: Size>(
    weights: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    gradient: &[Vector<f32, N>],
    control: &[f32],
    copy: &mut [Vector<bf16, N>],
    keep: f32,
    step_size: f32,
    root_scale: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    eps: f32,
    count: u32,
    #[comptime] copied: bool,
    #[comptime] vectors: usize,
) {
    if control[1] > 0.0 {
        let clip = Vector::<f32, N>::new(control[0]);
        let first = CUBE_POS_X as usize * CUBE_DIM_X as usize * vectors + UNIT_POS_X as usize;
        #[unroll]
        for i in 0..vectors {
            let at = first + i * CUBE_DIM_X as usize;
            if at < count as usize {
                let g = gradient[at] * clip;
                let m1 = m[at] + Vector::new(gain1) * (g - m[at]);
                let v1 = Vector::new(beta2) * v[at] + Vector::new(gain2) * g * g;
                let divisor = v1.sqrt() * Vector::new(root_scale) + Vector::new(eps);
                let w = weights[at] * Vector::new(keep) - Vector::new(step_size) * (m1 / divisor);
                m[at] = m1;
                v[at] = v1;
                weights[at] = w;
                if comptime!(copied) {
                    copy[at] = Vector::cast_from(w);
                }
            }
        }
    }
}
