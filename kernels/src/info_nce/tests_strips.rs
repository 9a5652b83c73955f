//! The passes over strips against the dense formula, on the device of `Cuda::for_tests`.

use half::bf16;

use super::cases::Case;
use super::reference::dense;
use super::strips::Strips;
use super::tests_cube::{Embeddings, rounded, weight};
use super::{Batch, both_gradients, both_statistics, strips};
use crate::attention::launch::Mode;
use crate::device::HostSlice;
use crate::device::cuda::Cuda;
use crate::testing::{assert_close, assert_differs};
use crate::{DType, Device, Stream, Tensor, View};

/// Less than one block of rows and columns, ragged second blocks, and three blocks; with and
/// without masking.
const CASES: [Case; 4] = [
    Case { ranks: &[8], width: 16, alpha: 14.3, targets: Some(3) },
    Case { ranks: &[264], width: 72, alpha: 30.0, targets: None },
    Case { ranks: &[304], width: 200, alpha: 14.3, targets: Some(100) },
    Case { ranks: &[520], width: 8, alpha: 100.0, targets: Some(300) },
];

/// Statistics r, c and s_ii; gradients d_p and d_t; Σ dS ∘ S.
struct Outcome {
    statistics: [Vec<f32>; 3],
    d: [Vec<f32>; 2],
    d_logit_scale: f32,
}

/// A batch in the memory of the device of `Cuda::for_tests`.
struct DeviceBatch {
    predicted: Tensor,
    target: Tensor,
    hashes: Option<Tensor>,
}

impl DeviceBatch {
    fn new(device: Device, case: Case, x: &Embeddings) -> Self {
        let (g, e) = (case.ranks.iter().sum(), case.width);
        let side = |x: &[f32]| {
            let values = x.iter().map(|&x| bf16::from_f32(x)).collect();
            Tensor::from_bf16(values, &[g, e]).on(device).unwrap()
        };
        let hashes = |h: &Vec<u64>| Tensor::from_u64(h.clone(), &[g]).on(device).unwrap();
        Self { predicted: side(&x.p), target: side(&x.t), hashes: x.hashes.as_ref().map(hashes) }
    }

    fn batch(&self) -> Batch<'_> {
        let (predicted, target) = (self.predicted.view(), self.target.view());
        let hashes = self.hashes.as_ref().map(Tensor::view);
        Batch { predicted, target, hashes, rows: 0..predicted.shape()[0] }
    }
}

/// One step of the whole batch in strips of `rows` rows, or through the public functions.
fn simulate(case: Case, x: &Embeddings, rows: Option<usize>) -> Outcome {
    let device = Device::Cuda(Cuda::for_tests(Mode::Fast));
    let stream = device.compute_stream();
    let on_device = DeviceBatch::new(device, case, x);
    let (batch, g, e) = (on_device.batch(), case.ranks.iter().sum::<usize>(), case.width);
    let zeros = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape).unwrap();
    let [mut r, mut c, mut s] = [(); 3].map(|()| zeros(&[g]));
    let [mut d_p, mut d_t] = [(); 2].map(|()| zeros(&[g, e]));
    let mut d_scale = zeros(&[1]);
    if let Some(rows) = rows {
        let Stream::Cuda(stream) = stream else { unreachable!("the stream of a GPU") };
        let call = stream.call("strips");
        let strips = Strips::new(g, e).unwrap().of_rows(rows);
        let alpha = call.uploaded(HostSlice::F32(&[case.alpha])).unwrap();
        let inputs = batch.strip_inputs(call, &alpha).unwrap();
        let region = |tensor: &Tensor| call.f32(tensor.view(), "statistics").unwrap();
        let lse = [region(&r), region(&c)];
        strips::statistics(call, strips, &inputs, [lse[0], lse[1], region(&s)]).unwrap();
        let (d_p, d_t, sum) = (d_p.view_mut(), d_t.view_mut(), region(&d_scale));
        strips::backward(call, strips, &inputs, lse, d_p, d_t, sum).unwrap();
    } else {
        let out = (r.view_mut(), c.view_mut(), s.view_mut());
        both_statistics(&stream, &batch, case.alpha, out.0, out.1, out.2).unwrap();
        let (d_p, d_t, scale) = (d_p.view_mut(), d_t.view_mut(), Some(d_scale.view_mut()));
        let lse = (r.view(), c.view());
        both_gradients(&stream, &batch, lse.0, lse.1, case.alpha, d_p, d_t, scale).unwrap();
    }
    let read = |tensor: &Tensor| tensor.to_f32().unwrap().into_owned();
    Outcome {
        statistics: [&r, &c, &s].map(read),
        d: [&d_p, &d_t].map(read),
        d_logit_scale: read(&d_scale)[0],
    }
}

fn check(case: Case, rows: Option<usize>) {
    let x = Embeddings::new(case, 3);
    let got = simulate(case, &x, rows);
    let (e, alpha) = (case.width, f64::from(case.alpha));
    let want = dense(&x.p, &x.t, e, alpha, x.hashes.as_deref());
    let name = |what: &str| format!("{what} of {case:?} in strips of {rows:?}");
    // Products are summed in f32: `e` roundings of sums below 1, times α. Exponents and their
    // logarithm add a few roundings of the result's size.
    let tolerance = crate::parallel::round(alpha * 2.0_f64.powi(-21) + 2e-6);
    let statistics = [&want.row_lse, &want.column_lse, &want.diagonal];
    for (got, want) in got.statistics.iter().zip(statistics) {
        assert_close(&name("statistics"), got, &rounded(want), tolerance);
    }
    // α·w/B is rounded to bf16, 2⁻⁹ of each, and exponentials carry the tolerance of s; elements of
    // a unit row are at most 1.
    let g = f64::from(u32::try_from(x.p.len() / e).unwrap());
    let largest = x.p.iter().chain(&x.t).fold(0.0_f32, |m, x| m.max(x.abs()));
    let weight = weight(case, &x, &want);
    let unit = (2.0_f64.powi(-9) * weight + 2.0 * f64::from(tolerance) * (weight + 2.0))
        * f64::from(largest);
    let unit = crate::parallel::round(unit);
    let scaled = |d: &[f32]| -> Vec<f32> {
        d.iter().map(|&d| crate::parallel::round(f64::from(d) * g / alpha)).collect()
    };
    for (side, d) in [&want.d_p, &want.d_t].into_iter().enumerate() {
        let got = scaled(&got.d[side]);
        assert_close(&name("d"), &got, &scaled(&rounded(d)), unit);
        let other = scaled(&rounded([&want.d_t, &want.d_p][side]));
        assert_differs("the other side's gradient", &got, &other, unit);
    }
    let error = (f64::from(got.d_logit_scale) - want.d_logit_scale).abs();
    assert!(error < 2.0 * alpha * f64::from(tolerance), "{} {error}", name("d_logit_scale"));
}

#[test]
fn a_whole_batch_computes_the_dense_formula() {
    for case in CASES {
        check(case, None);
    }
}

#[test]
fn strips_of_a_whole_batch_change_nothing() {
    check(CASES[2], Some(128));
    check(CASES[3], Some(256));
    let x = Embeddings::new(CASES[2], 3);
    let [whole, strips] = [None, Some(128)].map(|rows| simulate(CASES[2], &x, rows));
    // Sums of a column over other blocks of rows: roundings of numbers below α.
    assert_close("c", &whole.statistics[1], &strips.statistics[1], 4e-6);
    assert_close("d_t", &whole.d[1], &strips.d[1], 1e-6);
}

#[test]
fn whole_batches_of_multiples_of_eight_are_cut_into_strips_of_one_wave() {
    let strips = |batch, width| Strips::new(batch, width);
    // 22 × 6 tiles of 128 × 256 for 132 multiprocessors, in nine strips of about the same height.
    assert_eq!(strips(24_576, 1536).map(Strips::rows), Some(2816));
    assert_eq!(strips(3072, 1536).map(Strips::rows), Some(1536));
    // The memory of their scores bounds the strips of large batches.
    assert!(strips(1 << 19, 1536).unwrap().rows() * (1 << 19) <= 72 << 20);
    for (batch, width) in [(0, 8), (12, 16), (16, 12), (1 << 20, 8)] {
        assert!(strips(batch, width).is_none(), "{batch} × {width}");
    }
    let (x, hashes) = ([0.5; 24 * 8], [0; 24]);
    let batch = |rows| Batch {
        predicted: View::from_f32(&x, &[24, 8]),
        target: View::from_f32(&x, &[24, 8]),
        hashes: Some(View::from_u64(&hashes, &[24])),
        rows,
    };
    assert!(batch(0..24).strips().is_some());
    assert!(batch(0..8).strips().is_none() && batch(8..24).strips().is_none());
}
