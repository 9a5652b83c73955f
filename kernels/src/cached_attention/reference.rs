//! Cached attention by its definition in f64: one query head at a time.

use super::Dims;
use super::host::Inputs;
use crate::parallel::round;
use crate::testing::dot;

/// out (n, h, hd).
pub(super) fn forward(inputs: &Inputs<'_>) -> Vec<f32> {
    let Dims { query_heads, kv_heads, head_dim } = inputs.dims;
    let mut out = Vec::with_capacity(inputs.q.len());
    for query in 0..inputs.lists.lengths.rows() {
        let rows = &inputs.lists.host_ids()[inputs.lists.lengths.range(query)];
        for head in 0..query_heads {
            let q = &inputs.q[(query * query_heads + head) * head_dim..][..head_dim];
            let start = |&row: &i32| {
                let row = usize::try_from(row).expect("rows are checked");
                (row * kv_heads + head / inputs.dims.group()) * head_dim
            };
            let score = |row| f64::from(inputs.scale) * dot(q, &inputs.k[start(row)..][..head_dim]);
            let scores: Vec<f64> = rows.iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            out.extend((0..head_dim).map(|e| {
                let term = |(row, s): (&i32, &f64)| {
                    (s - max).exp() / total * f64::from(inputs.v[start(row) + e])
                };
                round(rows.iter().zip(&scores).map(term).sum())
            }));
        }
    }
    out
}
