//! Gauges of collapse: how different the embeddings of a batch are. They are computed in f64 on the
//! host from a few rows of the global batch, with the same bits on every rank.

use vljepa_kernels::Tensor;
use vljepa_recipes::protocol::{Gauges, Spread};
use vljepa_recipes::schema::{Collapse, CollapseAction};

use crate::collectives::{Collectives, Shares};
use crate::error::WorkerError;

/// Pairs of the global batch from which gauges are computed, the most that an effective rank can
/// be. The eigenvalues of two matrices of this size take most of the time: 35 ms of a core for
/// each, once per logging interval.
const ROWS: usize = 256;

/// Factor t in the uniformity log E exp(−t·‖x − y‖²) (arXiv 2005.10242).
const UNIFORMITY: f64 = 2.0;

/// Steps of the bisection that finds an eigenvalue: the bits of an f64.
const BISECTIONS: u32 = 52;

/// Computes the gauges of the global batch from `predicted` and `target`, (b, e) each, the rows of
/// this rank. All ranks must call it. Returns `None` if the batch has less than two rows or an
/// embedding is not finite.
///
/// # Errors
/// Fails if the embeddings cannot be read from the device.
pub fn gauges(
    collectives: &Collectives,
    shares: Shares,
    predicted: &Tensor,
    target: &Tensor,
) -> vljepa_kernels::Result<Option<Gauges>> {
    let own = shares.rows(collectives.rank());
    let count = shares.global.min(ROWS);
    // Rows at equal distances, so that all lanes of the batch are represented.
    let picked = (0..count).map(|i| i * shares.global / count).filter(|row| own.contains(row));
    let picked: Vec<usize> = picked.map(|row| row - own.start).collect();
    let (p, t) = (predicted.to_f32()?, target.to_f32()?);
    let e = predicted.shape()[1];
    let mut bytes = Vec::with_capacity(picked.len() * 2 * e * size_of::<f32>());
    for row in picked {
        for side in [&p, &t] {
            bytes.extend(side[row * e..][..e].iter().flat_map(|x| x.to_le_bytes()));
        }
    }
    let mut sides = [Vec::new(), Vec::new()];
    for bytes in collectives.all_gather_bytes(&bytes) {
        let values = bytes.as_chunks().0.iter().map(|&x| f64::from(f32::from_le_bytes(x)));
        let values: Vec<f64> = values.collect();
        for (i, row) in values.chunks_exact(e.max(1)).enumerate() {
            sides[i % 2].push(normalised(row));
        }
    }
    let finite = sides.iter().flatten().flatten().all(|x| x.is_finite());
    Ok((finite && sides[0].len() > 1).then(|| of_rows(&sides)))
}

/// Gauges of predictions and targets of length one.
fn of_rows([predicted, target]: &[Vec<Vec<f64>>; 2]) -> Gauges {
    let pairs = predicted.iter().zip(target);
    let alignment = pairs.map(|(p, t)| 2.0 - 2.0 * dot(p, t)).sum::<f64>() / real(target.len());
    let (predicted, target) = rayon::join(|| spread(predicted), || spread(target));
    Gauges { predicted, target, alignment }
}

/// Effective rank and uniformity of rows of length one.
fn spread(rows: &[Vec<f64>]) -> Spread {
    let n = rows.len();
    let mut similarities = vec![0.0; n * n];
    let mut near = 0.0;
    for i in 0..n {
        for j in 0..=i {
            let s = dot(&rows[i], &rows[j]);
            (similarities[i * n + j], similarities[j * n + i]) = (s, s);
            if j < i {
                near += (-UNIFORMITY * (2.0 - 2.0 * s)).exp();
            }
        }
    }
    let pairs = real(n * (n - 1) / 2);
    let entropy: f64 = eigenvalues(similarities, n)
        .into_iter()
        .map(|value| value / real(n))
        .filter(|&share| share > 0.0)
        .map(|share| -share * share.ln())
        .sum();
    Spread { effective_rank: entropy.exp(), uniformity: (near / pairs).ln() }
}

fn normalised(row: &[f64]) -> Vec<f64> {
    let length = dot(row, row).sqrt().max(f64::MIN_POSITIVE);
    row.iter().map(|x| x / length).collect()
}

/// Sum of products, in eight partial sums so that the compiler vectorises it.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.0.iter().zip(b.0) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[expect(clippy::cast_precision_loss, reason = "counts of at most ROWS² numbers")]
fn real(count: usize) -> f64 {
    count as f64
}

/// Eigenvalues of a symmetric matrix (n, n), in ascending order: reflections make it tridiagonal
/// (Householder), then each eigenvalue is found by bisection (Golub and Van Loan, Matrix
/// Computations, 8.3 and 8.4).
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let mut beside = vec![0.0; n];
    for k in 0..n.saturating_sub(2) {
        let mut v: Vec<f64> = (k + 1..n).map(|i| a[i * n + k]).collect();
        let length = dot(&v, &v).sqrt();
        let turned = if v[0] > 0.0 { -length } else { length };
        beside[k + 1] = turned;
        v[0] -= turned;
        let square = dot(&v, &v);
        if square == 0.0 {
            continue;
        }
        // A ← H·A·H with H = 1 − 2·v·vᵀ/‖v‖², as A − v·wᵀ − w·vᵀ.
        let rows = |i: usize| (k + 1 + i) * n + k + 1..(k + 1 + i) * n + n;
        let mut w: Vec<f64> = (0..v.len()).map(|i| 2.0 * dot(&a[rows(i)], &v) / square).collect();
        let along = dot(&w, &v) / square;
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= along * v);
        for i in 0..v.len() {
            let row = &mut a[rows(i)];
            for ((x, vj), wj) in row.iter_mut().zip(&v).zip(&w) {
                *x -= v[i] * wj + w[i] * vj;
            }
        }
    }
    if n > 1 {
        beside[n - 1] = a[n * n - 2];
    }
    let diagonal: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    let reach = (0..n).map(|i| {
        let next = beside.get(i + 1).map_or(0.0, |x| x.abs());
        diagonal[i].abs() + beside[i].abs() + next
    });
    let bound = reach.fold(f64::MIN_POSITIVE, f64::max);
    let find = |index: usize| {
        let (mut low, mut high) = (-bound, bound);
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            if below(&diagonal, &beside, middle) > index { high = middle } else { low = middle }
        }
        f64::midpoint(low, high)
    };
    (0..n).map(find).collect()
}

/// Number of eigenvalues below `x` of a tridiagonal matrix: the negative pivots of the matrix minus
/// x. `beside[i]` is the element left of `diagonal[i]`.
fn below(diagonal: &[f64], beside: &[f64], x: f64) -> usize {
    let mut pivot = 1.0;
    let mut negative = 0;
    for (d, b) in diagonal.iter().zip(beside) {
        pivot = d - x - b * b / pivot;
        if pivot == 0.0 {
            pivot = f64::EPSILON * (d.abs() + f64::MIN_POSITIVE);
        }
        negative += usize::from(pivot < 0.0);
    }
    negative
}

/// Watches the effective ranks of an attempt's lines of metrics.
#[derive(Debug, Default)]
pub struct Watch {
    lines: u64,
}

impl Watch {
    /// Takes the gauges of a line of metrics at `step`. Returns a warning when the rule's number of
    /// lines in a row is reached.
    ///
    /// # Errors
    /// Fails instead if the rule says `stop`.
    pub fn take(
        &mut self,
        rule: &Collapse,
        gauges: &Gauges,
        step: u64,
    ) -> Result<Option<String>, WorkerError> {
        let (predicted, target) = (gauges.predicted.effective_rank, gauges.target.effective_rank);
        if predicted.min(target) >= rule.effective_rank_below {
            self.lines = 0;
            return Ok(None);
        }
        self.lines += 1;
        if self.lines != rule.lines {
            return Ok(None);
        }
        let (limit, lines) = (rule.effective_rank_below, rule.lines);
        let error = WorkerError::Collapsed { step, predicted, target, limit, lines };
        match rule.action {
            CollapseAction::Warn => Ok(Some(format!("{error}; training goes on"))),
            CollapseAction::Stop => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_kernels::testing::normal;
    use vljepa_recipes::schema::{Collapse, CollapseAction};

    use super::{Watch, eigenvalues, normalised, of_rows};

    fn rows(seed: u64, count: usize, noise: f64, width: usize) -> Vec<Vec<f64>> {
        let values = normal(seed, count * width);
        let row = |row: &[f32]| {
            let row: Vec<f64> = row.iter().map(|&x| 1.0 + noise * f64::from(x)).collect();
            normalised(&row)
        };
        values.chunks_exact(width).map(row).collect()
    }

    #[test]
    fn eigenvalues_of_known_matrices() {
        // Second differences: 2 − 2·cos(kπ / (n + 1)).
        let n = 9;
        let element = |at: usize| match (at / n).abs_diff(at % n) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let found = eigenvalues((0..n * n).map(element).collect(), n);
        for (k, value) in (1..).zip(found) {
            let want = 2.0 - 2.0 * (f64::from(k) * std::f64::consts::PI / 10.0).cos();
            assert!((value - want).abs() < 1e-12, "{value} {want}");
        }
        // A full matrix: the sums of its eigenvalues and of their squares.
        let x = normal(3, 40 * 40);
        let a: Vec<f64> = (0..1600).map(|i| f64::from(x[i] + x[i % 40 * 40 + i / 40])).collect();
        let found = eigenvalues(a.clone(), 40);
        let trace: f64 = (0..40).map(|i| a[i * 41]).sum();
        let squares: f64 = a.iter().map(|x| x * x).sum();
        assert!((found.iter().sum::<f64>() - trace).abs() < 1e-9);
        assert!((found.iter().map(|x| x * x).sum::<f64>() / squares - 1.0).abs() < 1e-12);
        assert_eq!(eigenvalues(vec![4.0], 1).len(), 1);
    }

    #[test]
    fn effective_rank_counts_different_directions() {
        // Four directions, 16 rows each.
        let axes: Vec<Vec<f64>> =
            (0..64).map(|i| (0..8).map(|j| f64::from(u8::from(i % 4 == j))).collect()).collect();
        let gauges = of_rows(&[axes.clone(), axes]);
        assert!((gauges.target.effective_rank - 4.0).abs() < 1e-9, "{gauges:?}");
        // Of 2,016 pairs 480 are equal, the others orthogonal.
        let want = ((480.0 + 1536.0 * (-4.0f64).exp()) / 2016.0).ln();
        assert!((gauges.predicted.uniformity - want).abs() < 1e-12, "{gauges:?}");
        assert!(gauges.alignment.abs() < 1e-12, "{gauges:?}");
    }

    #[test]
    fn collapsed_embeddings_have_rank_one_and_random_ones_a_high_rank() {
        let (wide, narrow) = (rows(1, 64, 100.0, 512), rows(2, 64, 1e-3, 512));
        let gauges = of_rows(&[wide, narrow]);
        assert!(gauges.predicted.effective_rank > 55.0, "{gauges:?}");
        assert!(gauges.target.effective_rank < 1.001, "{gauges:?}");
        assert!(gauges.target.uniformity > -1e-4 && gauges.predicted.uniformity < -3.5);
        assert!((gauges.alignment - 2.0).abs() < 0.1, "{gauges:?}");
    }

    #[test]
    fn a_collapse_is_reported_once_after_the_rules_lines_in_a_row() {
        let collapsed = of_rows(&[rows(1, 8, 1e-3, 64), rows(2, 8, 100.0, 64)]);
        let spread = of_rows(&[rows(1, 8, 100.0, 64), rows(2, 8, 100.0, 64)]);
        let rule = |action| Collapse { effective_rank_below: 1.2, lines: 2, action };
        let (warns, stops) = (rule(CollapseAction::Warn), rule(CollapseAction::Stop));
        let mut watch = Watch::default();
        let told: Vec<bool> = [&collapsed, &spread, &collapsed, &collapsed, &collapsed]
            .map(|gauges| watch.take(&warns, gauges, 7).unwrap().is_some())
            .into();
        assert_eq!(told, [false, false, false, true, false]);
        let mut watch = Watch::default();
        watch.take(&stops, &collapsed, 7).unwrap();
        let error = watch.take(&stops, &collapsed, 8).unwrap_err().to_string();
        assert!(error.contains("step 8") && error.contains("collaps"), "{error}");
    }
}
