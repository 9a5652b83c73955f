//! The kernels of both normalisations against the references, run by the emulator instead of a GPU.

use super::cases::EPS;
use super::launch::{Backward, Form, Forward, backward, forward, workspace};
use super::{Input, Saved, reference};
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs};
use crate::{Write, rms_norm};

/// (rows, width): one row of one element, widths that no vector divides, widths of the model, no
/// rows.
const SIZES: [(usize, usize); 7] =
    [(1, 1), (17, 33), (257, 64), (3, 2048), (0, 8), (9, 1024), (5, 768)];

/// Tolerance for a few f32 roundings of sums of up to 2,048 terms.
fn tolerance(element: Element) -> f32 {
    rounding(element, 2e-5)
}

struct Case {
    form: Form,
    element: Element,
    n: usize,
    width: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in [Form::Layer, Form::Rms, Form::RmsOnePlus] {
        for element in [Element::F32, Element::Bf16] {
            cases.extend(SIZES.map(|(n, width)| Case { form, element, n, width }));
        }
    }
    cases
}

/// out, mean and rstd as the reference computes them.
fn reference_forward(case: &Case, x: &[f32], weight: &[f32], bias: &[f32]) -> [Vec<f32>; 3] {
    let (mut out, mut mean, mut rstd) = (vec![0.0; x.len()], vec![0.0; case.n], vec![0.0; case.n]);
    let width = case.width;
    match case.form {
        Form::Layer => {
            reference::forward(
                Input { x, weight, width },
                bias,
                EPS,
                &mut out,
                &mut mean,
                &mut rstd,
            );
        }
        Form::Rms | Form::RmsOnePlus => {
            rms_norm::reference_forward(
                x,
                weight,
                case.form == Form::RmsOnePlus,
                width,
                EPS,
                &mut out,
                &mut rstd,
            );
        }
    }
    [out, mean, rstd]
}

#[test]
fn forward_matches_the_references() {
    for case in cases() {
        let Case { form, element, n, width } = case;
        let name = format!("{form:?} {element:?} {n}x{width}");
        let x = inputs(1, element, n * width);
        let [weight, bias] = [3, 4].map(|seed| inputs(seed, element, width));
        let [want, want_mean, want_rstd] = reference_forward(&case, &x, &weight, &bias);
        let mut e = Emulator::default();
        let buffers = Forward {
            x: e.upload(element, &x),
            weight: e.upload(element, &weight),
            bias: (form == Form::Layer).then_some(e.upload(element, &bias)),
            out: e.poison(element, n * width),
            mean: (form == Form::Layer).then_some(e.poison_f32(n)),
            rstd: e.poison_f32(n),
        };
        e.run(&forward(buffers, form, element, n, width, EPS).unwrap());
        let out = e.read(element, buffers.out);
        assert_close(&format!("{name}: out"), &out, &want, tolerance(element));
        assert_close(&format!("{name}: rstd"), &e.read_f32(buffers.rstd), &want_rstd, 2e-5);
        if let Some(mean) = buffers.mean {
            assert_close(&format!("{name}: mean"), &e.read_f32(mean), &want_mean, 2e-6);
        }
        if n > 0 && width > 1 {
            let shifted: Vec<f32> = x.iter().map(|x| 1.1 * x + 0.2).collect();
            let wrong = reference_forward(&case, &shifted, &weight, &weight);
            assert_differs(&name, &out, &wrong[0], tolerance(element));
        }
    }
}

#[test]
fn backward_matches_the_references_and_adds_to_the_weights_gradients() {
    for case in cases() {
        let Case { form, element, n, width } = case;
        let [x, d_out, before] = [1, 2, 5].map(|seed| inputs(seed, element, n * width));
        let [weight, bias] = [3, 4].map(|seed| inputs(seed, element, width));
        let [_, mean, rstd] = reference_forward(&case, &x, &weight, &bias);
        for write in [Write::Set, Write::Add] {
            let name = format!("{form:?} {element:?} {n}x{width} {write:?}");
            let (mut d_x, mut d_weight, mut d_bias) =
                (before.clone(), weight.clone(), bias.clone());
            match form {
                Form::Layer => {
                    let input = Input { x: &x, weight: &weight, width };
                    let saved = Saved { mean: &mean, rstd: &rstd };
                    reference::backward(
                        input,
                        saved,
                        &d_out,
                        write,
                        &mut d_x,
                        &mut d_weight,
                        &mut d_bias,
                    );
                }
                Form::Rms | Form::RmsOnePlus => {
                    let one_plus = form == Form::RmsOnePlus;
                    let grads = (&mut d_x[..], &mut d_weight[..]);
                    rms_norm::reference_backward(
                        &x, &weight, one_plus, width, &rstd, &d_out, write, grads,
                    );
                }
            }
            let mut e = Emulator::default();
            let layer = form == Form::Layer;
            let buffers = Backward {
                x: e.upload(element, &x),
                weight: e.upload(element, &weight),
                mean: layer.then_some(e.f32(&mean)),
                rstd: e.f32(&rstd),
                d_out: e.upload(element, &d_out),
                d_x: e.upload(element, &before),
                partials: [0, 1].map(|_| e.poison_f32(workspace(n, width))),
                d_weight: e.f32(&weight),
                d_bias: layer.then_some(e.f32(&bias)),
            };
            e.run(&backward(buffers, form, element, n, width, write).unwrap());
            let got = e.read(element, buffers.d_x);
            assert_close(&format!("{name}: d_x"), &got, &d_x, tolerance(element) + 3e-5);
            // Sums over up to 257 rows of terms below 10, in f32.
            assert_close(
                &format!("{name}: d_weight"),
                &e.read_f32(buffers.d_weight),
                &d_weight,
                1e-4,
            );
            if let Some(buffer) = buffers.d_bias {
                assert_close(&format!("{name}: d_bias"), &e.read_f32(buffer), &d_bias, 1e-4);
            }
            if n > 0 && width > 1 {
                assert_differs(&name, &got, &before, tolerance(element));
                assert_differs(&name, &e.read_f32(buffers.d_weight), &weight, 1e-4);
            }
        }
    }
}
