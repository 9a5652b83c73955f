//! Tests of rope: the host against the reference, the transpose against finite differences, and
//! V-JEPA 2's tiled tables.

use super::cases::{CASES, Case, Form, POSITIONS};
use super::{Heads, Pairing, Rotation, Table, on_host, reference};
use super::{inv_freq, rotate, rotate_backward, split, split_backward};
use crate::testing::{
    assert_close, assert_differs, dot, finite_difference, indices, normal, poison,
};
use crate::{Device, KernelError, Stream, Tensor, View, ViewMut};

/// Two products and a sum of numbers of magnitude up to 4, rounded once or three times:
/// 3 · 4 · 2⁻²⁴.
const TOLERANCE: f32 = 1e-6;

struct Parts {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Parts {
    fn poisoned(case: Case) -> Self {
        let Heads { query, key_value, dim } = case.heads;
        let of = |heads: usize| poison(case.tokens * heads * dim);
        Self { q: of(query), k: of(key_value), v: of(key_value) }
    }
}

fn split_on_host(case: Case, qkv: &[f32], table: &Table, positions: &[i32]) -> Parts {
    let Heads { query, key_value, dim } = case.heads;
    let n = case.tokens;
    let mut parts = Parts::poisoned(case);
    let positions = View::from_i32(positions, &[n]);
    split(
        &Stream::Host,
        View::from_f32(qkv, &[n, case.heads.width()]),
        case.heads,
        Some(Rotation { table, positions }),
        ViewMut::from_f32(&mut parts.q, &[n, query, dim]),
        ViewMut::from_f32(&mut parts.k, &[n, key_value, dim]),
        ViewMut::from_f32(&mut parts.v, &[n, key_value, dim]),
    )
    .unwrap();
    parts
}

#[test]
fn host_split_and_its_gradient_match_the_reference() {
    for (seed, case) in (0..).zip(CASES) {
        let (n, heads) = (case.tokens, case.heads);
        let table = case.table();
        let qkv = normal(seed, n * heads.width());
        let positions = indices(seed + 100, n, POSITIONS);
        let got = split_on_host(case, &qkv, &table, &positions);
        let places = View::from_i32(&positions, &[n]);
        let rotation = Rotation { table: &table, positions: places };
        let on = on_host("test", rotation, n, heads.dim).unwrap();
        let mut want = Parts::poisoned(case);
        reference::split(&qkv, heads, Some(on), [&mut want.q, &mut want.k, &mut want.v]);
        assert_close("q", &got.q, &want.q, TOLERANCE);
        assert_close("k", &got.k, &want.k, TOLERANCE);
        assert_close("v", &got.v, &want.v, TOLERANCE);
        if n > 1 {
            let shifted: Vec<i32> = positions.iter().map(|p| (p + 1) % 60).collect();
            let wrong = split_on_host(case, &qkv, &table, &shifted);
            assert_differs("shifted positions", &wrong.q, &want.q, TOLERANCE);
        }

        let (mut d_qkv, mut want_d) = (poison(qkv.len()), poison(qkv.len()));
        split_backward(
            &Stream::Host,
            View::from_f32(&got.q, &[n, heads.query, heads.dim]),
            View::from_f32(&got.k, &[n, heads.key_value, heads.dim]),
            View::from_f32(&got.v, &[n, heads.key_value, heads.dim]),
            heads,
            Some(rotation),
            ViewMut::from_f32(&mut d_qkv, &[n, heads.width()]),
        )
        .unwrap();
        reference::split_backward([&got.q, &got.k, &got.v], heads, Some(on), &mut want_d);
        assert_close("d_qkv", &d_qkv, &want_d, TOLERANCE);
    }
}

#[test]
fn gradients_match_finite_differences_where_the_two_angles_of_a_pair_differ() {
    let heads = Heads { query: 2, key_value: 1, dim: 16 };
    for form in [Form::Axial, Form::Half] {
        let case = Case { tokens: 3, heads, form };
        let (table, positions) = (case.table(), [59, 7, 22]);
        let qkv = normal(1, 3 * heads.width());
        let d = [(2, 2), (3, 1), (4, 1)].map(|(seed, heads)| normal(seed, 3 * heads * 16));
        let f = |x: &[f32]| {
            let parts = split_on_host(case, x, &table, &positions);
            dot(&parts.q, &d[0]) + dot(&parts.k, &d[1]) + dot(&parts.v, &d[2])
        };
        let want = finite_difference(&qkv, 0.25, f);
        let mut got = poison(qkv.len());
        let places = View::from_i32(&positions, &[3]);
        let mut back = |table: &Table| {
            split_backward(
                &Stream::Host,
                View::from_f32(&d[0], &[3, 2, 16]),
                View::from_f32(&d[1], &[3, 1, 16]),
                View::from_f32(&d[2], &[3, 1, 16]),
                heads,
                Some(Rotation { table, positions: places }),
                ViewMut::from_f32(&mut got, &[3, heads.width()]),
            )
            .unwrap();
            got.clone()
        };
        // The function is linear, so differences are exact except for f32 roundings of its outputs:
        // a few times 4 · 2⁻²⁴ / 0.25.
        assert_close("d_qkv", &back(&table), &want, 1e-5);
        // Rotation by the negated angle is the transpose only if both elements of a pair have the
        // same angle.
        let flip =
            |t: &Tensor| t.view().host_f32("test", "sin").unwrap().iter().map(|s| -s).collect();
        let forward_again = {
            let sin = Tensor::from_f32(flip(&table.sin), &[POSITIONS, 16]);
            let cos = Tensor::from_f32(table.cos.to_f32().unwrap().into_owned(), &[POSITIONS, 16]);
            let inverse = Table { cos, sin, pairing: table.pairing };
            let mut turned = d[0].clone();
            let rotation = Rotation { table: &inverse, positions: places };
            rotate(&Stream::Host, ViewMut::from_f32(&mut turned, &[3, 2, 16]), rotation).unwrap();
            turned
        };
        let want_q: Vec<f32> = want.chunks(heads.width()).flat_map(|r| r[..32].to_vec()).collect();
        match form {
            Form::Axial => assert_differs("negated angle", &forward_again, &want_q, 1e-5),
            Form::Half => assert_close("negated angle", &forward_again, &want_q, 1e-5),
        }
    }
}

#[test]
fn rotating_in_place_equals_rotating_while_splitting() {
    let case =
        Case { tokens: 70, heads: Heads { query: 3, key_value: 1, dim: 16 }, form: Form::Half };
    let (table, positions) = (case.table(), indices(3, 70, POSITIONS));
    let qkv = normal(4, 70 * case.heads.width());
    let parts = split_on_host(case, &qkv, &table, &positions);
    let mut q: Vec<f32> = qkv.chunks(case.heads.width()).flat_map(|r| r[..48].to_vec()).collect();
    let rotation = Rotation { table: &table, positions: View::from_i32(&positions, &[70]) };
    rotate(&Stream::Host, ViewMut::from_f32(&mut q, &[70, 3, 16]), rotation).unwrap();
    assert_eq!(q, parts.q);
    // Half pairs are true rotations: the transpose undoes them, up to the roundings of both.
    rotate_backward(&Stream::Host, ViewMut::from_f32(&mut q, &[70, 3, 16]), rotation).unwrap();
    let original: Vec<f32> =
        qkv.chunks(case.heads.width()).flat_map(|r| r[..48].to_vec()).collect();
    assert_close("there and back", &q, &original, 2.0 * TOLERANCE);
    assert_differs("only there", &parts.q, &original, 2.0 * TOLERANCE);
}

/// A table without V-JEPA 2's flaw: the two elements of each adjacent pair have the same angle.
fn interleaved(head_dim: usize, grid: [usize; 3]) -> Table {
    let tiled = Table::axial_tiled(Device::Host, head_dim, grid, 10_000.0).unwrap();
    let axis = 2 * (head_dim / 3 / 2);
    let spread = |t: &Tensor| {
        let values = t.to_f32().unwrap();
        let rows = values.chunks(head_dim).flat_map(|row| {
            let from = |i: usize| if i < 3 * axis { i / axis * axis + i % axis / 2 } else { i };
            (0..head_dim).map(move |i| row[from(i)])
        });
        Tensor::from_f32(rows.collect(), t.shape())
    };
    Table { cos: spread(&tiled.cos), sin: spread(&tiled.sin), pairing: Pairing::Adjacent }
}

#[test]
fn a_correct_interleaved_rope_differs_from_the_tiled_one_of_v_jepa_2() {
    let grid = [2, 16, 16];
    let tokens = 512;
    let positions: Vec<i32> = (0..512).collect();
    let places = View::from_i32(&positions, &[tokens]);
    let turned = |table: &Table| {
        let mut x = normal(9, tokens * 64);
        let rotation = Rotation { table, positions: places };
        rotate(&Stream::Host, ViewMut::from_f32(&mut x, &[tokens, 1, 64]), rotation).unwrap();
        x
    };
    let tiled = turned(&Table::axial_tiled(Device::Host, 64, grid, 10_000.0).unwrap());
    let correct = turned(&interleaved(64, grid));
    assert_differs("interleaved", &correct, &tiled, TOLERANCE);
    let norm = |x: &[f32]| dot(x, x);
    let original = normal(9, tokens * 64);
    assert!((norm(&correct) / norm(&original) - 1.0).abs() < 1e-6, "a true rotation keeps lengths");
    assert!((norm(&tiled) / norm(&original) - 1.0).abs() > 1e-4, "the tiled form does not");
    let last_four = |x: &[f32]| x.chunks(64).flat_map(|t| t[60..].to_vec()).collect::<Vec<_>>();
    assert_eq!(last_four(&tiled), last_four(&original));
}

#[test]
fn wrong_positions_and_shapes_are_errors() {
    let table = Table::rotate_half(Device::Host, 16, 8, &inv_freq(10_000.0, 16)).unwrap();
    let mut x = vec![0.0; 2 * 16];
    for bad in [[0, 8], [-1, 0]] {
        let rotation = Rotation { table: &table, positions: View::from_i32(&bad, &[2]) };
        let error = rotate(&Stream::Host, ViewMut::from_f32(&mut x, &[2, 1, 16]), rotation);
        assert!(matches!(error, Err(KernelError::Value { what: "position", .. })), "{error:?}");
    }
    let rotation = Rotation { table: &table, positions: View::from_i32(&[0, 1], &[2]) };
    for shape in [vec![2, 2, 8], vec![2, 16], vec![1, 2, 16]] {
        let error = rotate(&Stream::Host, ViewMut::from_f32(&mut x, &shape), rotation);
        assert!(matches!(error, Err(KernelError::Shape { .. })), "{shape:?}: {error:?}");
    }
    let error = split(
        &Stream::Host,
        View::from_f32(&[], &[2, 0]),
        Heads { query: 1, key_value: 0, dim: 0 },
        None,
        ViewMut::from_f32(&mut [], &[2, 1, 0]),
        ViewMut::from_f32(&mut [], &[2, 0, 0]),
        ViewMut::from_f32(&mut [], &[2, 0, 0]),
    );
    assert!(matches!(error, Err(KernelError::Value { what: "heads", .. })), "{error:?}");
}
