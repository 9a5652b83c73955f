//! Attention's kernels against the reference, run by the emulator instead of a GPU.

use half::bf16;

use super::launch::{
    Backward, FORWARD_HEAD_DIMS, Forward, Heads, Mode, Pass, backward, forward, places, rows,
};
use super::reference::Inputs;
use super::{Dims, Mask};
use crate::compile::emulator::Emulator;
use crate::testing::{assert_close, assert_differs, normal};
use crate::{Device, Lengths};

/// Buffers of launches that are only checked.
const NOTHING: Backward<()> = Backward {
    q: (),
    k: (),
    v: (),
    out: (),
    lse: (),
    d_out: (),
    key_places: (),
    query_places: (),
    delta: (),
    sums: (),
    d_q: (),
    d_k: (),
    d_v: (),
};

/// Query heads, key/value heads, head width, lengths and mask of one case.
type Case = (usize, usize, usize, &'static [usize], Mask);

/// Every width with every mask; full, partly full and skipped tiles; one token; empty sequences;
/// grouped heads.
const CASES: [Case; 17] = [
    (3, 3, 16, &[1, 0, 70], Mask::Full),
    (2, 1, 16, &[65, 130], Mask::Causal),
    (2, 1, 32, &[67, 9], Mask::Full),
    (3, 1, 64, &[1, 0, 17, 257], Mask::Full),
    (2, 2, 64, &[130, 65, 0], Mask::Causal),
    (3, 1, 64, &[200, 3], Mask::Window(33)),
    (2, 1, 128, &[65, 1, 128], Mask::Full),
    (2, 2, 128, &[150], Mask::Causal),
    (1, 1, 128, &[140, 64], Mask::Window(64)),
    (1, 1, 256, &[129, 17], Mask::Full),
    (3, 1, 256, &[40, 1], Mask::Causal),
    (3, 1, 256, &[100], Mask::Window(20)),
    (2, 1, 72, &[65, 0, 133], Mask::Full),
    (1, 1, 80, &[130, 1], Mask::Causal),
    (3, 1, 96, &[70, 128], Mask::Full),
    (2, 2, 96, &[90], Mask::Window(40)),
    (1, 1, 192, &[67, 2], Mask::Full),
];

/// `always`, and the mode with products of warpgroups where it has kernels of its own.
fn modes(head_dim: usize, mask: Mask, always: &[Mode]) -> Vec<Mode> {
    let keys = Pass::keys(Mode::Warpgroups, head_dim, mask);
    let own = (keys == Pass::KeysWarpgroups).then_some(Mode::Warpgroups);
    always.iter().copied().chain(own).collect()
}

fn rounded(seed: u64, len: usize) -> Vec<f32> {
    normal(seed, len).iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

fn lengths(of: &[usize]) -> Lengths {
    let mut ends = vec![0];
    for len in of {
        ends.push(ends[ends.len() - 1] + i32::try_from(*len).unwrap());
    }
    Lengths::new(Device::Host, ends).unwrap()
}

/// Uploads a tile table as the bytes of a buffer.
fn upload(e: &mut Emulator, numbers: &[u32]) -> crate::compile::emulator::Buffer {
    e.bytes(numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

#[test]
fn forward_matches_the_reference() {
    for (number, (query_heads, kv_heads, head_dim, of, mask)) in CASES.into_iter().enumerate() {
        let lengths = lengths(of);
        let n = lengths.tokens();
        let dims = Dims { query_heads, kv_heads, head_dim };
        let q = rounded(1, n * dims.q_width());
        let [k, v] = [2, 3].map(|seed| rounded(seed, n * dims.kv_width()));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let inputs = Inputs { q: &q, k: &k, v: &v, lengths: &lengths, dims, mask, scale };
        let (want, want_lse) = inputs.forward();

        for mode in modes(head_dim, mask, &[Mode::Fast]) {
            let mut e = Emulator::default();
            let tiles = places(&lengths, rows(Pass::forward(mode, head_dim, mask), head_dim));
            let buffers = Forward {
                q: e.bf16(&q),
                k: e.bf16(&k),
                v: e.bf16(&v),
                places: upload(&mut e, &tiles),
                out: e.poison_bf16(n * dims.q_width()),
                lse: e.poison_f32(n * query_heads),
            };
            let heads = Heads { query: query_heads, key_value: kv_heads, dim: head_dim };
            e.run(&forward(buffers, n, tiles.len() / 4, heads, mask, scale, mode).unwrap());
            // Probabilities are rounded to bf16 (2⁻⁹ each) before the product with v; v is below 5
            // and the probabilities sum to 1. The output is rounded once more.
            let tolerance = 1.2e-2;
            let (out, lse) = (e.read_bf16(buffers.out), e.read_f32(buffers.lse));
            assert_close(&format!("out of case {number}, {mode:?}"), &out, &want, tolerance);
            // Products are exact in f32; their sums and the sums of exponentials are off by a few
            // units in the last place of numbers below 16.
            assert_close(&format!("lse of case {number}, {mode:?}"), &lse, &want_lse, 1e-5);
            if n > 1 {
                let wrong = Inputs { scale: scale * 1.1, ..inputs }.forward();
                assert_differs("another scale", &out, &wrong.0, tolerance);
                assert_differs("another scale", &lse, &wrong.1, 1e-5);
            }
        }
    }
}

#[test]
fn backward_matches_the_reference_in_every_mode() {
    for (number, (query_heads, kv_heads, head_dim, of, mask)) in CASES.into_iter().enumerate() {
        let lengths = lengths(of);
        let n = lengths.tokens();
        let dims = Dims { query_heads, kv_heads, head_dim };
        let [q, d_out] = [1, 4].map(|seed| rounded(seed, n * dims.q_width()));
        let [k, v] = [2, 3].map(|seed| rounded(seed, n * dims.kv_width()));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let inputs = Inputs { q: &q, k: &k, v: &v, lengths: &lengths, dims, mask, scale };
        let (out, lse) = inputs.forward();
        let want = inputs.backward(&d_out);
        let wrong = Inputs { scale: scale * 1.1, ..inputs }.backward(&d_out);
        let heads = Heads { query: query_heads, key_value: kv_heads, dim: head_dim };
        if FORWARD_HEAD_DIMS.contains(&head_dim) {
            continue;
        }
        for mode in modes(head_dim, mask, &[Mode::Fast, Mode::Deterministic]) {
            let mut e = Emulator::default();
            let key_tiles = places(&lengths, rows(Pass::keys(mode, head_dim, mask), head_dim));
            let query_tiles = places(&lengths, rows(Pass::Queries, head_dim));
            let buffers = Backward {
                q: e.bf16(&q),
                k: e.bf16(&k),
                v: e.bf16(&v),
                out: e.bf16(&out),
                lse: e.f32(&lse),
                d_out: e.bf16(&d_out),
                key_places: upload(&mut e, &key_tiles),
                query_places: upload(&mut e, &query_tiles),
                delta: e.poison_f32(n * query_heads),
                sums: e.poison_f32(if mode == Mode::Deterministic {
                    0
                } else {
                    n * dims.q_width()
                }),
                d_q: e.poison_bf16(n * dims.q_width()),
                d_k: e.poison_bf16(n * dims.kv_width()),
                d_v: e.poison_bf16(n * dims.kv_width()),
            };
            let tiles = [key_tiles.len() / 4, query_tiles.len() / 4];
            e.run(&backward(buffers, n, tiles, heads, mask, scale, mode).unwrap());
            for (name, buffer, want, wrong) in [
                ("d_q", buffers.d_q, &want[0], &wrong[0]),
                ("d_k", buffers.d_k, &want[1], &wrong[1]),
                ("d_v", buffers.d_v, &want[2], &wrong[2]),
            ] {
                let (got, tolerance) = (e.read_bf16(buffer), tolerance(want));
                assert_close(&format!("{name} of case {number}, {mode:?}"), &got, want, tolerance);
                if n > 1 {
                    assert_differs("another scale", &got, wrong, tolerance);
                }
            }
        }
    }
}

/// Probabilities, their gradients and the result are each rounded to bf16 (2⁻⁹). Errors of a sum's
/// terms are independent, so the sum is off by a few 2⁻⁹ of the largest element.
fn tolerance(want: &[f32]) -> f32 {
    let largest = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    largest.max(1.0) * 6.0 / 512.0
}

#[test]
fn more_tokens_than_offsets_count_are_errors() {
    let heads = Heads { query: 32, key_value: 8, dim: 64 };
    let of = |n, mode| {
        let buffers = NOTHING;
        backward(buffers, n, [1, 1], heads, Mask::Full, 0.125, mode).is_ok()
    };
    let limit = (1 << 32) / (32 * 64);
    for mode in [Mode::Fast, Mode::Warpgroups] {
        assert_eq!([of(limit - 1, mode), of(limit, mode)], [true, false], "{mode:?}");
    }
    assert!(of(limit, Mode::Deterministic) && !of(8 * limit, Mode::Deterministic));
}

#[test]
fn heads_of_encoders_that_are_not_trained_have_no_backward_pass_and_others_no_pass_at_all() {
    let runs = |dim| {
        let heads = Heads { query: 2, key_value: 2, dim };
        let inputs = Forward { q: (), k: (), v: (), places: (), out: (), lse: () };
        let gradients = NOTHING;
        let mode = Mode::Deterministic;
        let backward = backward(gradients, 9, [1, 1], heads, Mask::Full, 0.1, mode);
        [forward(inputs, 9, 1, heads, Mask::Full, 0.1, mode).is_ok(), backward.is_ok()]
    };
    for dim in FORWARD_HEAD_DIMS {
        assert_eq!(runs(dim), [true, false], "{dim}");
    }
    assert_eq!([runs(64), runs(88)], [[true, true], [false, false]]);
}
