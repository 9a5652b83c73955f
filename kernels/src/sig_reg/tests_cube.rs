//! Tests of `SIGReg`'s kernels against the host, without a GPU.

use super::cases::CASES;
use super::launch::{add_sums, coefficients, gradients, workspace};
use super::{KNOTS, host};
use crate::compile::Element;
use crate::compile::emulator::Emulator;
use crate::testing::{assert_close, assert_differs, normal, poison};

#[test]
fn sums_statistics_and_gradients_match_the_host() {
    for (rows, directions) in CASES.into_iter().chain([(2100, 2)]) {
        let name = format!("{rows}x{directions}");
        let shape = [rows, directions];
        let x: Vec<f32> = normal(1, rows * directions).iter().map(|x| 2.0 * x).collect();
        let mut e = Emulator::default();
        let projections = e.f32(&x);
        let sums = e.f32(&vec![0.5; 2 * KNOTS * directions]);
        let partial = e.poison_f32(workspace(rows, directions));
        e.run(&add_sums([projections, partial, sums], shape).unwrap());
        let mut want = vec![0.5; 2 * KNOTS * directions];
        host::add_sums(&x, directions, &mut want);
        // Sums of at most 2,100 cosines, which differ by 2e-6 each, in another order.
        let tolerance = 1e-4;
        assert_close(&name, &e.read_f32(sums), &want, tolerance);
        let mut shifted = vec![0.5; 2 * KNOTS * directions];
        let other: Vec<f32> = x.iter().map(|x| x + 0.01).collect();
        host::add_sums(&other, directions, &mut shifted);
        assert_differs(&name, &e.read_f32(sums), &shifted, tolerance);

        let (global, factor) = (2.0 * 2100.0, 0.5);
        let (sums, terms) = (e.f32(&want), e.poison_f32(directions));
        e.run(&coefficients([sums, terms], global, factor, directions).unwrap());
        let mut want_terms = poison(directions);
        host::coefficients(&mut want, global, factor, &mut want_terms);
        // A few roundings of numbers up to 1, times g.
        assert_close(&name, &e.read_f32(terms), &want_terms, 1e-5);
        assert_close(&name, &e.read_f32(sums), &want, 2e-6);
        let coefficients = e.f32(&want);
        let mut want = poison(rows * directions);
        host::gradients(&x, &e.read_f32(coefficients), &mut want);
        let mut wrong = poison(rows * directions);
        host::gradients(&other, &e.read_f32(coefficients), &mut wrong);
        // 16 products of order 0.1, or half a unit in the last of 8 bits.
        for (element, tolerance) in [(Element::F32, 5e-6), (Element::Bf16, 1.0 / 256.0)] {
            let out = e.poison(element, rows * directions);
            e.run(&gradients([projections, coefficients, out], element, shape).unwrap());
            assert_close(&name, &e.read(element, out), &want, tolerance);
            if element == Element::F32 {
                assert_differs(&name, &e.read(element, out), &wrong, tolerance);
            }
        }
    }
}

#[test]
fn more_elements_than_offsets_count_are_errors() {
    assert!(add_sums([0; 3], [1 << 20, 1024]).is_ok());
    assert!(add_sums([0; 3], [1 << 22, 1024]).is_err());
    assert!(coefficients([0; 2], 1.0, 1.0, 1 << 22).is_err());
    assert!(gradients([0; 3], Element::Bf16, [1 << 22, 1024]).is_err());
}
