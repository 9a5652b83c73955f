//! Cached attention on the host: one task per query and key/value head, which reads each key and
//! each value once for all query heads that share them.

use super::Dims;
use crate::Packed;
use crate::attention::dot;
use crate::math::exp;
use crate::parallel::{blocks, sum1};

/// Inputs of one call: `q` (n, h, hd), pools `k` and `v` (p, g, hd), and one list of rows per
/// query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) lists: &'a Packed,
    pub(super) dims: Dims,
    pub(super) scale: f32,
}

/// Writes out (n, h, hd).
pub(super) fn forward(inputs: &Inputs<'_>, out: &mut [f32]) {
    let Dims { kv_heads, head_dim, .. } = inputs.dims;
    let elements = inputs.lists.lengths.tokens() * kv_heads * head_dim;
    let group_width = inputs.dims.group() * head_dim;
    blocks(elements, (out, group_width), |task, out| {
        let q = &inputs.q[task * group_width..][..group_width];
        group(inputs, task / kv_heads, task % kv_heads, q, out);
    });
}

/// Attended values of the query heads of `query` that share `kv_head`.
fn group(inputs: &Inputs<'_>, query: usize, kv_head: usize, q: &[f32], out: &mut [f32]) {
    let Dims { kv_heads, head_dim, .. } = inputs.dims;
    let rows = &inputs.lists.host_ids()[inputs.lists.lengths.range(query)];
    let start = |&row: &i32| (row.unsigned_abs() as usize * kv_heads + kv_head) * head_dim;
    let mut scores = vec![0.0; inputs.dims.group() * rows.len()];
    for (at, row) in rows.iter().enumerate() {
        let key = &inputs.k[start(row)..][..head_dim];
        for (head, q) in q.chunks_exact(head_dim).enumerate() {
            scores[head * rows.len() + at] = inputs.scale * dot(q, key);
        }
    }
    for scores in scores.chunks_exact_mut(rows.len()) {
        let max = scores.iter().fold(f32::NEG_INFINITY, |max, &s| max.max(s));
        scores.iter_mut().for_each(|s| *s = exp(*s - max));
        let total = sum1(scores, |p| p);
        scores.iter_mut().for_each(|p| *p /= total);
    }
    out.fill(0.0);
    for (at, row) in rows.iter().enumerate() {
        let value = &inputs.v[start(row)..][..head_dim];
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let p = scores[head * rows.len() + at];
            out.iter_mut().zip(value).for_each(|(out, v)| *out = p.mul_add(*v, *out));
        }
    }
}
