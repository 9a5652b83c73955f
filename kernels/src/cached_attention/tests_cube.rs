//! The kernel of cached attention against the reference, run by the emulator instead of a GPU.

use super::cases::{CASES, lists, other_heads, without_last_rows};
use super::host::Inputs;
use super::launch::{Forward, forward};
use super::{Dims, reference};
use crate::attention::launch::Heads;
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs};
use crate::testing::{assert_close, assert_differs};

#[test]
fn outputs_match_the_reference() {
    for (query_heads, kv_heads, head_dim, pool, of) in CASES {
        let dims = Dims { query_heads, kv_heads, head_dim };
        let lists = lists(5, pool, of);
        let q = inputs(1, Element::Bf16, of.len() * query_heads * head_dim);
        let [k, v] = [2, 3].map(|seed| inputs(seed, Element::Bf16, pool * kv_heads * head_dim));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let inputs = Inputs { q: &q, k: &k, v: &v, lists: &lists, dims, scale };
        let want = reference::forward(&inputs);
        let mut e = Emulator::default();
        let buffers = Forward {
            q: e.bf16(&q),
            k: e.bf16(&k),
            v: e.bf16(&v),
            rows: e.i32(lists.host_ids()),
            ends: e.i32(lists.lengths.host()),
            out: e.poison_bf16(q.len()),
        };
        let heads = Heads { query: query_heads, key_value: kv_heads, dim: head_dim };
        e.run(&forward(buffers, [of.len(), pool], heads, scale).unwrap());
        let got = e.read_bf16(buffers.out);
        // Sums are f32 (5e-6, as on the host), and the output is rounded to the 8 bits of bf16.
        let tolerance = 5e-6 + 1.0 / 256.0;
        assert_close(&format!("{dims:?} {of:?}"), &got, &want, tolerance);
        if of.is_empty() {
            continue;
        }
        let shorter = without_last_rows(&lists);
        let wrong = reference::forward(&Inputs { lists: &shorter, ..inputs });
        assert_differs("a row of each list left out", &got, &wrong, tolerance);
        if kv_heads > 1 {
            let k = other_heads(&k, kv_heads, head_dim);
            let wrong = reference::forward(&Inputs { k: &k, ..inputs });
            assert_differs("the wrong group of heads", &got, &wrong, tolerance);
        }
    }
}

#[test]
fn widths_and_sizes_without_a_kernel_are_errors() {
    let buffers = Forward { q: 0, k: 1, v: 2, rows: 3, ends: 4, out: 5 };
    let heads = |query, key_value, dim| Heads { query, key_value, dim };
    let launch = |sizes, heads| forward(buffers, sizes, heads, 1.0);
    assert_eq!(launch([64, 1 << 20], heads(32, 8, 64)).unwrap()[0].cubes, [64, 8, 1]);
    assert_eq!(launch([2, 9], heads(32, 2, 64)).unwrap()[0].cubes, [2, 2, 2]);
    let error = launch([1, 1], heads(1, 1, 72)).unwrap_err().to_string();
    assert!(error.contains("head width") && error.contains("72"), "{error}");
    assert!(launch([1, 1], heads(3, 2, 64)).is_err(), "3 query heads cannot share 2");
    assert!(launch([1, 1 << 26], heads(32, 8, 64)).is_err(), "2^32 vectors of keys");
    assert!(launch([1 << 27, 1], heads(32, 8, 64)).is_err(), "2^35 vectors of queries");
}
