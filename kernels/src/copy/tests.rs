//! Tests of copies and sums on the host.

use super::{add, copy, moving_average};
use crate::testing::{assert_close, assert_differs, normal, poison};
use crate::{Stream, View, ViewMut};

#[test]
fn a_copy_is_equal_and_a_sum_is_added() {
    for len in [0, 1, 257, 40_001] {
        let x = normal(1, len);
        let mut y = poison(len);
        copy(&Stream::Host, View::from_f32(&x, &[len]), ViewMut::from_f32(&mut y, &[len])).unwrap();
        assert_eq!(x, y);
        add(&Stream::Host, View::from_f32(&x, &[len]), ViewMut::from_f32(&mut y, &[len])).unwrap();
        let want: Vec<f32> = x.iter().map(|v| 2.0 * v).collect();
        // Doubling is exact.
        assert_close("sum", &y, &want, 0.0);
        if len > 0 {
            assert_differs("sum", &y, &x, 0.0);
        }
    }
}

#[test]
fn a_moving_average_keeps_decay_of_itself_and_the_values_stay() {
    for len in [0, 1, 257, 40_001] {
        let (old, new) = (normal(1, len), normal(2, len));
        let mut both = [old.clone(), new.clone()].concat();
        moving_average(&Stream::Host, ViewMut::from_f32(&mut both, &[2, len]), 0.75).unwrap();
        let want: Vec<f32> = old.iter().zip(&new).map(|(a, b)| 0.75 * a + 0.25 * b).collect();
        assert_close("average", &both[..len], &want, 1e-6);
        assert_eq!(both[len..], new);
        if len > 0 {
            assert_differs("average", &both[..len], &old, 1e-3);
        }
    }
    let mut three = [0.0; 3];
    let wrong = ViewMut::from_f32(&mut three, &[3, 1]);
    assert!(moving_average(&Stream::Host, wrong, 0.5).is_err());
}

#[test]
fn lengths_and_types_must_agree() {
    let mut y = [0.0; 3];
    assert!(
        copy(&Stream::Host, View::from_f32(&[1.0], &[1]), ViewMut::from_f32(&mut y, &[3])).is_err()
    );
    let ids = [1, 2, 3];
    assert!(
        copy(&Stream::Host, View::from_i32(&ids, &[3]), ViewMut::from_f32(&mut y, &[3])).is_err()
    );
    assert!(
        add(&Stream::Host, View::from_i32(&ids, &[3]), ViewMut::from_f32(&mut y, &[3])).is_err()
    );
}
