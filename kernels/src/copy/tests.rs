//! Tests of copies and sums on the host.

use super::{add, copy};
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
