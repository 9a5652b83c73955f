//! The kernels of rotary embedding against the reference, run by the emulator instead of a GPU.

use super::cases::{CASES, Form, POSITIONS};
use super::launch::{Parts, Rotation, merge, rotate, split};
use super::{HostRotation, Pairing, reference};
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs, indices};

#[test]
fn splits_merges_and_rotations_match_the_reference() {
    // Wide vectors, vectors of one pair, and vectors of one element; each pairing once in f32.
    let cases = CASES.into_iter().flat_map(|case| {
        let f32_too = case.tokens == 17 || case.tokens == 1;
        [Some(Element::Bf16), f32_too.then_some(Element::F32)].map(|e| e.map(|e| (case, e)))
    });
    for (case, element) in cases.flatten() {
        let (n, heads, table) = (case.tokens, case.heads, case.table());
        let positions = indices(9, n, POSITIONS);
        let (cos, sin) = (table.cos.view(), table.sin.view());
        let (cos, sin) = (cos.host_f32("t", "cos").unwrap(), sin.host_f32("t", "sin").unwrap());
        let pairing = table.pairing;
        let host = HostRotation { cos, sin, pairing, head_dim: heads.dim, positions: &positions };
        let sizes = [heads.query, heads.key_value, heads.key_value].map(|h| n * h * heads.dim);
        let qkv = inputs(1, element, n * heads.width());
        let parts = [0, 1, 2].map(|i| inputs(2 + i as u64, element, sizes[i]));
        for turned in [true, false] {
            let mut e = Emulator::default();
            let on_host = turned.then_some(host);
            let rotation = turned.then_some(Rotation {
                cos: e.f32(cos),
                sin: e.f32(sin),
                positions: e.i32(&positions),
                pairing,
            });
            let name = format!("{case:?} {element:?} turned {turned}");
            // Two products and a sum, in f32.
            let tolerance = rounding(element, 1e-6);
            let buffers = Parts {
                qkv: e.upload(element, &qkv),
                parts: sizes.map(|len| e.poison(element, len)),
            };
            e.run(&split(buffers, heads, rotation, element, n).unwrap());
            let mut want = sizes.map(|len| vec![0.0; len]);
            let [q, k, v] = &mut want;
            reference::split(&qkv, heads, on_host, [q, k, v]);
            for (buffer, want) in buffers.parts.into_iter().zip(&want) {
                assert_close(&name, &e.read(element, buffer), want, tolerance);
            }
            let buffers = Parts {
                qkv: e.poison(element, qkv.len()),
                parts: [0, 1, 2].map(|i| e.upload(element, &parts[i])),
            };
            e.run(&merge(buffers, heads, rotation, element, n).unwrap());
            let mut want = vec![0.0; qkv.len()];
            reference::split_backward([&parts[0], &parts[1], &parts[2]], heads, on_host, &mut want);
            let got = e.read(element, buffers.qkv);
            assert_close(&format!("{name}: d_qkv"), &got, &want, tolerance);
            if n > 1 {
                let other = if turned { None } else { Some(host) };
                reference::split_backward(
                    [&parts[0], &parts[1], &parts[2]],
                    heads,
                    other,
                    &mut want,
                );
                assert_differs(&name, &got, &want, tolerance);
            }
        }
    }
}

#[test]
fn rotations_in_place_match_the_reference_in_both_directions() {
    for case in [CASES[2], CASES[3], CASES[5]] {
        let (n, element, dim) = (case.tokens, Element::Bf16, case.heads.dim);
        let (heads, table) = (case.heads.query, case.table());
        let positions = indices(9, n, POSITIONS);
        let (cos, sin) = (table.cos.view(), table.sin.view());
        let (cos, sin) = (cos.host_f32("t", "cos").unwrap(), sin.host_f32("t", "sin").unwrap());
        let pairing = table.pairing;
        let host = HostRotation { cos, sin, pairing, head_dim: dim, positions: &positions };
        let x = inputs(1, element, n * heads * dim);
        for transposed in [false, true] {
            let mut e = Emulator::default();
            let rotation = Rotation {
                cos: e.f32(cos),
                sin: e.f32(sin),
                positions: e.i32(&positions),
                pairing,
            };
            let buffer = e.upload(element, &x);
            e.run(&rotate(buffer, rotation, transposed, element, [n, heads, dim]).unwrap());
            let of = |transposed| {
                let mut want = x.clone();
                reference::rotate(&mut want, heads, host, transposed);
                want
            };
            let tolerance = rounding(element, 1e-6);
            let name = format!("{case:?} transposed {transposed}");
            assert_close(&name, &e.read(element, buffer), &of(transposed), tolerance);
            assert_differs(&name, &e.read(element, buffer), &of(!transposed), tolerance);
        }
    }
}

#[test]
fn odd_heads_and_too_many_tokens_are_errors() {
    let rotation = Rotation { cos: 0, sin: 0, positions: 0, pairing: Pairing::Half };
    let run = |shape| rotate(0, rotation, false, Element::Bf16, shape);
    assert!(run([1, 1, 3]).is_err() && run([1, 1, 4]).is_ok());
    // 2^32 vectors of eight elements, and half as many
    assert!(run([1 << 25, 16, 64]).is_err() && run([1 << 24, 16, 64]).is_ok());
    assert!(matches!(CASES[1].form, Form::Axial));
}
