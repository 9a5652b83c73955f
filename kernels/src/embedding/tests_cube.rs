//! Tests of the embedding kernels against the reference, without a GPU.

use super::launch::{Backward, Runs, backward, forward};
use super::reference;
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs, indices, normal};

#[test]
fn rows_and_gradients_match_the_reference_and_repeated_ids_add_up() {
    for element in [Element::F32, Element::Bf16] {
        for (n, v, d) in [(1, 1, 1), (300, 7, 33), (17, 1000, 2304), (0, 5, 8)] {
            let ids = indices(4, n, v);
            let (table, d_out) = (inputs(1, element, v * d), inputs(2, element, n * d));
            let before = normal(3, v * d);
            let runs = Runs::new(&ids);
            let mut e = Emulator::default();
            let [table_buffer, d_out_buffer] = [&table, &d_out].map(|x| e.upload(element, x));
            let (ids_buffer, out) = (e.i32(&ids), e.poison(element, n * d));
            e.run(&forward([table_buffer, ids_buffer, out], 3.0, element, n, [v, d]).unwrap());
            let mut want = vec![0.0; n * d];
            reference::forward(&table, &ids, 3.0, d, &mut want);
            let name = format!("{element:?} {n} of {v}x{d}");
            assert_close(&name, &e.read(element, out), &want, rounding(element, 1e-6));
            let buffers = Backward {
                d_out: d_out_buffer,
                runs: [&runs.order, &runs.starts, &runs.ids].map(|x| e.i32(x)),
                d_table: e.f32(&before),
            };
            e.run(&backward(buffers, &runs, 3.0, element, [v, d]).unwrap());
            let mut want = before.clone();
            reference::backward(&ids, &d_out, 3.0, d, &mut want);
            // About 50 terms below 15 for each id, in f32.
            assert_close(&format!("{name}: d"), &e.read_f32(buffers.d_table), &want, 5e-5);
            if n > 1 {
                assert_differs(&name, &e.read_f32(buffers.d_table), &before, 5e-5);
            }
        }
    }
    assert!(forward([0, 1, 2], 1.0, Element::Bf16, 1, [1 << 24, 2048]).is_err());
}

#[test]
fn runs_name_every_position_once_by_id() {
    let runs = Runs::new(&[5, 2, 5, 9, 2, 5]);
    assert_eq!(runs.order, [1, 4, 0, 2, 5, 3]);
    assert_eq!(runs.starts, [0, 2, 5, 6]);
    assert_eq!(runs.ids, [2, 5, 9]);
    let none = Runs::new(&[]);
    assert_eq!((none.starts, none.ids), (vec![0], vec![]));
}
