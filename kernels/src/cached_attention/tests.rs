//! Tests of cached attention on the host against the definition and against attention over packed
//! sequences.

use super::cases::{CASES, lists, other_heads, without_last_rows};
use super::host::Inputs;
use super::{Dims, forward, reference};
use crate::attention::{self, Mask};
use crate::testing::{assert_close, assert_differs, normal, poison};
use crate::{Device, KernelError, Lengths, Packed, Stream, View, ViewMut};

/// Dot products of 256 terms and sums of 300 probabilities in f32: a few units in the last place of
/// numbers below 8.
const TOLERANCE: f32 = 5e-6;

fn run(inputs: &Inputs<'_>) -> Result<Vec<f32>, KernelError> {
    let Dims { query_heads, kv_heads, head_dim } = inputs.dims;
    let mut out = poison(inputs.q.len());
    let q_shape = [inputs.q.len() / (query_heads * head_dim), query_heads, head_dim];
    let pool_shape = [inputs.k.len() / (kv_heads * head_dim), kv_heads, head_dim];
    forward(
        &Stream::Host,
        View::from_f32(inputs.q, &q_shape),
        View::from_f32(inputs.k, &pool_shape),
        View::from_f32(inputs.v, &pool_shape),
        inputs.lists,
        inputs.scale,
        ViewMut::from_f32(&mut out, &q_shape),
    )?;
    Ok(out)
}

#[test]
fn outputs_match_the_reference() {
    for (query_heads, kv_heads, head_dim, pool, of) in CASES {
        let dims = Dims { query_heads, kv_heads, head_dim };
        let lists = lists(5, pool, of);
        let q = normal(1, of.len() * query_heads * head_dim);
        let [k, v] = [2, 3].map(|seed| normal(seed, pool * kv_heads * head_dim));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let inputs = Inputs { q: &q, k: &k, v: &v, lists: &lists, dims, scale };
        let want = reference::forward(&inputs);
        let got = run(&inputs).unwrap();
        assert_close(&format!("{dims:?} {of:?}"), &got, &want, TOLERANCE);
        if of.is_empty() {
            continue;
        }
        let shorter = without_last_rows(&lists);
        let wrong = run(&Inputs { lists: &shorter, ..inputs }).unwrap();
        assert_differs("a row of each list left out", &wrong, &want, TOLERANCE);
        if kv_heads > 1 {
            let k = other_heads(&k, kv_heads, head_dim);
            let wrong = run(&Inputs { k: &k, ..inputs }).unwrap();
            assert_differs("the wrong group of heads", &wrong, &want, TOLERANCE);
        }
    }
}

#[test]
fn lists_of_all_earlier_tokens_are_causal_attention() {
    let (n, dims) = (70, Dims { query_heads: 4, kv_heads: 2, head_dim: 16 });
    let q = normal(1, n * 4 * 16);
    let [k, v] = [2, 3].map(|seed| normal(seed, n * 2 * 16));
    let (mut want, mut lse) = (poison(q.len()), poison(n * 4));
    attention::forward(
        &Stream::Host,
        View::from_f32(&q, &[n, 4, 16]),
        View::from_f32(&k, &[n, 2, 16]),
        View::from_f32(&v, &[n, 2, 16]),
        &Lengths::uniform(Device::Host, 1, n).unwrap(),
        Mask::Causal,
        0.25,
        ViewMut::from_f32(&mut want, &[n, 4, 16]),
        ViewMut::from_f32(&mut lse, &[n, 4]),
    )
    .unwrap();
    let (mut rows, mut ends) = (Vec::new(), vec![0]);
    for i in 1..=70 {
        rows.extend(0..i);
        ends.push(i * (i + 1) / 2);
    }
    let lists = Packed::new(Device::Host, rows, ends).unwrap();
    let inputs = Inputs { q: &q, k: &k, v: &v, lists: &lists, dims, scale: 0.25 };
    let got = run(&inputs).unwrap();
    assert_close("causal", &got, &want, TOLERANCE);
    let lists = without_last_rows(&lists);
    let wrong = run(&Inputs { lists: &lists, ..inputs }).unwrap();
    assert_differs("without the token itself", &wrong, &want, TOLERANCE);
}

#[test]
fn empty_lists_and_rows_outside_of_the_pool_are_errors() {
    let dims = Dims { query_heads: 1, kv_heads: 1, head_dim: 2 };
    let (q, pool) = ([0.0; 4], [0.0; 6]);
    let message = |rows: Vec<i32>, ends: Vec<i32>| {
        let lists = Packed::new(Device::Host, rows, ends).unwrap();
        let inputs = Inputs { q: &q, k: &pool, v: &pool, lists: &lists, dims, scale: 1.0 };
        run(&inputs).map_err(|error| error.to_string())
    };
    assert!(message(vec![0, 2], vec![0, 1, 2]).is_ok());
    let error = message(vec![0, 3], vec![0, 1, 2]).unwrap_err();
    assert!(error.contains("3 at [1]"), "{error}");
    let error = message(vec![0, 1], vec![0, 2, 2]).unwrap_err();
    assert!(error.contains("empty at query 1"), "{error}");
    assert!(message(vec![0], vec![0, 1]).is_err(), "one list for two queries");
}
