//! Tests of attention: the host against the reference, and the reference against finite
//! differences.

use super::cases::{Case, cases};
use super::{Dims, Mask, backward, forward, reference};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{Device, KernelError, Lengths, Result, Stream, View, ViewMut};

/// Scores of magnitude up to 6 have f32 errors of about 16 · 2⁻²⁴, which is the relative error of a
/// probability; outputs and gradients are sums of such terms of magnitude up to 4, over one to
/// hundreds of keys.
const TOLERANCE: f32 = 2e-5;

struct Data {
    case: Case,
    lengths: Lengths,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
    scale: f32,
}

impl Data {
    fn new(case: Case, seed: u64) -> Self {
        let lengths = case.lengths();
        let Dims { head_dim, .. } = case.dims;
        let (n_q, n_kv) =
            (lengths.tokens() * case.dims.q_width(), lengths.tokens() * case.dims.kv_width());
        let scale = 1.0 / f32::from(u8::try_from(head_dim).unwrap()).sqrt();
        let [q, k, v, d_out] =
            [(1, n_q), (2, n_kv), (3, n_kv), (4, n_q)].map(|(i, len)| normal(8 * seed + i, len));
        Self { case, lengths, q, k, v, d_out, scale }
    }

    fn q_shape(&self) -> [usize; 3] {
        [self.lengths.tokens(), self.case.dims.query_heads, self.case.dims.head_dim]
    }

    fn kv_shape(&self) -> [usize; 3] {
        [self.lengths.tokens(), self.case.dims.kv_heads, self.case.dims.head_dim]
    }

    fn reference(&self) -> reference::Inputs<'_> {
        reference::Inputs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            lengths: &self.lengths,
            dims: self.case.dims,
            mask: self.case.mask,
            scale: self.scale,
        }
    }

    fn forward(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut out, mut lse) =
            (poison(self.q.len()), poison(self.q.len() / self.case.dims.head_dim));
        forward(
            &Stream::Host,
            View::from_f32(&self.q, &self.q_shape()),
            View::from_f32(&self.k, &self.kv_shape()),
            View::from_f32(&self.v, &self.kv_shape()),
            &self.lengths,
            self.case.mask,
            self.scale,
            ViewMut::from_f32(&mut out, &self.q_shape()),
            ViewMut::from_f32(&mut lse, &self.q_shape()[..2]),
        )?;
        Ok((out, lse))
    }

    fn backward(&self) -> [Vec<f32>; 3] {
        let (out, lse) = self.forward().unwrap();
        let [mut d_q, mut d_k, mut d_v] = [self.q.len(), self.k.len(), self.v.len()].map(poison);
        backward(
            &Stream::Host,
            View::from_f32(&self.q, &self.q_shape()),
            View::from_f32(&self.k, &self.kv_shape()),
            View::from_f32(&self.v, &self.kv_shape()),
            View::from_f32(&out, &self.q_shape()),
            View::from_f32(&lse, &self.q_shape()[..2]),
            View::from_f32(&self.d_out, &self.q_shape()),
            &self.lengths,
            self.case.mask,
            self.scale,
            ViewMut::from_f32(&mut d_q, &self.q_shape()),
            ViewMut::from_f32(&mut d_k, &self.kv_shape()),
            ViewMut::from_f32(&mut d_v, &self.kv_shape()),
        )
        .unwrap();
        [d_q, d_k, d_v]
    }
}

#[test]
fn host_attention_matches_the_reference_on_ragged_tokens() {
    for (seed, case) in (0..).zip(cases()) {
        let data = Data::new(case, seed);
        let (out, lse) = data.forward().unwrap();
        let (want_out, want_lse) = data.reference().forward();
        assert_close(&format!("out of {:?}", data.case), &out, &want_out, TOLERANCE);
        assert_close(&format!("lse of {:?}", data.case), &lse, &want_lse, TOLERANCE);
        let got = data.backward();
        let want = data.reference().backward(&data.d_out);
        for ((got, want), name) in got.iter().zip(&want).zip(["d_q", "d_k", "d_v"]) {
            assert_close(&format!("{name} of {:?}", data.case), got, want, TOLERANCE);
        }
        if data.lengths.tokens() > 1 {
            let mut wrong = data.reference();
            wrong.mask = if wrong.mask == Mask::Window(2) { Mask::Full } else { Mask::Window(2) };
            assert_differs("another mask", &out, &wrong.forward().0, TOLERANCE);
            let wrong = wrong.backward(&data.d_out);
            assert_differs("another mask", &got[1], &wrong[1], TOLERANCE);
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let masks = [Mask::Full, Mask::Causal, Mask::Window(2)];
    for (seed, mask) in (20..).zip(masks) {
        let dims = Dims { query_heads: 2, kv_heads: 1, head_dim: 3 };
        let mut data = Data::new(Case { dims, lengths: vec![5, 0, 1], mask }, seed);
        let got = data.backward();
        let d_out = data.d_out.clone();
        // The reference computes in f64 and rounds outputs near 1 to f32: an error of
        // 2⁻²⁵ · √6 / 0.03, with the truncation error below it.
        let (tolerance, step) = (2e-5, 0.03);
        for (i, got) in got.iter().enumerate() {
            let at = [&data.q, &data.k, &data.v][i].clone();
            let want = finite_difference(&at, step, |x| {
                *[&mut data.q, &mut data.k, &mut data.v][i] = x.to_vec();
                dot(&data.reference().forward().0, &d_out)
            });
            *[&mut data.q, &mut data.k, &mut data.v][i] = at;
            assert_close(&format!("gradient {i}, {mask:?}"), got, &want, tolerance);
            let doubled: Vec<f32> = got.iter().map(|g| 2.0 * g).collect();
            assert_differs("twice the gradient", &doubled, &want, tolerance);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (seed, case) in (40..).zip(cases()) {
        let data = Data::new(case, seed);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let results = pool.install(|| (data.forward().unwrap(), data.backward()));
            format!("{results:?}")
        };
        assert!(run(1) == run(3), "{:?}", data.case);
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let dims = Dims { query_heads: 1, kv_heads: 1, head_dim: 8 };
    let mut data = Data::new(Case { dims, lengths: vec![300], mask: Mask::Full }, 60);
    data.q.iter_mut().for_each(|q| *q *= 100.0);
    let (out, lse) = data.forward().unwrap();
    let (want_out, want_lse) = data.reference().forward();
    // Scores reach 1,000: a probability has a relative error of 2⁻²⁴ · 1,000, and two probabilities
    // may compete for the softmax.
    assert_close("out", &out, &want_out, 1e-3);
    assert_close("lse", &lse, &want_lse, 1e-6);
    assert!(data.backward().iter().flatten().all(|d| d.is_finite()));
    let uniform = vec![0.0; out.len()];
    assert_differs("no attention", &out, &uniform, 1e-3);
}

#[test]
fn four_thousand_tokens_attend_in_bounded_memory() {
    let dims = Dims { query_heads: 1, kv_heads: 1, head_dim: 64 };
    let mut data = Data::new(Case { dims, lengths: vec![4096], mask: Mask::Full }, 61);
    // With equal keys every probability is 1/4096, and the output is the mean of the values.
    let first = data.k[..64].to_vec();
    data.k.chunks_exact_mut(64).for_each(|k| k.copy_from_slice(&first));
    let (out, _) = data.forward().unwrap();
    let mean = |e: usize| data.v.iter().skip(e).step_by(64).sum::<f32>() / 4096.0;
    let want: Vec<f32> = (0..64).map(mean).collect();
    assert_close("mean", &out[4095 * 64..], &want, 1e-5);
    assert_differs("first value", &data.v[..64], &want, 1e-5);
}

#[test]
fn wrong_shapes_and_values_are_errors() {
    let dims = Dims { query_heads: 2, kv_heads: 1, head_dim: 4 };
    let good = || Data::new(Case { dims, lengths: vec![3], mask: Mask::Full }, 1);
    let error = Data { lengths: Lengths::uniform(Device::Host, 1, 4).unwrap(), ..good() };
    let error = {
        let q = View::from_f32(&error.q, &[3, 2, 4]);
        let k = View::from_f32(&error.k, &[3, 1, 4]);
        super::check_inputs("test", [q, k, k], &error.lengths, Mask::Full).unwrap_err()
    };
    assert!(matches!(error, KernelError::Shape { what: "tokens of lengths", .. }), "{error}");
    let mut data = good();
    data.case.mask = Mask::Window(0);
    let error = data.forward().unwrap_err();
    assert!(matches!(error, KernelError::Value { what: "window", .. }), "{error}");
    let mut data = good();
    data.case.dims = Dims { query_heads: 4, kv_heads: 3, head_dim: 2 };
    data.k = vec![0.0; 18];
    data.v = vec![0.0; 18];
    let error = data.forward().unwrap_err();
    assert!(matches!(error, KernelError::Value { what: "heads", .. }), "{error}");
    let x = [0.0; 24];
    let (q, k) = (View::from_f32(&x, &[3, 2, 4]), View::from_f32(&x[..12], &[3, 1, 4]));
    let lengths = Lengths::uniform(Device::Host, 1, 3).unwrap();
    let error = super::check_inputs("test", [q, k, q], &lengths, Mask::Full).unwrap_err();
    assert!(matches!(error, KernelError::Shape { what: "v", .. }), "{error}");
}
