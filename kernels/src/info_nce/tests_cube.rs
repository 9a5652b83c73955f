//! `InfoNCE`'s kernels against the dense formula, run by the emulator instead of a GPU: every rank
//! of a batch, both sides.

use super::cases::Case;
use super::launch::{
    Backward, Inputs, Sizes, backward, backward_in, loss, statistics, statistics_workspace,
    workspace, workspace_in,
};
use super::reference::{Dense, dense};
use crate::KernelError;
use crate::compile::emulator::{Buffer, Emulator};
use crate::testing::{Random, assert_close, assert_differs, normal};
use half::bf16;

/// One row; ranks of uneven sizes and without rows; batches and widths that no tile divides;
/// several tiles, slices and strips.
const CASES: [Case; 6] = [
    Case { ranks: &[1], width: 8, alpha: 14.3, targets: None },
    Case { ranks: &[5, 0, 4], width: 16, alpha: 14.3, targets: Some(5) },
    Case { ranks: &[130, 1], width: 72, alpha: 30.0, targets: None },
    Case { ranks: &[300], width: 200, alpha: 14.3, targets: Some(100) },
    Case { ranks: &[257], width: 8, alpha: 100.0, targets: Some(3) },
    Case { ranks: &[17, 1100], width: 136, alpha: 14.3, targets: None },
];

/// Unit rows rounded to bf16, the input of both the kernels and the reference.
fn embeddings(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    let mut x = normal(seed, rows * width);
    for row in x.chunks_exact_mut(width) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x = bf16::from_f32(*x / norm).to_f32());
    }
    x
}

pub(super) struct Embeddings {
    pub(super) p: Vec<f32>,
    pub(super) t: Vec<f32>,
    pub(super) hashes: Option<Vec<u64>>,
}

impl Embeddings {
    pub(super) fn new(case: Case, seed: u64) -> Self {
        let rows = case.ranks.iter().sum();
        let mut random = Random::new(seed + 2);
        // Both halves of a hash matter: some hashes differ in one half only.
        let mut hash = |kinds: u64| {
            let kind = random.bits() % kinds;
            if kind.is_multiple_of(2) { kind } else { kind << 32 }
        };
        Self {
            p: embeddings(seed, rows, case.width),
            t: embeddings(seed + 1, rows, case.width),
            hashes: case.targets.map(|kinds| (0..rows).map(|_| hash(kinds)).collect()),
        }
    }
}

#[derive(Debug, Default)]
struct Outcome {
    lse: [Vec<f32>; 2],
    diagonal: [Vec<f32>; 2],
    d: [Vec<f32>; 2],
    loss: f64,
    d_logit_scale: [f64; 2],
}

/// Runs every rank's launches one after the other, with gradients in strips of `strip` rows
/// (`None`: strips of the default height).
#[expect(clippy::too_many_lines, reason = "a batch's launches in the order they run")]
fn simulate(case: Case, batch: &Embeddings, strip: Option<usize>) -> Outcome {
    let (g, e) = (case.ranks.iter().sum::<usize>(), case.width);
    let mut outcome = Outcome::default();
    let sides = [(&batch.p, &batch.t), (&batch.t, &batch.p)];
    let shares: Vec<(usize, usize)> = case
        .ranks
        .iter()
        .scan(0, |next, &b| {
            *next += b;
            Some((*next - b, b))
        })
        .collect();
    let inputs = |emulator: &mut Emulator, side: usize, first: usize, b: usize| {
        let (rows, all) = sides[side];
        Inputs {
            rows: emulator.bf16(&rows[first * e..(first + b) * e]),
            all: emulator.bf16(all),
            alpha: emulator.f32(&[case.alpha]),
            hashes: batch
                .hashes
                .as_ref()
                .map(|h| [emulator.u64(&h[first..first + b]), emulator.u64(h)]),
        }
    };
    let sizes = |first_row, rows| Sizes { rows, batch: g, width: e, first_row };
    for side in 0..2 {
        for &(first, b) in &shares {
            let mut emulator = Emulator::default();
            let sizes = sizes(first, b);
            let inputs = inputs(&mut emulator, side, first, b);
            let spaces = [0; 2].map(|_| emulator.poison_f32(statistics_workspace(sizes)));
            let [lse, diagonal] = [0; 2].map(|_| emulator.poison_f32(b));
            emulator.run(&statistics(inputs, sizes, spaces, lse, diagonal).unwrap());
            outcome.lse[side].extend(emulator.read_f32(lse));
            outcome.diagonal[side].extend(emulator.read_f32(diagonal));
        }
    }
    for side in 0..2 {
        for &(first, b) in &shares {
            let mut emulator = Emulator::default();
            let sizes = sizes(first, b);
            let inputs = inputs(&mut emulator, side, first, b);
            let needed = strip.map_or(workspace(sizes), |strip| workspace_in(sizes, strip));
            let buffers = Backward {
                rows_lse: emulator.f32(&outcome.lse[side][first..first + b]),
                all_lse: emulator.f32(&outcome.lse[1 - side]),
                workspace: [
                    emulator.poison_bf16(needed.strip),
                    emulator.poison_f32(needed.products),
                    emulator.poison_f32(needed.partial),
                ],
                d_rows: emulator.poison_f32(b * e),
                d_logit_scale: emulator.poison_f32(1),
            };
            let launches = match strip {
                None => backward(inputs, sizes, buffers),
                Some(strip) => backward_in(inputs, sizes, buffers, strip),
            };
            emulator.run(&launches.unwrap());
            outcome.d[side].extend(emulator.read_f32(buffers.d_rows));
            if b > 0 {
                let share = emulator.read_f32(buffers.d_logit_scale)[0];
                outcome.d_logit_scale[side] += f64::from(share);
            }
            if side == 0 && b > 0 {
                let other = emulator.f32(&outcome.lse[1][first..first + b]);
                let diagonal = emulator.f32(&outcome.diagonal[0][first..first + b]);
                let share = emulator.poison_f32(1);
                emulator.run(&[loss(buffers.rows_lse, other, diagonal, share, b, g)]);
                outcome.loss += f64::from(emulator.read_f32(share)[0]);
            }
        }
    }
    outcome
}

pub(super) fn rounded(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| crate::parallel::round(x)).collect()
}

/// Largest Σ_j |w_ij| of a row of P or T, which bounds how much of w's rounding error a row of the
/// gradient collects.
pub(super) fn weight(case: Case, batch: &Embeddings, want: &Dense) -> f64 {
    let (g, e) = (case.ranks.iter().sum::<usize>(), case.width);
    let row = |rows: &[f32], all: &[f32], own: &[f64], other: &[f64], i: usize| -> f64 {
        let of = |j: usize| {
            let masked = batch.hashes.as_ref().is_some_and(|h| i != j && h[i] == h[j]);
            let dot: f64 =
                (0..e).map(|l| f64::from(rows[i * e + l]) * f64::from(all[j * e + l])).sum();
            let s = f64::from(case.alpha) * dot;
            let w = 0.5 * ((s - own[i]).exp() + (s - other[j]).exp());
            if masked { 0.0 } else { w - f64::from(u8::from(i == j)) }
        };
        (0..g).map(|j| of(j).abs()).sum()
    };
    let p = (0..g).map(|i| row(&batch.p, &batch.t, &want.row_lse, &want.column_lse, i));
    let t = (0..g).map(|i| row(&batch.t, &batch.p, &want.column_lse, &want.row_lse, i));
    p.chain(t).fold(0.0, f64::max)
}

fn check(case: Case, strip: Option<usize>) {
    let batch = Embeddings::new(case, 3);
    let got = simulate(case, &batch, strip);
    let (e, alpha) = (case.width, f64::from(case.alpha));
    let want = dense(&batch.p, &batch.t, e, alpha, batch.hashes.as_deref());
    let name = |what: &str| format!("{what} of {case:?} in strips of {strip:?}");
    // Products are summed in f32: `e` roundings of sums below 1, times α. Exponents and their
    // logarithm add a few roundings of the result's size.
    let tolerance = crate::parallel::round(alpha * 2.0_f64.powi(-21) + 2e-6);
    for (side, lse) in [&want.row_lse, &want.column_lse].into_iter().enumerate() {
        assert_close(&name("lse"), &got.lse[side], &rounded(lse), tolerance);
        assert_close(&name("diagonal"), &got.diagonal[side], &rounded(&want.diagonal), tolerance);
    }
    // w is rounded to bf16, 2⁻⁹ of each, and exponentials carry the tolerance of s; elements of a
    // unit row are at most 1.
    let b = f64::from(u32::try_from(batch.p.len() / e).unwrap());
    let largest = batch.p.iter().chain(&batch.t).fold(0.0_f32, |m, x| m.max(x.abs()));
    let weight = weight(case, &batch, &want);
    let unit = (2.0_f64.powi(-9) * weight + 2.0 * f64::from(tolerance) * (weight + 2.0))
        * f64::from(largest);
    let scaled = |d: &[f32]| -> Vec<f32> {
        d.iter().map(|&d| crate::parallel::round(f64::from(d) * b / alpha)).collect()
    };
    for (side, d) in [&want.d_p, &want.d_t].into_iter().enumerate() {
        let (d, want_d) = (scaled(&got.d[side]), scaled(&rounded(d)));
        assert_close(&name("d"), &d, &want_d, crate::parallel::round(unit));
        if b > 1.0 && case.targets != Some(1) {
            let other = scaled(&rounded([&want.d_t, &want.d_p][side]));
            assert_differs("the other side's gradient", &d, &other, crate::parallel::round(unit));
        }
    }
    assert!((got.loss - want.loss).abs() < 2.0 * f64::from(tolerance), "{}", name("loss"));
    for share in got.d_logit_scale {
        let error = (share - want.d_logit_scale).abs();
        assert!(error < 2.0 * alpha * f64::from(tolerance), "{} {error}", name("d_logit_scale"));
    }
    if b > 1.0 && b < 200.0 {
        let wrong = simulate(Case { alpha: case.alpha * 1.01, ..case }, &batch, strip);
        assert_differs("another temperature", &wrong.lse[0], &got.lse[0], tolerance);
    }
}

#[test]
fn every_rank_computes_the_dense_formula() {
    for case in CASES {
        check(case, None);
    }
}

#[test]
fn strips_do_not_change_the_gradient() {
    check(CASES[3], Some(128));
    let batch = Embeddings::new(CASES[3], 3);
    let [whole, strips] = [None, Some(128)].map(|strip| simulate(CASES[3], &batch, strip).d);
    assert_close("d_p", &whole[0], &strips[0], 1e-6);
    assert_close("d_t", &whole[1], &strips[1], 1e-6);
}

#[test]
fn masking_counts_in_both_halves_of_a_hash() {
    let case = Case { ranks: &[9], width: 16, alpha: 14.3, targets: Some(5) };
    let mut batch = Embeddings::new(case, 3);
    let masked = simulate(case, &batch, None);
    batch.hashes = Some((0..9).map(|i| if i < 4 { i } else { i << 32 }).collect());
    let distinct = simulate(case, &batch, None);
    batch.hashes = None;
    let plain = simulate(case, &batch, None);
    // The compiler may round a similarity once more in one of the two kernels (by 2⁻²⁴ of the
    // similarity, and no large term of the sum exceeds the result), and likewise the sum and its
    // logarithm.
    let tolerance = 2.0 * f32::EPSILON;
    assert_close("unequal hashes", &distinct.lse[0], &plain.lse[0], tolerance);
    assert_differs("equal hashes", &masked.lse[0], &plain.lse[0], 1e-3);
}

#[test]
fn sizes_that_kernels_cannot_take_are_errors() {
    let buffer = Buffer::default();
    let inputs = Inputs { rows: buffer, all: buffer, alpha: buffer, hashes: None };
    let run = |rows, batch, width, first_row| {
        let sizes = Sizes { rows, batch, width, first_row };
        statistics(inputs, sizes, [buffer; 2], buffer, buffer).map(|launches| launches.len())
    };
    assert_eq!(run(128, 24_576, 1536, 24_448), Ok(2));
    for (rows, batch, width, first, what) in [
        (4, 8, 12, 0, "width"),
        (4, 8, 0, 0, "width"),
        (4, 8, 8, 5, "first_row"),
        (1, 1, 8, usize::MAX, "first_row"),
        (8, 1 << 22, 1536, 0, "batch"),
    ] {
        let error = run(rows, batch, width, first);
        let Err(KernelError::Value { what: found, .. }) = error else { panic!("{error:?}") };
        assert_eq!(found, what);
    }
}
