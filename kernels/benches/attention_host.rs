//! Benchmark of attention on the host, forward and backward, at the shapes of the quickstart and at
//! long ones. It prints one line of JSON per case.
//!
//! `cargo bench -p vljepa-kernels --bench attention_host` runs it; `RAYON_NUM_THREADS` sets the
//! number of threads. A time is the shortest of the repetitions. `forward_gflops` counts two
//! products, `backward_gflops` five.

use std::time::Instant;

use vljepa_kernels::attention::{Mask, backward, forward};
use vljepa_kernels::testing::{Random, normal};
use vljepa_kernels::{Device, Lengths, Stream, View, ViewMut};

struct Case {
    name: &'static str,
    lengths: Vec<i32>,
    heads: [usize; 3],
    mask: Mask,
}

/// Lengths of `count` captions: 16 to 45 tokens each.
fn captions(count: usize) -> Vec<i32> {
    let mut random = Random::new(7);
    (0..count).map(|_| 16 + i32::try_from(random.below(30)).expect("below 30")).collect()
}

fn cases() -> Vec<Case> {
    let case = |name, lengths, heads| Case { name, lengths, heads, mask: Mask::Full };
    vec![
        case("quickstart_x_encoder", vec![32; 128], [4, 4, 16]),
        case("quickstart_predictor", vec![44; 128], [4, 2, 16]),
        case("quickstart_captions", captions(260), [4, 2, 16]),
        case("image", vec![256; 8], [16, 16, 64]),
        case("eight_frames", vec![1024; 1], [16, 16, 64]),
        case("long", vec![4096; 1], [2, 2, 64]),
    ]
}

fn best_ms(repetitions: usize, mut f: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..repetitions).map(once).fold(f64::INFINITY, f64::min)
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn main() {
    for Case { name, lengths, heads: [h, g, hd], mask } in cases() {
        let ends = lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        });
        let packed = Lengths::new(Device::Host, std::iter::once(0).chain(ends).collect())
            .expect("the host has memory");
        let n = packed.tokens();
        let (q, k, v) = (normal(1, n * h * hd), normal(2, n * g * hd), normal(3, n * g * hd));
        let d_out = normal(4, n * h * hd);
        let (mut out, mut lse) = (vec![0.0; n * h * hd], vec![0.0; n * h]);
        let (mut d_q, mut d_k, mut d_v) = (q.clone(), k.clone(), v.clone());
        let (q_shape, kv_shape) = ([n, h, hd], [n, g, hd]);
        let inputs = [(&q, q_shape), (&k, kv_shape), (&v, kv_shape)];
        let [q, k, v] = inputs.map(|(x, shape)| View::from_f32(x, &shape));
        let (stream, scale) = (Stream::Host, 0.25);
        let macs: f64 = lengths.iter().map(|&l| f64::from(l) * f64::from(l)).sum::<f64>()
            * f64::from(u32::try_from(h * hd).expect("small"));
        let repetitions = if macs > 1e9 { 5 } else { 101 };
        let forward_ms = best_ms(repetitions, || {
            let out = ViewMut::from_f32(&mut out, &q_shape);
            let lse = ViewMut::from_f32(&mut lse, &q_shape[..2]);
            forward(&stream, q, k, v, &packed, mask, scale, out, lse).expect("shapes fit");
        });
        let (out, lse) = (View::from_f32(&out, &q_shape), View::from_f32(&lse, &q_shape[..2]));
        let d_out = View::from_f32(&d_out, &q_shape);
        let backward_ms = best_ms(repetitions, || {
            let d_q = ViewMut::from_f32(&mut d_q, &q_shape);
            let d_k = ViewMut::from_f32(&mut d_k, &kv_shape);
            let d_v = ViewMut::from_f32(&mut d_v, &kv_shape);
            backward(&stream, q, k, v, out, lse, d_out, &packed, mask, scale, d_q, d_k, d_v)
                .expect("shapes fit");
        });
        let (fast, slow) = (4.0 * macs / forward_ms / 1e6, 10.0 * macs / backward_ms / 1e6);
        println!(
            "{{\"case\":\"{name}\",\"tokens\":{n},\"forward_ms\":{forward_ms:.4},\
             \"backward_ms\":{backward_ms:.4},\"forward_gflops\":{fast:.1},\"backward_gflops\":{slow:.1}}}"
        );
    }
}
