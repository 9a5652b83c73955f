//! Tests of `InfoNCE`: all ranks together against the dense formula, and the dense formula against
//! finite differences.

use super::cases::{CASES, Case};
use super::{EqualTargets, backward, loss, reference, statistics};
use crate::parallel::round;
use crate::testing::{Random, assert_close, assert_differs, finite_difference, normal, poison};
use crate::{KernelError, Stream, View, ViewMut};

/// α·P·Tᵀ of unit vectors with α ≤ 100 has errors of a few 100 · 2⁻²⁴, which are the relative
/// errors of probabilities.
const TOLERANCE: f32 = 2e-5;

/// Embeddings of both sides and the hashes of the targets.
struct Batch {
    p: Vec<f32>,
    t: Vec<f32>,
    hashes: Option<Vec<u64>>,
}

impl Batch {
    fn new(case: Case, seed: u64) -> Self {
        let (b, e) = (case.ranks.iter().sum::<usize>(), case.width);
        let unit = |seed| {
            let mut x = normal(seed, b * e);
            for row in x.chunks_exact_mut(e) {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
            }
            x
        };
        let mut random = Random::new(seed + 2);
        let hashes = |kinds| (0..b).map(|_| random.bits() % kinds).collect();
        Self { p: unit(seed), t: unit(seed + 1), hashes: case.targets.map(hashes) }
    }
}

/// Results of all ranks together, side P first.
struct Outcome {
    lse: [Vec<f32>; 2],
    diagonal: Vec<f32>,
    loss: f64,
    d: [Vec<f32>; 2],
    d_logit_scale: [f64; 2],
}

/// Runs every rank in turn, with the gathers in between.
fn simulate(case: Case, batch: &Batch) -> Outcome {
    let (g, e, stream) = (case.ranks.iter().sum::<usize>(), case.width, Stream::Host);
    let sides = [(&batch.p, &batch.t), (&batch.t, &batch.p)];
    let starts = case.ranks.iter().scan(0, |next, &b| {
        let start = *next;
        *next += b;
        Some((start, b))
    });
    let shares: Vec<(usize, usize)> = starts.collect();
    let equal = |start, b| {
        let all = batch.hashes.as_ref().map(|h| View::from_u64(h, &[g]))?;
        Some(EqualTargets { rows: all.rows(start, start + b), all })
    };
    let mut lse = [poison(g), poison(g)];
    let mut diagonal = [poison(g), poison(g)];
    for (side, (rows, all)) in sides.iter().enumerate() {
        for &(first, b) in &shares {
            let (rows, all) = (View::from_f32(rows, &[g, e]), View::from_f32(all, &[g, e]));
            let lse = ViewMut::from_f32(&mut lse[side][first..first + b], &[b]);
            let diagonal = ViewMut::from_f32(&mut diagonal[side][first..first + b], &[b]);
            let own = rows.rows(first, first + b);
            statistics(&stream, own, all, case.alpha, first, equal(first, b), lse, diagonal)
                .unwrap();
        }
    }
    let share = |&(first, b): &(usize, usize)| {
        let own = first..first + b;
        loss(&lse[0][own.clone()], &lse[1][own.clone()], &diagonal[0][own], g)
    };
    let loss = shares.iter().map(share).sum();
    let (mut d, mut d_logit_scale) = ([poison(g * e), poison(g * e)], [0.0; 2]);
    for (side, (rows, all)) in sides.iter().enumerate() {
        for &(first, b) in &shares {
            let (rows, all) = (View::from_f32(rows, &[g, e]), View::from_f32(all, &[g, e]));
            let rows_lse = View::from_f32(&lse[side], &[g]).rows(first, first + b);
            let all_lse = View::from_f32(&lse[1 - side], &[g]);
            let d_rows = ViewMut::from_f32(&mut d[side][first * e..(first + b) * e], &[b, e]);
            let own = rows.rows(first, first + b);
            let (alpha, equal) = (case.alpha, equal(first, b));
            let d_scale = Some(ViewMut::from_f32(&mut d_logit_scale[side..=side], &[1]));
            backward(&stream, own, all, rows_lse, all_lse, alpha, first, equal, d_rows, d_scale)
                .unwrap();
        }
    }
    let [diagonal, _] = diagonal;
    let d_logit_scale = d_logit_scale.map(f64::from);
    Outcome { lse, diagonal, loss, d, d_logit_scale }
}

fn rounded(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| round(x)).collect()
}

#[test]
fn ranks_together_compute_the_dense_loss_and_gradients() {
    for (seed, case) in (0..).map(|i| 10 * i).zip(CASES) {
        let batch = Batch::new(case, seed);
        let got = simulate(case, &batch);
        let want = reference::dense(
            &batch.p,
            &batch.t,
            case.width,
            f64::from(case.alpha),
            batch.hashes.as_deref(),
        );
        let name = |what| format!("{what} of {case:?}");
        assert_close(&name("rows"), &got.lse[0], &rounded(&want.row_lse), TOLERANCE);
        assert_close(&name("columns"), &got.lse[1], &rounded(&want.column_lse), TOLERANCE);
        assert_close(&name("diagonal"), &got.diagonal, &rounded(&want.diagonal), TOLERANCE);
        // Gradients are α/B times sums of probabilities, and are compared in that unit.
        let b = f32::from(u16::try_from(got.diagonal.len()).unwrap());
        let scaled = |d: &[f32]| d.iter().map(|d| d * b / case.alpha).collect::<Vec<_>>();
        for (side, d) in [&want.d_p, &want.d_t].into_iter().enumerate() {
            assert_close(&name("d"), &scaled(&got.d[side]), &scaled(&rounded(d)), 2.0 * TOLERANCE);
        }
        let scalars = [got.loss, got.d_logit_scale[0], got.d_logit_scale[1]].map(round);
        let want_scalars = [want.loss, want.d_logit_scale, want.d_logit_scale].map(round);
        assert_close(&name("loss"), &scalars, &want_scalars, 2.0 * TOLERANCE);
        if b > 1.0 {
            let wrong = simulate(Case { alpha: case.alpha * 1.001, ..case }, &batch);
            assert_differs("another temperature", &wrong.lse[0], &got.lse[0], TOLERANCE);
        }
    }
}

#[test]
fn a_split_over_ranks_changes_nothing() {
    let whole = Case { ranks: &[12], width: 16, alpha: 14.3, targets: Some(6) };
    let batch = Batch::new(whole, 5);
    let one = simulate(whole, &batch);
    let splits: [&[usize]; 4] = [&[5, 4, 3], &[3, 3, 3, 3], &[1, 11], &[0, 12]];
    for ranks in splits {
        let many = simulate(Case { ranks, ..whole }, &batch);
        // Products of other heights may be summed in another order: a few roundings of scores up to
        // 14.3.
        assert_close("rows", &many.lse[0], &one.lse[0], 2e-6);
        assert_close("d_p", &many.d[0], &one.d[0], 2e-6);
        assert_close("d_t", &many.d[1], &one.d[1], 2e-6);
        assert!((many.loss - one.loss).abs() < 2e-6);
        assert!((many.d_logit_scale[0] - one.d_logit_scale[0]).abs() < 2e-6);
    }
    let local = Case { ranks: &[6], ..whole };
    let half = Batch {
        p: batch.p[..6 * 16].to_vec(),
        t: batch.t[..6 * 16].to_vec(),
        hashes: batch.hashes.as_ref().map(|h| h[..6].to_vec()),
    };
    // Negatives of a single rank give another loss.
    assert!((simulate(local, &half).loss - one.loss).abs() > 1e-2);
}

#[test]
fn equal_targets_are_left_out_of_the_negatives() {
    let case = Case { ranks: &[8], width: 8, alpha: 10.0, targets: Some(1) };
    let mut batch = Batch::new(case, 7);
    // All targets are equal: every negative is masked, and nothing is left to learn.
    let got = simulate(case, &batch);
    assert!(got.loss.abs() < 1e-6 && got.d_logit_scale[0].abs() < 1e-6);
    assert!(got.d.iter().flatten().all(|d| d.abs() < 1e-6));
    // Unequal hashes mask nothing.
    batch.hashes = Some((0..8).collect());
    let distinct = simulate(case, &batch);
    batch.hashes = None;
    let plain = simulate(case, &batch);
    assert_eq!(distinct.lse, plain.lse);
    assert_eq!(distinct.d, plain.d);
    assert!(plain.loss > 0.1);
}

#[test]
fn dense_gradients_match_finite_differences() {
    let case = Case { ranks: &[5], width: 3, alpha: 4.0, targets: Some(3) };
    let batch = Batch::new(case, 11);
    let hashes = batch.hashes.as_deref();
    let at =
        |p: &[f32], t: &[f32], log_alpha: f64| reference::dense(p, t, 3, log_alpha.exp(), hashes);
    let log_alpha = 4.0_f64.ln();
    let want = at(&batch.p, &batch.t, log_alpha);
    let d_p = finite_difference(&batch.p, 0.01, |p| at(p, &batch.t, log_alpha).loss);
    let d_t = finite_difference(&batch.t, 0.01, |t| at(&batch.p, t, log_alpha).loss);
    // f64 inside; points moved by 0.01 are rounded to f32, 2⁻²⁵ / 0.01, and h⁴·α⁵/30 is 3e-7.
    assert_close("d_p", &rounded(&want.d_p), &d_p, 1e-5);
    assert_close("d_t", &rounded(&want.d_t), &d_t, 1e-5);
    assert_differs("d_t for d_p", &rounded(&want.d_t), &d_p, 1e-5);
    let h = 1e-4;
    let loss = |x| at(&batch.p, &batch.t, x).loss;
    let slope = (loss(log_alpha + h) - loss(log_alpha - h)) / (2.0 * h);
    // Truncation h²/6 and rounding 2⁻⁵³ / h.
    assert!((want.d_logit_scale - slope).abs() < 1e-8, "{} {slope}", want.d_logit_scale);
    // The gradient with respect to α instead of its logarithm would be a quarter of this.
    assert!((want.d_logit_scale / 4.0 - slope).abs() > 1e-3);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in CASES {
        let batch = Batch::new(case, 3);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let Outcome { lse, d, d_logit_scale, .. } = pool.install(|| simulate(case, &batch));
            format!("{lse:?} {d:?} {d_logit_scale:?}")
        };
        assert!(run(1) == run(3), "{case:?}");
    }
}

#[test]
fn wrong_shapes_and_places_are_errors() {
    let (x, mut lse, mut diagonal) = ([0.5; 12], [0.0; 2], [0.0; 2]);
    let (rows, all) = (View::from_f32(&x[..6], &[2, 3]), View::from_f32(&x, &[4, 3]));
    let mut run = |all: View<'_>, first, equal| {
        let lse = ViewMut::from_f32(&mut lse, &[2]);
        let diagonal = ViewMut::from_f32(&mut diagonal, &[2]);
        statistics(&Stream::Host, rows, all, 1.0, first, equal, lse, diagonal)
    };
    assert_eq!(run(all, 2, None), Ok(()));
    for first in [3, usize::MAX] {
        let error = run(all, first, None);
        assert!(matches!(error, Err(KernelError::Value { what: "first_row", .. })), "{error:?}");
    }
    let error = run(View::from_f32(&x, &[3, 4]), 0, None);
    assert!(matches!(error, Err(KernelError::Shape { what: "all", .. })), "{error:?}");
    let hashes = [1, 2, 3];
    let hashes = View::from_u64(&hashes, &[3]);
    let equal = Some(EqualTargets { rows: hashes.rows(0, 2), all: hashes });
    let error = run(all, 0, equal);
    assert!(matches!(error, Err(KernelError::Shape { what: "hashes of all", .. })), "{error:?}");
}
