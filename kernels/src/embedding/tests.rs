//! Tests of the embedding table on the host against numbers computed by hand and against finite
//! differences.

use super::{backward, forward};
use crate::testing::{
    assert_close, assert_differs, dot, finite_difference, indices, normal, poison,
};
use crate::{KernelError, Stream, View, ViewMut};

fn run(table: &[f32], ids: &[i32], scale: f32, d: usize) -> Vec<f32> {
    let mut out = poison(ids.len() * d);
    let table = View::from_f32(table, &[table.len() / d, d]);
    let out_view = ViewMut::from_f32(&mut out, &[ids.len(), d]);
    forward(&Stream::Host, table, View::from_i32(ids, &[ids.len()]), scale, out_view).unwrap();
    out
}

#[test]
fn ids_select_scaled_rows() {
    let (table, ids) = (normal(1, 7 * 3), [6, 0, 6]);
    let got = run(&table, &ids, 0.5, 3);
    let want: Vec<f32> = [6, 0, 6]
        .iter()
        .flat_map(|i| (0..3).map(move |j| (i, j)))
        .map(|(i, j)| 0.5 * table[i * 3 + j])
        .collect();
    assert_close("rows", &got, &want, 0.0);
    assert_differs("another id", &got, &run(&table, &[6, 1, 6], 0.5, 3), 0.0);
    assert!(run(&table, &[], 1.0, 3).is_empty());
}

#[test]
fn gradients_of_repeated_ids_add_up_as_finite_differences_say() {
    let (v, d) = (5, 3);
    for n in [1, 17, 257] {
        let (table, ids, r) = (normal(1, v * d), indices(2, n, v), normal(3, n * d));
        let mut got = vec![2.0; v * d];
        let r_view = View::from_f32(&r, &[n, d]);
        backward(&Stream::Host, &ids, r_view, 1.5, ViewMut::from_f32(&mut got, &[v, d])).unwrap();
        let numeric = finite_difference(&table, 0.25, |t| {
            2.0 * t.iter().map(|&x| f64::from(x)).sum::<f64>() + dot(&run(t, &ids, 1.5, d), &r)
        });
        // A linear function: up to 257 outputs of size 4 are rounded, √257 of them in effect, over
        // the step.
        let tolerance = 1.5 * 4.0 * 16.0 * f32::EPSILON / 0.25;
        assert_close("d_table", &got, &numeric, tolerance);
        got[usize::try_from(ids[0]).unwrap() * d] -= 1.0;
        assert_differs("one token left out", &got, &numeric, tolerance);
    }
}

#[test]
fn ids_outside_of_the_table_are_named_and_nothing_is_written() {
    let (table, mut out) = ([1.0; 6], [7.0; 4]);
    for bad in [3, -1] {
        let ids = [0, bad];
        let (table, ids) = (View::from_f32(&table, &[3, 2]), View::from_i32(&ids, &[2]));
        let out_view = ViewMut::from_f32(&mut out, &[2, 2]);
        let error = forward(&Stream::Host, table, ids, 1.0, out_view).unwrap_err();
        let KernelError::Value { what: "ids", found, .. } = error else { panic!("{error}") };
        assert_eq!(found, format!("{bad} at [1]"));
    }
    assert_close("out", &out, &[7.0; 4], 0.0);
}
