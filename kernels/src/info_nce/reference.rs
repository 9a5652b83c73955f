//! `InfoNCE` by its dense formula in f64, all rows of both sides at once.

/// Log-sum-exps, diagonal, loss and gradients of a whole batch.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) row_lse: Vec<f64>,
    pub(super) column_lse: Vec<f64>,
    pub(super) diagonal: Vec<f64>,
    pub(super) loss: f64,
    pub(super) d_p: Vec<f64>,
    pub(super) d_t: Vec<f64>,
    pub(super) d_logit_scale: f64,
}

fn log_sum_exp(terms: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = terms.clone().fold(f64::NEG_INFINITY, f64::max);
    max + terms.map(|s| (s - max).exp()).sum::<f64>().ln()
}

/// Mean cross-entropy over the rows and the columns of s = α·P·Tᵀ, with the diagonal as labels;
/// `hashes` mask equal targets.
pub(super) fn dense(p: &[f32], t: &[f32], e: usize, alpha: f64, hashes: Option<&[u64]>) -> Dense {
    let b = p.len() / e;
    let masked = |i: usize, j: usize| i != j && hashes.is_some_and(|h| h[i] == h[j]);
    let dot = |i: usize, j: usize| -> f64 {
        (0..e).map(|l| f64::from(p[i * e + l]) * f64::from(t[j * e + l])).sum()
    };
    let score = |i, j| if masked(i, j) { f64::NEG_INFINITY } else { alpha * dot(i, j) };
    let s: Vec<f64> = (0..b * b).map(|at| score(at / b, at % b)).collect();
    let row_lse: Vec<f64> =
        (0..b).map(|i| log_sum_exp(s[i * b..(i + 1) * b].iter().copied())).collect();
    let column_lse: Vec<f64> =
        (0..b).map(|j| log_sum_exp(s.iter().skip(j).step_by(b).copied())).collect();
    let diagonal: Vec<f64> = (0..b).map(|i| s[i * b + i]).collect();
    let count = super::host::count(b);
    let loss = (0..b).map(|i| row_lse[i] + column_lse[i] - 2.0 * diagonal[i]).sum::<f64>();
    let (mut d_p, mut d_t, mut d_logit_scale) = (vec![0.0; b * e], vec![0.0; b * e], 0.0);
    for i in 0..b {
        for j in (0..b).filter(|&j| !masked(i, j)) {
            let s = s[i * b + j];
            let own = if i == j { 1.0 } else { 0.0 };
            let d_s = (0.5 * ((s - row_lse[i]).exp() + (s - column_lse[j]).exp()) - own) / count;
            d_logit_scale += d_s * s;
            for l in 0..e {
                d_p[i * e + l] += alpha * d_s * f64::from(t[j * e + l]);
                d_t[j * e + l] += alpha * d_s * f64::from(p[i * e + l]);
            }
        }
    }
    Dense { row_lse, column_lse, diagonal, loss: loss / (2.0 * count), d_p, d_t, d_logit_scale }
}
