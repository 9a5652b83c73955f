//! Benchmark of linear layers, norms, activations and the optimizer on the host, at the sizes of
//! the quickstart. It prints one line of JSON per measurement.
//!
//! `cargo bench -p vljepa-kernels --bench operations_host` runs it; `RAYON_NUM_THREADS` sets the
//! number of threads. A time is the shortest of the repetitions. `rate` is GFLOP/s for a product,
//! and GB/s of the bytes that an elementwise operation must read and write.
#![expect(clippy::print_stdout, reason = "the benchmark's result")]

use std::time::Instant;

use vljepa_kernels::activation::{self, Activation};
use vljepa_kernels::adamw::{self, Hyper};
use vljepa_kernels::testing::{bytes, normal};
use vljepa_kernels::{Result, Stream, View, ViewMut, Write};
use vljepa_kernels::{gated_mlp, global_norm, layer_norm, linear, patch_embed, rms_norm};

const STREAM: Stream = Stream::Host;

/// Number of tokens in a micro-batch.
const TOKENS: usize = 4096;

fn report(name: &str, work: usize, mut f: impl FnMut() -> Result<()>) -> Result<()> {
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (ms, rate) = (best * 1e3, work as f64 / best / 1e9);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(r#"{{"name":"{name}","cores":{threads},"ms":{ms:.4},"rate":{rate:.1}}}"#);
    Ok(())
}

fn products(rows: usize, inputs: usize, outputs: usize) -> Result<()> {
    let (x, w) = (normal(1, rows * inputs), normal(2, outputs * inputs));
    let (bias, d_out) = (normal(3, outputs), normal(4, rows * outputs));
    let (mut out, mut d_x) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
    let (mut d_w, mut d_b) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
    let (x, w) = (View::from_f32(&x, &[rows, inputs]), View::from_f32(&w, &[outputs, inputs]));
    let d_out = View::from_f32(&d_out, &[rows, outputs]);
    let bias = View::from_f32(&bias, &[outputs]);
    let work = 2 * rows * inputs * outputs;
    let size = format!("{rows}x{inputs}x{outputs}");
    report(&format!("linear_forward_{size}"), work, || {
        let out = ViewMut::from_f32(&mut out, &[rows, outputs]);
        linear::forward(&STREAM, x, w, Some(bias), Write::Set, out)
    })?;
    report(&format!("linear_backward_input_{size}"), work, || {
        let d_x = ViewMut::from_f32(&mut d_x, &[rows, inputs]);
        linear::backward_input(&STREAM, d_out, w, Write::Set, d_x)
    })?;
    report(&format!("linear_backward_weight_{size}"), work, || {
        let d_w = ViewMut::from_f32(&mut d_w, &[outputs, inputs]);
        let d_b = ViewMut::from_f32(&mut d_b, &[outputs]);
        linear::backward_weight(&STREAM, x, d_out, d_w, Some(d_b))
    })
}

fn norms(d: usize) -> Result<()> {
    let n = TOKENS;
    let (x, w, b, d_out) = (normal(1, n * d), normal(2, d), normal(3, d), normal(4, n * d));
    let (x, d_out) = (View::from_f32(&x, &[n, d]), View::from_f32(&d_out, &[n, d]));
    let (w, b) = (View::from_f32(&w, &[d]), View::from_f32(&b, &[d]));
    let (mut out, mut mean, mut rstd) = (vec![0.0; n * d], vec![0.0; n], vec![0.0; n]);
    let (mut d_w, mut d_b) = (vec![0.0; d], vec![0.0; d]);
    let eps = 1e-6;
    report(&format!("layer_norm_forward_{n}x{d}"), 8 * n * d, || {
        let out = ViewMut::from_f32(&mut out, &[n, d]);
        let mean = ViewMut::from_f32(&mut mean, &[n]);
        layer_norm::forward(&STREAM, x, w, b, eps, out, mean, ViewMut::from_f32(&mut rstd, &[n]))
    })?;
    report(&format!("layer_norm_backward_{n}x{d}"), 12 * n * d, || {
        let (mean, rstd) = (View::from_f32(&mean, &[n]), View::from_f32(&rstd, &[n]));
        let d_x = ViewMut::from_f32(&mut out, &[n, d]);
        let d_w = ViewMut::from_f32(&mut d_w, &[d]);
        let d_b = ViewMut::from_f32(&mut d_b, &[d]);
        layer_norm::backward(&STREAM, x, w, mean, rstd, d_out, Write::Set, d_x, d_w, d_b)
    })?;
    let plain = rms_norm::Scale::Plain;
    report(&format!("rms_norm_forward_{n}x{d}"), 8 * n * d, || {
        let out = ViewMut::from_f32(&mut out, &[n, d]);
        rms_norm::forward(&STREAM, x, w, plain, eps, out, ViewMut::from_f32(&mut rstd, &[n]))
    })?;
    report(&format!("rms_norm_backward_{n}x{d}"), 12 * n * d, || {
        let d_x = ViewMut::from_f32(&mut out, &[n, d]);
        let d_w = ViewMut::from_f32(&mut d_w, &[d]);
        let rstd = View::from_f32(&rstd, &[n]);
        rms_norm::backward(&STREAM, x, w, plain, rstd, d_out, Write::Add, d_x, d_w)
    })
}

fn activations(f: usize) -> Result<()> {
    let n = TOKENS;
    let (x, d_out) = (normal(1, n * 2 * f), normal(2, n * f));
    let (mut out, mut d_x) = (vec![0.0; n * f], vec![0.0; n * 2 * f]);
    let gate_up = View::from_f32(&x, &[n, 2 * f]);
    let (x, d_out) = (gate_up.rows(0, n / 2).reshaped(&[n, f]), View::from_f32(&d_out, &[n, f]));
    for (name, kind) in [("erf", Activation::Gelu), ("tanh", Activation::GeluTanh)] {
        report(&format!("gelu_{name}_forward_{n}x{f}"), 8 * n * f, || {
            activation::forward(&STREAM, x, kind, ViewMut::from_f32(&mut out, &[n, f]))
        })?;
        report(&format!("gelu_{name}_backward_{n}x{f}"), 12 * n * f, || {
            activation::backward(&STREAM, x, kind, d_out, ViewMut::from_f32(&mut out, &[n, f]))
        })?;
    }
    let silu = gated_mlp::Activation::Silu;
    report(&format!("gated_mlp_forward_{n}x{f}"), 12 * n * f, || {
        gated_mlp::forward(&STREAM, gate_up, silu, ViewMut::from_f32(&mut out, &[n, f]))
    })?;
    report(&format!("gated_mlp_backward_{n}x{f}"), 20 * n * f, || {
        let d_x = ViewMut::from_f32(&mut d_x, &[n, 2 * f]);
        gated_mlp::backward(&STREAM, gate_up, silu, d_out, d_x)
    })
}

fn optimizer(len: usize) -> Result<()> {
    let gradient = normal(1, len);
    let gradient = View::from_f32(&gradient, &[len]);
    let (mut w, mut m, mut v) = (normal(2, len), vec![0.0; len], vec![0.0; len]);
    let hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };
    report(&format!("adamw_{len}"), 28 * len, || {
        let [w, m, v] = [&mut w, &mut m, &mut v].map(|x| ViewMut::from_f32(x, &[len]));
        adamw::step(&STREAM, w, m, v, gradient, hyper, View::from_f32(&[1.0, 1.0], &[2]), None)
    })?;
    let mut sum = [0.0];
    report(&format!("squared_sum_{len}"), 4 * len, || {
        global_norm::squared_sum(&STREAM, gradient, ViewMut::from_f32(&mut sum, &[1]))
    })
}

fn pixels() -> Result<()> {
    let shape = [128, 8, 32, 32, 3];
    let frames = bytes(1, shape.iter().product());
    let (tokens, elements) = (128 * 4 * 16, 3 * 2 * 64);
    let mut out = vec![0.0; tokens * elements];
    report("patch_embed_unfold_128x8x32x32", 5 * frames.len(), || {
        let normalisation = patch_embed::Normalisation::IMAGENET;
        let (frames, out) =
            (View::from_u8(&frames, &shape), ViewMut::from_f32(&mut out, &[tokens, elements]));
        patch_embed::unfold(&STREAM, frames, normalisation, 2, 8, out)
    })
}

fn main() -> Result<()> {
    for (inputs, outputs) in [(64, 192), (64, 64), (64, 256), (256, 64), (384, 64)] {
        products(TOKENS, inputs, outputs)?;
    }
    products(512, 2048, 2048)?;
    norms(64)?;
    activations(160)?;
    optimizer(1 << 20)?;
    pixels()
}
