//! Attention by its definition in f64: one query at a time, all of its probabilities at once.

use super::{Dims, Mask};
use crate::Lengths;
use crate::parallel::round;

#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) lengths: &'a Lengths,
    pub(super) dims: Dims,
    pub(super) mask: Mask,
    pub(super) scale: f32,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

impl Inputs<'_> {
    /// Calls `f(query, key rows, probabilities, log-sum-exp)` for each pair of token and query
    /// head, where `query` is the pair's row in q.
    fn each(&self, mut f: impl FnMut(usize, &[usize], &[f64], f64)) {
        let Dims { query_heads, kv_heads, head_dim } = self.dims;
        for row in 0..self.lengths.rows() {
            let tokens = self.lengths.range(row);
            for i in tokens.clone() {
                for head in 0..query_heads {
                    let kv_head = head / self.dims.group();
                    let keys: Vec<usize> = tokens
                        .clone()
                        .filter(|&j| match self.mask {
                            Mask::Full => true,
                            Mask::Causal => j <= i,
                            Mask::Window(w) => i.abs_diff(j) < w,
                        })
                        .map(|j| j * kv_heads + kv_head)
                        .collect();
                    let query = i * query_heads + head;
                    let q = &self.q[query * head_dim..][..head_dim];
                    let score = |&key: &usize| {
                        f64::from(self.scale) * dot(q, &self.k[key * head_dim..][..head_dim])
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                    let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
                    f(query, &keys, &p, lse);
                }
            }
        }
    }

    /// out (n, h, hd) and lse (n, h).
    pub(super) fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let hd = self.dims.head_dim;
        let (mut out, mut lses) = (vec![0.0; self.q.len()], vec![0.0; self.q.len() / hd]);
        self.each(|query, keys, p, lse| {
            for e in 0..hd {
                let sum =
                    keys.iter().zip(p).map(|(key, p)| p * f64::from(self.v[key * hd + e])).sum();
                out[query * hd + e] = round(sum);
            }
            lses[query] = round(lse);
        });
        (out, lses)
    }

    /// d_q, d_k and d_v.
    pub(super) fn backward(&self, d_out: &[f32]) -> [Vec<f32>; 3] {
        let hd = self.dims.head_dim;
        let zeros = |like: &[f32]| vec![0.0_f64; like.len()];
        let (mut d_q, mut d_k, mut d_v) = (zeros(self.q), zeros(self.k), zeros(self.v));
        self.each(|query, keys, p, _| {
            let d = &d_out[query * hd..][..hd];
            let d_p: Vec<f64> = keys.iter().map(|key| dot(d, &self.v[key * hd..][..hd])).collect();
            let mean: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
            for ((key, p), d_p) in keys.iter().zip(p).zip(d_p) {
                let d_s = f64::from(self.scale) * p * (d_p - mean);
                for e in 0..hd {
                    d_q[query * hd + e] += d_s * f64::from(self.k[key * hd + e]);
                    d_k[key * hd + e] += d_s * f64::from(self.q[query * hd + e]);
                    d_v[key * hd + e] += p * f64::from(d[e]);
                }
            }
        });
        [d_q, d_k, d_v].map(|d| d.into_iter().map(round).collect())
    }
}
