//! Compares `VICReg` and `LeJEPA`'s loss with PyTorch, with the rows on one rank and on two.

use std::ops::Range;

use vljepa_kernels::testing::{assert_close, assert_differs};
use vljepa_kernels::{Tensor, View, copy};
use vljepa_model::loss::{EmbeddingGradients, RegularisedShare};
use vljepa_model::{SigReg, VicReg};

use crate::golden::{Golden, Machine};

#[derive(Clone, Copy)]
enum Regularised<'a> {
    VicReg(VicReg),
    SigReg(SigReg, View<'a>),
}

/// Shares and gradients of the rows of each rank, whose statistics are summed as the collectives of
/// a step sum them.
fn of_ranks(
    machine: &Machine,
    loss: Regularised<'_>,
    [predicted, target]: [View<'_>; 2],
    ranks: &[Range<usize>],
) -> Vec<(RegularisedShare, EmbeddingGradients)> {
    let (cx, g) = (machine.cx(), predicted.shape()[0]);
    let rows = |r: &Range<usize>| [predicted, target].map(|z| z.rows(r.start, r.end));
    let summed = |parts: Vec<&mut Tensor>| {
        let mut sum = vec![0.0; parts[0].shape().iter().product()];
        for part in &parts {
            sum.iter_mut().zip(&*part.to_f32().unwrap()).for_each(|(s, x)| *s += x);
        }
        for part in parts {
            let shape = part.shape().to_vec();
            copy::copy(cx.stream, View::from_f32(&sum, &shape), part.view_mut()).unwrap();
        }
    };
    match loss {
        Regularised::VicReg(loss) => {
            let mut sums: Vec<_> = ranks.iter().map(|r| loss.sums(cx, rows(r)).unwrap()).collect();
            summed(sums.iter_mut().collect());
            let moments = |r| loss.moments(cx, rows(r), sums[0].view(), g).unwrap();
            let mut moments: Vec<_> = ranks.iter().map(moments).collect();
            summed(moments.iter_mut().map(|m| &mut m.products).collect());
            let each = ranks.iter().zip(&moments);
            each.map(|(r, m)| loss.backward(cx, rows(r), m, g).unwrap()).collect()
        }
        Regularised::SigReg(loss, directions) => {
            let project = |r| {
                let mut own = cx.take(directions.shape()).unwrap();
                copy::copy(cx.stream, directions, own.view_mut()).unwrap();
                loss.project(cx, rows(r), own).unwrap()
            };
            let mut projected: Vec<_> = ranks.iter().map(project).collect();
            summed(projected.iter_mut().map(|p| &mut p.sums).collect());
            let each = ranks.iter().zip(&mut projected);
            each.map(|(r, p)| loss.backward(cx, rows(r), p, g).unwrap()).collect()
        }
    }
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "factors and losses are compared as f32")]
fn vic_reg_and_sig_reg_match_pytorch_on_one_rank_and_on_two() {
    let golden = Golden::open("regularised");
    let factor = |key: &str| golden.number(key) as f32;
    let tensor = |name: &str| View::from_f32(golden.get(name), golden.shape(name));
    let vic_reg = VicReg {
        invariance: factor("invariance"),
        variance: factor("variance"),
        covariance: factor("covariance"),
    };
    let directions = tensor("in.directions");
    let sig_reg = SigReg { weight: factor("weight"), directions: directions.shape()[0] };
    let right = [
        ("vic_reg", Regularised::VicReg(vic_reg)),
        ("sig_reg", Regularised::SigReg(sig_reg, directions)),
    ];
    let wrong = [
        Regularised::VicReg(VicReg { covariance: 0.98 * vic_reg.covariance, ..vic_reg }),
        Regularised::SigReg(SigReg { weight: 0.98 * sig_reg.weight, ..sig_reg }, directions),
    ];
    let machine = Machine::new();
    for batch in 0..2 {
        let embeddings = ["predicted", "target"].map(|side| tensor(&format!("in.{batch}.{side}")));
        for ((name, loss), wrong) in right.into_iter().zip(wrong) {
            let outcome = |loss, ranks: &[Range<usize>]| {
                let found = of_ranks(&machine, loss, embeddings, ranks);
                let sum: f64 = found.iter().map(|(share, _)| share.read().unwrap()).sum();
                let [mut d_p, mut d_t] = [Vec::new(), Vec::new()];
                for (_, d) in &found {
                    d_p.extend_from_slice(&d.predicted.to_f32().unwrap());
                    d_t.extend_from_slice(&d.target.to_f32().unwrap());
                }
                (sum as f32, d_p, d_t)
            };
            let want = |what: &str| golden.get(&format!("out.{batch}.{name}{what}"));
            for ends in [&[12][..], &[5, 12]] {
                let starts = [0].into_iter().chain(ends.iter().copied());
                let ranks: Vec<_> = starts.zip(ends).map(|(start, &end)| start..end).collect();
                let (sum, d_p, d_t) = outcome(loss, &ranks);
                let label = format!("{name} of batch {batch} on {} ranks", ranks.len());
                // Sums over 12 rows and 16 columns in f32, a few roundings of the largest term.
                assert_close(&label, &[sum], want(""), 2e-6);
                // Gradients of up to 1.5 by similar sums.
                assert_close(&label, &d_p, want(".d_predicted"), 3e-6);
                assert_close(&label, &d_t, want(".d_target"), 3e-6);
                let (sum, d_p, d_t) = outcome(wrong, &ranks);
                assert_differs(&label, &[sum], want(""), 2e-6);
                assert_differs(&label, &d_p, want(".d_predicted"), 3e-6);
                assert_differs(&label, &d_t, want(".d_target"), 3e-6);
            }
        }
    }
}
