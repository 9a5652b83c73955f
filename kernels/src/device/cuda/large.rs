//! Tests of the kernels that multiply on tensor cores, and of cuBLASLt's products, at thousands of
//! tokens: many tiles, ragged ends, every head width and mask, odd sizes and addresses.
//!
//! The host's operations are the reference: they are parallel, and their own tests compare them
//! with the formulas. Results are compared in relative norm, sequence by sequence, because averages
//! over a long sequence are small beside those of a short one. An emulated GPU runs the same
//! operations on a few hundred tokens; see [`size`].

use super::Cuda;
use super::emulated::test_gpu_number;
use super::tests::{activation, dtype, numbers, zeros};
use crate::attention::launch::{FORWARD_HEAD_DIMS, HEAD_DIMS, Mode, Pass};
use crate::attention::{self, Mask};
use crate::{DType, Device, Lengths, Tensor, Write, info_nce, linear};

/// `real` on a real GPU, `emulated` on an emulated one, which would need hours for `real`.
fn size<T>(real: T, emulated: T) -> T {
    if test_gpu_number().is_some() { real } else { emulated }
}

/// ‖got − want‖ / ‖want‖. A norm below `floor` per element is replaced by `floor`, because values
/// that are zero except for rounding have no relative error.
fn distance(got: &[f32], want: &[f32], floor: f64) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|&b| square(b)).sum();
    let count = f64::from(u32::try_from(want.len()).unwrap());
    (difference / norm.max(floor * floor * count).max(f64::MIN_POSITIVE)).sqrt()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f32().unwrap().into_owned()
}

/// Number of query heads and of key/value heads.
const HEADS: [usize; 2] = [2, 1];

/// Output, log-sum-exp and the gradients of queries, keys and values, each (tokens, heads, width).
fn attend(device: Device, ends: &[i32], head_dim: usize, mask: Mask, scale: f32) -> [Vec<f32>; 5] {
    let stream = device.compute_stream();
    let lengths = Lengths::new(device, ends.to_vec()).unwrap();
    let (n, [h, g]) = (lengths.tokens(), HEADS);
    let of = |seed, heads| {
        activation(device, &numbers(seed, n * heads * head_dim), &[n, heads, head_dim])
    };
    let (q, k, v, d_out) = (of(1, h), of(2, g), of(3, g), of(4, h));
    let empty = |heads| zeros(device, dtype(device), &[n, heads, head_dim]);
    let (mut out, mut d_q, mut d_k, mut d_v) = (empty(h), empty(h), empty(g), empty(g));
    let mut lse = zeros(device, DType::F32, &[n, h]);
    let (q, k, v) = (q.view(), k.view(), v.view());
    let (o, l) = (out.view_mut(), lse.view_mut());
    attention::forward(&stream, q, k, v, &lengths, mask, scale, o, l).unwrap();
    attention::backward(
        &stream,
        q,
        k,
        v,
        out.view(),
        lse.view(),
        d_out.view(),
        &lengths,
        mask,
        scale,
        d_q.view_mut(),
        d_k.view_mut(),
        d_v.view_mut(),
    )
    .unwrap();
    [out, lse, d_q, d_k, d_v].each_ref().map(values)
}

/// The largest distance of any sequence in any of the five results, with a text that names it.
fn farthest(got: &[Vec<f32>; 5], want: &[Vec<f32>; 5], ends: &[i32]) -> (f64, String) {
    let at = |end: i32| usize::try_from(end).unwrap();
    let mut worst = (0.0, String::new());
    for (name, (got, want)) in ["out", "lse", "d_q", "d_k", "d_v"].iter().zip(got.iter().zip(want))
    {
        let width = want.len() / at(ends[ends.len() - 1]);
        for (row, pair) in ends.windows(2).enumerate() {
            let range = at(pair[0]) * width..at(pair[1]) * width;
            let far = distance(&got[range.clone()], &want[range], 1e-3);
            // NaN counts as farther than every number.
            if far.is_nan() || far > worst.0 {
                worst = (far, format!("{name} of sequence {row}: {far:.2e}"));
            }
        }
    }
    worst
}

/// Probabilities, score gradients and results are rounded to bf16: at most 2⁻⁹ of an element, a
/// third of that on average, and δ is computed from rounded outputs. Differences of nearly equal
/// numbers in the score gradients make the error some three times larger.
const ROUNDING: f64 = 0.01;

/// Compares attention of one head width under every mask, in every mode.
fn attention_of_width(head_dim: usize) {
    let ends = size(&[0, 1, 4097, 4097, 6144, 6273, 7773][..], &[0, 1, 1, 151, 216]);
    let scale = 1.0 / f64::from(u32::try_from(head_dim).unwrap()).sqrt();
    let scale = crate::parallel::round(scale);
    let masks = [Mask::Full, Mask::Causal, Mask::Window(700)];
    for &mask in size(&masks[..], &masks[..1]) {
        let want = attend(Device::Host, ends, head_dim, mask, scale);
        let warpgroups = Pass::keys(Mode::Warpgroups, head_dim, mask) == Pass::KeysWarpgroups;
        let own = warpgroups.then_some(Mode::Warpgroups);
        for mode in [Mode::Fast, Mode::Deterministic].into_iter().chain(own) {
            let device = Device::Cuda(Cuda::for_tests(mode));
            let got = attend(device, ends, head_dim, mask, scale);
            let (far, place) = farthest(&got, &want, ends);
            println!("attention {head_dim} wide, {mask:?}, {mode:?}: largest distance {place}");
            assert!(far < ROUNDING, "{head_dim} wide, {mask:?}, {mode:?}: {place}");
            if mode == Mode::Deterministic && size(true, false) {
                let again = attend(device, ends, head_dim, mask, scale);
                assert!(again == got, "{head_dim} wide, {mask:?}: two runs differ");
            }
        }
        if mask == Mask::Full {
            let wrong = attend(Device::Host, ends, head_dim, mask, scale * 1.1);
            let far = farthest(&wrong, &want, ends).0;
            assert!(far > ROUNDING, "another scale passes: {far}");
        }
    }
}

#[test]
fn attention_16_wide_agrees_over_thousands_of_tokens() {
    attention_of_width(16);
}

#[test]
fn attention_32_wide_agrees_over_thousands_of_tokens() {
    attention_of_width(32);
}

#[test]
fn attention_64_wide_agrees_over_thousands_of_tokens() {
    attention_of_width(64);
}

#[test]
fn attention_128_wide_agrees_over_thousands_of_tokens() {
    attention_of_width(128);
}

#[test]
fn attention_256_wide_agrees_over_thousands_of_tokens() {
    attention_of_width(256);
}

#[test]
fn every_head_width_has_its_large_case() {
    assert_eq!(HEAD_DIMS, [16, 32, 64, 128, 256]);
}

/// Output of attention, (tokens, heads, width).
fn attend_forward(device: Device, ends: &[i32], head_dim: usize, scale: f32) -> Vec<f32> {
    let lengths = Lengths::new(device, ends.to_vec()).unwrap();
    let (n, [h, g]) = (lengths.tokens(), HEADS);
    let of = |seed, heads| {
        activation(device, &numbers(seed, n * heads * head_dim), &[n, heads, head_dim])
    };
    let (q, k, v) = (of(1, h), of(2, g), of(3, g));
    let mut out = zeros(device, dtype(device), &[n, h, head_dim]);
    let mut lse = zeros(device, DType::F32, &[n, h]);
    let (o, l) = (out.view_mut(), lse.view_mut());
    let (q, k, v) = (q.view(), k.view(), v.view());
    let stream = device.compute_stream();
    attention::forward(&stream, q, k, v, &lengths, Mask::Full, scale, o, l).unwrap();
    values(&out)
}

#[test]
fn attention_of_encoders_that_are_not_trained_agrees_over_thousands_of_tokens() {
    let ends = size(&[0, 1, 4097, 4353][..], &[0, 1, 151, 216]);
    for head_dim in FORWARD_HEAD_DIMS {
        let want = attend_forward(Device::Host, ends, head_dim, 0.11);
        let device = Device::Cuda(Cuda::for_tests(Mode::Fast));
        let far = distance(&attend_forward(device, ends, head_dim, 0.11), &want, 1e-3);
        assert!(far < ROUNDING, "{head_dim} wide: {far:.1e}");
        let wrong = attend_forward(Device::Host, ends, head_dim, 0.12);
        assert!(distance(&wrong, &want, 1e-3) > ROUNDING, "another scale passes");
    }
}

/// Unit rows that share a direction, so that the softmax part of a gradient is as large as the
/// diagonal part.
fn embeddings(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    let mut x = numbers(seed, rows * width);
    for row in x.chunks_exact_mut(width) {
        row.iter_mut().for_each(|x| *x += 1.0);
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x / norm).to_f32());
    }
    x
}

/// Log-sum-exp, diagonal and gradient of the `b` rows from `first`, and the gradient of the scale,
/// in a batch of `g` rows with equal targets.
fn contrast(device: Device, [first, b, g, e]: [usize; 4], alpha: f32) -> [Vec<f32>; 4] {
    let stream = device.compute_stream();
    let rows = &embeddings(1, g, e)[first * e..(first + b) * e];
    let rows = activation(device, rows, &[b, e]);
    let all = activation(device, &embeddings(2, g, e), &[g, e]);
    let hashes: Vec<u64> = (0..g as u64).map(|i| i % (g as u64 * 3 / 4)).collect();
    let own = Tensor::from_u64(hashes[first..first + b].to_vec(), &[b]).on(device).unwrap();
    let everyone = Tensor::from_u64(hashes, &[g]).on(device).unwrap();
    let equal = Some(info_nce::EqualTargets { rows: own.view(), all: everyone.view() });
    let [mut lse, mut diagonal] = [(); 2].map(|()| zeros(device, DType::F32, &[b]));
    let (rows, all) = (rows.view(), all.view());
    let (l, d) = (lse.view_mut(), diagonal.view_mut());
    info_nce::statistics(&stream, rows, all, alpha, first, equal, l, d).unwrap();
    // The columns' log-sum-exps: close to those of the rows, whose scores have the same
    // distribution.
    let all_lse = Tensor::from_f32(vec![values(&lse)[0]; g], &[g]).on(device).unwrap();
    let mut d_rows = zeros(device, DType::F32, &[b, e]);
    let mut d_scale = zeros(device, DType::F32, &[1]);
    let (l, c, d, s) = (lse.view(), all_lse.view(), d_rows.view_mut(), Some(d_scale.view_mut()));
    info_nce::backward(&stream, rows, all, l, c, alpha, first, equal, d, s).unwrap();
    [lse, diagonal, d_rows, d_scale].each_ref().map(values)
}

/// Weights are rounded to bf16: at most 2⁻⁹ of each. The weight of the diagonal is as large as all
/// others of its row together, so its error does not average out. A missing tile of 128 columns
/// would change a gradient by 2 %.
const WEIGHTS: f64 = 4e-3;

/// Compares results of `rows` rows each (or one number), 64 rows at a time. The last results are
/// gradients and Σ dS ∘ S.
fn close(name: &str, got: &[Vec<f32>], want: &[Vec<f32>], limits: &[f64], rows: usize) {
    for (i, ((got, want), limit)) in got.iter().zip(want).zip(limits).enumerate() {
        let block = want.len().div_ceil(rows) * 64;
        for (number, (got, want)) in got.chunks(block).zip(want.chunks(block)).enumerate() {
            let far = distance(got, want, 0.0);
            println!("{name}, result {i}, rows {}: distance {far:.2e}", number * 64);
            assert!(far < *limit, "{name}, result {i}, rows {} of {rows}: {far:.2e}", number * 64);
        }
    }
}

#[test]
fn info_nce_of_some_rows_agrees_over_thousands_of_rows() {
    let (g, e, alpha) = (size(4104, 304), size(1536, 200), 14.3);
    for (first, b) in [(0, g), (g - 137, 130)] {
        let want = contrast(Device::Host, [first, b, g, e], alpha);
        let got = contrast(Device::Cuda(Cuda::for_tests(Mode::Fast)), [first, b, g, e], alpha);
        // Scores and their sums are in f32.
        close("InfoNCE", &got, &want, &[1e-5, 1e-5, WEIGHTS, 1e-3], b);
        let wrong = contrast(Device::Host, [first, b, g, e], alpha * 1.01);
        for (wrong, want) in wrong.iter().zip(&want) {
            assert!(distance(wrong, want, 0.0) > WEIGHTS, "another temperature passes");
        }
    }
}

/// Both log-sum-exps, the diagonal, both gradients and Σ dS ∘ S of a batch that is entirely on the
/// device.
fn contrast_all(device: Device, [g, e]: [usize; 2], alpha: f32) -> [Vec<f32>; 6] {
    let stream = device.compute_stream();
    let [predicted, target] =
        [1, 2].map(|seed| activation(device, &embeddings(seed, g, e), &[g, e]));
    let hashes: Vec<u64> = (0..g as u64).map(|i| i % (g as u64 * 3 / 4)).collect();
    let hashes = Tensor::from_u64(hashes, &[g]).on(device).unwrap();
    let (predicted, target) = (predicted.view(), target.view());
    let batch = info_nce::Batch { predicted, target, hashes: Some(hashes.view()), rows: 0..g };
    let [mut r, mut c, mut diagonal] = [(); 3].map(|()| zeros(device, DType::F32, &[g]));
    let (r_out, c_out, d) = (r.view_mut(), c.view_mut(), diagonal.view_mut());
    info_nce::both_statistics(&stream, &batch, alpha, r_out, c_out, d).unwrap();
    let [mut d_p, mut d_t] = [(); 2].map(|()| zeros(device, DType::F32, &[g, e]));
    let mut d_scale = zeros(device, DType::F32, &[1]);
    let (p, t, s) = (d_p.view_mut(), d_t.view_mut(), Some(d_scale.view_mut()));
    info_nce::both_gradients(&stream, &batch, r.view(), c.view(), alpha, p, t, s).unwrap();
    [r, c, diagonal, d_p, d_t, d_scale].each_ref().map(values)
}

#[test]
fn info_nce_of_a_whole_batch_agrees_over_thousands_of_rows() {
    let (sizes, alpha) = ([size(4104, 304), size(1536, 200)], 14.3);
    let want = contrast_all(Device::Host, sizes, alpha);
    let got = contrast_all(Device::Cuda(Cuda::for_tests(Mode::Fast)), sizes, alpha);
    let limits = [1e-5, 1e-5, 1e-5, WEIGHTS, WEIGHTS, 1e-3];
    close("InfoNCE of a batch", &got, &want, &limits, sizes[0]);
    let wrong = contrast_all(Device::Host, sizes, alpha * 1.01);
    for (wrong, want) in wrong.iter().zip(&want) {
        assert!(distance(wrong, want, 0.0) > WEIGHTS, "another temperature passes");
    }
}

/// Output, output added to a residual and to itself, and the gradients of input and weights of a
/// layer, whose tensors begin `skip` elements after the start of their buffers. Sums that are
/// added to are large beside what is added, so that a product that ran twice would show.
fn layer(device: Device, [n, i, o]: [usize; 3], skip: usize) -> [Vec<f32>; 5] {
    let stream = device.compute_stream();
    let of = |seed, len: usize| activation(device, &numbers(seed, skip + len), &[skip + len]);
    let (x, weight, bias, d_out) = (of(1, n * i), of(2, o * i), of(3, o), of(4, n * o));
    let x = x.view().part(skip, &[n, i]);
    let weight = weight.view().part(skip, &[o, i]);
    let bias = Some(bias.view().part(skip, &[o]));
    let d_out = d_out.view().part(skip, &[n, o]);
    let residual = of(5, n * o);
    let [mut out, mut onto, mut added] =
        [(); 3].map(|()| activation(device, &numbers(6, skip + n * o), &[skip + n * o]));
    let mut d_x = zeros(device, dtype(device), &[skip + n * i]);
    let mut d_weight =
        Tensor::from_f32(numbers(7, skip + o * i), &[skip + o * i]).on(device).unwrap();
    linear::forward(&stream, x, weight, bias, Write::Set, out.view_mut().part(skip, &[n, o]))
        .unwrap();
    linear::forward(&stream, x, weight, bias, Write::Add, added.view_mut().part(skip, &[n, o]))
        .unwrap();
    let (from, to) = (residual.view().part(skip, &[n, o]), onto.view_mut().part(skip, &[n, o]));
    linear::forward_onto(&stream, x, weight, bias, from, to).unwrap();
    let to = d_x.view_mut().part(skip, &[n, i]);
    linear::backward_input(&stream, d_out, weight, Write::Set, to).unwrap();
    let to = d_weight.view_mut().part(skip, &[o, i]);
    linear::backward_weight(&stream, x, d_out, to, None).unwrap();
    [out, onto, added, d_x, d_weight].each_ref().map(|tensor| values(tensor)[skip..].to_vec())
}

#[test]
fn products_of_odd_sizes_at_odd_addresses_agree() {
    let sizes = size(
        &[[4101, 768, 1152], [1046, 2048, 16_032], [1, 768, 1536], [700, 67, 129]][..],
        &[[37, 24, 40], [1, 24, 16], [7, 13, 5]],
    );
    for &sizes in sizes {
        let want = layer(Device::Host, sizes, 1);
        for (skip, mode) in [(0, Mode::Fast), (1, Mode::Fast), (1, Mode::Deterministic)] {
            let device = Device::Cuda(Cuda::for_tests(mode));
            let got = layer(device, sizes, skip);
            let want = if skip == 1 { want.clone() } else { layer(Device::Host, sizes, 0) };
            // Results in bf16 are rounded once; gradients of weights are f32 sums.
            for (name, limit, got, want) in [
                ("out", 3e-3, &got[0], &want[0]),
                ("onto", 3e-3, &got[1], &want[1]),
                ("added", 3e-3, &got[2], &want[2]),
                ("d_x", 3e-3, &got[3], &want[3]),
                ("d_weight", 5e-5, &got[4], &want[4]),
            ] {
                let far = distance(got, want, 0.0);
                assert!(far < limit, "{sizes:?}, {skip}, {mode:?}: {name} is {far:.1e} away");
            }
            assert!(layer(device, sizes, skip) == got, "{sizes:?}: two runs differ");
        }
        for (wrong, want) in layer(Device::Host, sizes, 0).iter().zip(&want) {
            assert!(distance(wrong, want, 0.0) > 1e-2, "another part of the buffers passes");
        }
    }
}
