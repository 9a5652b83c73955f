//! Benchmark of every kernel on a GPU at the shapes of VL-JEPA's step, and of the machine's
//! ceilings. It prints one line of JSON per measurement, for comparison with `torch_kernels.py`.
//!
//! `cargo bench -p vljepa-kernels --features cuda --bench operations_gpu` runs all sections; names
//! of sections (`attention norms`) select them. A time is the median of the repetitions, measured
//! between two events. If a section fails, the benchmark reports it, continues with the next one
//! and exits with status 1.
//!
//! `share` is the fraction of the ceiling that is measured at the start: the bytes per second of a
//! copy for memory-bound operations, the operations per second of the largest product for
//! compute-bound ones.
//!
//! `VLJEPA_NVRTC`, `VLJEPA_CUDA_INCLUDE` and `VLJEPA_CUBLASLT` name NVRTC, its headers and cuBLASLt
//! if the search does not find them. `VLJEPA_TEST_KERNELS` names a folder of cubins that were
//! compiled ahead. `--small` runs tiny shapes, which only shows that the benchmark works;
//! `--emulated` (feature `emulator`) runs them without a GPU.
#![expect(clippy::print_stdout, reason = "a benchmark")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use vljepa_kernels::activation::{self, Activation};
use vljepa_kernels::adamw::{self, Hyper};
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::attention::{self, Mask};
use vljepa_kernels::compile::{Cache, Compiler, Nvrtc};
use vljepa_kernels::device::cuda::{Cuda, CudaStream, Lane};
use vljepa_kernels::library::Libraries;
use vljepa_kernels::patch_embed::{self, Normalisation};
use vljepa_kernels::rms_norm::{self, Scale};
use vljepa_kernels::rope::{self, Heads, Rotation, Table};
use vljepa_kernels::testing::{bytes, normal};
use vljepa_kernels::{DType, Device, Lengths, Result, Stream, Tensor, View, Write};
use vljepa_kernels::{copy, embedding, gated_mlp, global_norm, info_nce, layer_norm, linear};
use vljepa_kernels::{normalize, pooling};

/// Work that bounds the time of an operation from below.
enum Bound {
    /// Bytes that the operation must move.
    Memory(usize),
    /// Arithmetic operations that the operation must execute.
    Arithmetic(usize),
}

struct Bench {
    device: Device,
    stream: Stream,
    cuda: CudaStream,
    mode: Mode,
    tiny: bool,
    /// Bytes per second and arithmetic operations per second that this machine reaches.
    ceilings: [f64; 2],
}

fn open(
    mode: Mode,
    emulated: bool,
) -> std::result::Result<&'static Cuda, Box<dyn std::error::Error>> {
    if emulated {
        #[cfg(feature = "emulator")]
        return Ok(Cuda::for_tests(mode));
        #[cfg(not(feature = "emulator"))]
        return Err("--emulated needs feature `emulator`".into());
    }
    let libraries = Libraries::of(|name| std::env::var_os(name)?.into_string().ok());
    let nvrtc = Nvrtc::open(&libraries)?;
    let folder = std::env::var_os("VLJEPA_TEST_KERNELS")
        .map_or_else(|| std::env::temp_dir().join("vljepa-test-kernels"), PathBuf::from);
    let cache = Cache::new(&folder);
    Ok(Cuda::open(0, Compiler::new(nvrtc, "sm_90a", Some(cache)), &libraries, mode)?)
}

impl Bench {
    fn open(
        mode: Mode,
        emulated: bool,
        tiny: bool,
    ) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        let cuda = open(mode, emulated)?;
        let device = Device::Cuda(cuda);
        let (stream, cuda) = (device.compute_stream(), CudaStream::new(cuda, Lane::Compute));
        Ok(Self { device, stream, cuda, mode, tiny, ceilings: [f64::NAN; 2] })
    }

    /// `full`, or `tiny` if the benchmark only checks that it works.
    fn size(&self, full: usize, tiny: usize) -> usize {
        if self.tiny { tiny } else { full }
    }

    /// Normal bf16 numbers: a million different ones, repeated.
    fn numbers(&self, shape: &[usize]) -> Result<Tensor> {
        let len: usize = shape.iter().product();
        let some: Vec<_> =
            normal(1, len.min(1 << 20)).into_iter().map(half::bf16::from_f32).collect();
        let all = some.iter().copied().cycle().take(len).collect();
        Tensor::from_bf16(all, shape).on(self.device)
    }

    fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        Tensor::zeros(self.device, dtype, shape)
    }

    fn milliseconds(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        if self.tiny {
            return self.cuda.time(&mut work);
        }
        for _ in 0..3 {
            work()?;
        }
        // A time includes what the host needs to issue the first run, so that it should cover
        // milliseconds of work.
        let once = self.cuda.time(&mut work)?;
        let runs = (1..20_u32).find(|&n| f64::from(n) * once >= 2.0).unwrap_or(20);
        let mut times = Vec::new();
        for _ in 0..15 {
            let ms = self.cuda.time(|| (0..runs).try_for_each(|_| work()))?;
            times.push(ms / f64::from(runs));
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Measures `work` and prints the result. Returns bytes or operations per second.
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
    fn row(
        &self,
        what: &str,
        shape: &[usize],
        bound: &Bound,
        work: impl FnMut() -> Result<()>,
    ) -> Result<f64> {
        let ms = self.milliseconds(work)?;
        let (count, unit, scale, ceiling) = match bound {
            Bound::Memory(bytes) => (*bytes, "GB_per_s", 1e9, self.ceilings[0]),
            Bound::Arithmetic(operations) => (*operations, "tflops", 1e12, self.ceilings[1]),
        };
        let rate = count as f64 / ms * 1e3;
        let share = if ceiling.is_nan() {
            String::new()
        } else {
            format!(r#","share":{:.3}"#, rate / ceiling)
        };
        println!(
            r#"{{"peer":"vljepa","what":"{what}","shape":{shape:?},"ms":{ms:.4},"{unit}":{:.1}{share}}}"#,
            rate / scale
        );
        Ok(rate)
    }

    fn ceilings(&mut self) -> Result<()> {
        let n = self.size(1 << 30, 1 << 12);
        let (from, mut to) = (self.zeros(DType::Bf16, &[n])?, self.zeros(DType::Bf16, &[n])?);
        let bytes = self.row("copy", &[n], &Bound::Memory(4 * n), || {
            copy::copy(&self.stream, from.view(), to.view_mut())
        })?;
        drop((from, to));
        let mut best = 0.0_f64;
        for m in [self.size(4096, 64), self.size(8192, 64)] {
            best = best.max(self.product(m, m, m)?);
        }
        self.ceilings = [bytes, best];
        Ok(())
    }

    fn product(&self, rows: usize, outputs: usize, inputs: usize) -> Result<f64> {
        let (x, w) = (self.numbers(&[rows, inputs])?, self.numbers(&[outputs, inputs])?);
        let mut out = self.zeros(DType::Bf16, &[rows, outputs])?;
        let (shape, work) =
            ([rows, outputs, inputs], Bound::Arithmetic(2 * rows * outputs * inputs));
        self.row("gemm", &shape, &work, || {
            linear::forward(&self.stream, x.view(), w.view(), None, Write::Set, out.view_mut())
        })
    }

    /// The products of a layer, forward and backward, with the number of tokens of a step.
    fn products(&self) -> Result<()> {
        for [rows, outputs, inputs] in
            [[32_768, 2048, 8192], [32_768, 8192, 2048], [32_768, 4096, 1024], [32_768, 1152, 768]]
        {
            let [rows, outputs, inputs] = [rows, outputs, inputs].map(|n| self.size(n, 64));
            self.product(rows, outputs, inputs)?;
            let (x, d_out) = (self.numbers(&[rows, inputs])?, self.numbers(&[rows, outputs])?);
            let w = self.numbers(&[outputs, inputs])?;
            let mut d_x = self.zeros(DType::Bf16, &[rows, inputs])?;
            let mut d_w = self.zeros(DType::F32, &[outputs, inputs])?;
            let (shape, work) =
                ([rows, outputs, inputs], Bound::Arithmetic(2 * rows * outputs * inputs));
            self.row("gemm_backward_input", &shape, &work, || {
                let d_x = d_x.view_mut();
                linear::backward_input(&self.stream, d_out.view(), w.view(), Write::Set, d_x)
            })?;
            self.row("gemm_backward_weight", &shape, &work, || {
                let d_w = d_w.view_mut();
                linear::backward_weight(&self.stream, x.view(), d_out.view(), d_w, None)
            })?;
        }
        self.products_with_bias()
    }

    /// A product of the X-encoder with its bias alone, added to a residual stream in place, and
    /// added to one that stays.
    fn products_with_bias(&self) -> Result<()> {
        let [rows, outputs, inputs] = [32_768, 1024, 4096].map(|n| self.size(n, 64));
        let (x, w) = (self.numbers(&[rows, inputs])?, self.numbers(&[outputs, inputs])?);
        let (bias, residual) = (self.numbers(&[outputs])?, self.numbers(&[rows, outputs])?);
        let mut out = self.zeros(DType::Bf16, &[rows, outputs])?;
        let (shape, work) =
            ([rows, outputs, inputs], Bound::Arithmetic(2 * rows * outputs * inputs));
        let (s, x, w, bias) = (&self.stream, x.view(), w.view(), Some(bias.view()));
        for (what, write) in [("gemm_bias", Write::Set), ("gemm_bias_in_place", Write::Add)] {
            self.row(what, &shape, &work, || {
                linear::forward(s, x, w, bias, write, out.view_mut())
            })?;
        }
        self.row("gemm_bias_onto", &shape, &work, || {
            linear::forward_onto(s, x, w, bias, residual.view(), out.view_mut())
        })?;
        Ok(())
    }

    fn attention(&self, name: &str) -> Result<()> {
        for (model, b, l, h, kv, d, mask) in [
            ("vit", 128, 256, 16, 16, 64, Mask::Full),
            ("vit", 32, 1024, 16, 16, 64, Mask::Full),
            ("vit", 16, 2048, 16, 16, 64, Mask::Full),
            ("vit", 8, 4096, 16, 16, 64, Mask::Full),
            ("llama", 128, 256, 32, 8, 64, Mask::Full),
            ("llama", 32, 1024, 32, 8, 64, Mask::Full),
            ("llama", 8, 4096, 32, 8, 64, Mask::Full),
            ("gemma", 512, 64, 3, 1, 256, Mask::Full),
            ("gemma", 64, 512, 3, 1, 256, Mask::Full),
        ] {
            let (b, l, h) = (self.size(b, 1), self.size(l, 64), self.size(h, kv.min(2) * h / kv));
            let kv = self.size(kv, kv.min(2));
            let (n, scale) = (b * l, 0.125);
            let lengths = Lengths::uniform(self.device, b, l)?;
            let [q, d_out] = [self.numbers(&[n, h, d])?, self.numbers(&[n, h, d])?];
            let [k, v] = [self.numbers(&[n, kv, d])?, self.numbers(&[n, kv, d])?];
            let (mut out, mut lse) =
                (self.zeros(DType::Bf16, &[n, h, d])?, self.zeros(DType::F32, &[n, h])?);
            let mut d_q = self.zeros(DType::Bf16, &[n, h, d])?;
            let [mut d_k, mut d_v] =
                [self.zeros(DType::Bf16, &[n, kv, d])?, self.zeros(DType::Bf16, &[n, kv, d])?];
            let (q, k, v, d_out) = (q.view(), k.view(), v.view(), d_out.view());
            let (shape, operations) = ([b, l, h, kv, d], 4 * b * h * l * l * d);
            let what = |pass: &str| format!("attention_{model}_{pass}{name}");
            self.row(&what("forward"), &shape, &Bound::Arithmetic(operations), || {
                let (out, lse) = (out.view_mut(), lse.view_mut());
                attention::forward(&self.stream, q, k, v, &lengths, mask, scale, out, lse)
            })?;
            let (out, lse) = (out.view(), lse.view());
            let work = Bound::Arithmetic(operations / 2 * 5);
            self.row(&what("backward"), &shape, &work, || {
                let d = (d_q.view_mut(), d_k.view_mut(), d_v.view_mut());
                attention::backward(
                    &self.stream,
                    q,
                    k,
                    v,
                    out,
                    lse,
                    d_out,
                    &lengths,
                    mask,
                    scale,
                    d.0,
                    d.1,
                    d.2,
                )
            })?;
        }
        Ok(())
    }

    /// The rows of one rank against the whole batch, then the whole batch against itself.
    fn info_nce(&self) -> Result<()> {
        let (g, e) = (self.size(24_576, 128), self.size(1536, 32));
        let all = {
            let (mut out, mut norm) =
                (self.zeros(DType::Bf16, &[g, e])?, self.zeros(DType::F32, &[g])?);
            let x = self.numbers(&[g, e])?;
            normalize::forward(&self.stream, x.view(), 1e-12, out.view_mut(), norm.view_mut())?;
            out
        };
        let (b, alpha) = (self.size(128, 64), 1.0 / 0.07);
        let rows = all.view().rows(0, b);
        let [mut lse, mut diagonal, mut d_scale] = [
            self.zeros(DType::F32, &[b])?,
            self.zeros(DType::F32, &[b])?,
            self.zeros(DType::F32, &[1])?,
        ];
        let all_lse = self.zeros(DType::F32, &[g])?;
        let mut d = self.zeros(DType::F32, &[b, e])?;
        let (shape, product) = ([b, g, e], 2 * b * g * e);
        self.row("info_nce_statistics", &shape, &Bound::Arithmetic(product), || {
            let (l, s) = (lse.view_mut(), diagonal.view_mut());
            info_nce::statistics(&self.stream, rows, all.view(), alpha, 0, None, l, s)
        })?;
        self.row("info_nce_backward", &shape, &Bound::Arithmetic(2 * product), || {
            let (l, c, s) = (lse.view(), all_lse.view(), Some(d_scale.view_mut()));
            let d = d.view_mut();
            info_nce::backward(&self.stream, rows, all.view(), l, c, alpha, 0, None, d, s)
        })?;
        self.info_nce_both(all.view(), alpha)
    }

    /// Both sides of a batch that is entirely on one GPU: four products.
    fn info_nce_both(&self, all: View<'_>, alpha: f32) -> Result<()> {
        let [g, e] = [all.shape()[0], all.shape()[1]];
        let batch = info_nce::Batch { predicted: all, target: all, hashes: None, rows: 0..g };
        let vector = || self.zeros(DType::F32, &[g]);
        let (mut r, mut c, mut diagonal) = (vector()?, vector()?, vector()?);
        let (mut d_p, mut d_t) =
            (self.zeros(DType::F32, &[g, e])?, self.zeros(DType::F32, &[g, e])?);
        let mut d_scale = self.zeros(DType::F32, &[1])?;
        let (shape, product) = ([g, g, e], 2 * g * g * e);
        self.row("info_nce_both_statistics", &shape, &Bound::Arithmetic(product), || {
            let (r, c, s) = (r.view_mut(), c.view_mut(), diagonal.view_mut());
            info_nce::both_statistics(&self.stream, &batch, alpha, r, c, s)
        })?;
        self.row("info_nce_both_gradients", &shape, &Bound::Arithmetic(3 * product), || {
            let (r, c, scale) = (r.view(), c.view(), Some(d_scale.view_mut()));
            let (d_p, d_t) = (d_p.view_mut(), d_t.view_mut());
            info_nce::both_gradients(&self.stream, &batch, r, c, alpha, d_p, d_t, scale)
        })?;
        Ok(())
    }

    /// The optimizer's pass over the trained parameters, and the global norm that precedes it.
    fn optimizer(&self) -> Result<()> {
        let n = self.size(790_000_000, 4096);
        let zeros = || self.zeros(DType::F32, &[n]);
        let (mut w, mut m, mut v, gradient) = (zeros()?, zeros()?, zeros()?, zeros()?);
        let mut rounded = self.zeros(DType::Bf16, &[n])?;
        let control = Tensor::from_f32(vec![1.0, 1.0], &[2]).on(self.device)?;
        let hyper =
            Hyper { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, step: 1 };
        self.row("adamw", &[n], &Bound::Memory(30 * n), || {
            let (w, m, v) = (w.view_mut(), m.view_mut(), v.view_mut());
            let (gradient, copy) = (gradient.view(), Some(rounded.view_mut()));
            adamw::step(&self.stream, w, m, v, gradient, hyper, control.view(), copy)
        })?;
        let mut sum = self.zeros(DType::F32, &[1])?;
        self.row("squared_sum", &[n], &Bound::Memory(4 * n), || {
            global_norm::squared_sum(&self.stream, gradient.view(), sum.view_mut())
        })?;
        Ok(())
    }

    fn norms(&self) -> Result<()> {
        for (n, d) in [(65_536, 1024), (65_536, 2048), (16_384, 768)] {
            let n = self.size(n, 64);
            let (x, d_out) = (self.numbers(&[n, d])?, self.numbers(&[n, d])?);
            let (w, bias) = (self.numbers(&[d])?, self.numbers(&[d])?);
            let [mut out, mut d_x] =
                [self.zeros(DType::Bf16, &[n, d])?, self.zeros(DType::Bf16, &[n, d])?];
            let [mut mean, mut rstd] =
                [self.zeros(DType::F32, &[n])?, self.zeros(DType::F32, &[n])?];
            let [mut d_w, mut d_b] = [self.zeros(DType::F32, &[d])?, self.zeros(DType::F32, &[d])?];
            let (s, x, w) = (&self.stream, x.view(), w.view());
            let (forward, backward) = (Bound::Memory(4 * n * d), Bound::Memory(8 * n * d));
            self.row("layer_norm", &[n, d], &forward, || {
                let (out, mean, rstd) = (out.view_mut(), mean.view_mut(), rstd.view_mut());
                layer_norm::forward(s, x, w, bias.view(), 1e-6, out, mean, rstd)
            })?;
            self.row("layer_norm_backward_add", &[n, d], &backward, || {
                let (mean, rstd, d_out) = (mean.view(), rstd.view(), d_out.view());
                let (d_x, d_w, d_b) = (d_x.view_mut(), d_w.view_mut(), d_b.view_mut());
                layer_norm::backward(s, x, w, mean, rstd, d_out, Write::Add, d_x, d_w, d_b)
            })?;
            self.row("rms_norm", &[n, d], &forward, || {
                let (out, rstd) = (out.view_mut(), rstd.view_mut());
                rms_norm::forward(s, x, w, Scale::Plain, 1e-5, out, rstd)
            })?;
            self.row("rms_norm_backward_add", &[n, d], &backward, || {
                let (rstd, d_out) = (rstd.view(), d_out.view());
                let (d_x, d_w) = (d_x.view_mut(), d_w.view_mut());
                rms_norm::backward(s, x, w, Scale::Plain, rstd, d_out, Write::Add, d_x, d_w)
            })?;
        }
        Ok(())
    }

    fn activations(&self) -> Result<()> {
        let (n, f) = (self.size(32_768, 64), self.size(8192, 64));
        let (x, d_out) = (self.numbers(&[n, 2 * f])?, self.numbers(&[n, f])?);
        let (mut out, mut d_x) =
            (self.zeros(DType::Bf16, &[n, f])?, self.zeros(DType::Bf16, &[n, 2 * f])?);
        let (s, silu) = (&self.stream, gated_mlp::Activation::Silu);
        self.row("gated_mlp", &[n, f], &Bound::Memory(6 * n * f), || {
            gated_mlp::forward(s, x.view(), silu, out.view_mut())
        })?;
        self.row("gated_mlp_backward", &[n, f], &Bound::Memory(10 * n * f), || {
            gated_mlp::backward(s, x.view(), silu, d_out.view(), d_x.view_mut())
        })?;
        let x = x.view().rows(0, n / 2).reshaped(&[n, f]);
        self.row("gelu", &[n, f], &Bound::Memory(4 * n * f), || {
            activation::forward(s, x, Activation::Gelu, out.view_mut())
        })?;
        self.row("gelu_backward", &[n, f], &Bound::Memory(6 * n * f), || {
            activation::backward(s, x, Activation::Gelu, d_out.view(), out.view_mut())
        })?;
        Ok(())
    }

    fn tokens(&self) -> Result<()> {
        let s = &self.stream;
        let (b, l) = (self.size(128, 2), self.size(256, 16));
        for heads in [
            Heads { query: 16, key_value: 16, dim: 64 },
            Heads { query: 32, key_value: 8, dim: 64 },
        ] {
            let (n, width) = (b * l, heads.width());
            let qkv = self.numbers(&[n, width])?;
            let mut q = self.zeros(DType::Bf16, &[n, heads.query, heads.dim])?;
            let shape = [n, heads.key_value, heads.dim];
            let [mut k, mut v] =
                [self.zeros(DType::Bf16, &shape)?, self.zeros(DType::Bf16, &shape)?];
            let table =
                Table::rotate_half(self.device, heads.dim, l, &rope::inv_freq(1e4, heads.dim))?;
            let places = (0..b).flat_map(|_| 0..i32::try_from(l).unwrap_or(0)).collect();
            let positions = Tensor::from_i32(places, &[n]).on(self.device)?;
            let rotation = Some(Rotation { table: &table, positions: positions.view() });
            self.row("rope_split", &[n, width], &Bound::Memory(4 * n * width), || {
                let (q, k, v) = (q.view_mut(), k.view_mut(), v.view_mut());
                rope::split(s, qkv.view(), heads, rotation, q, k, v)
            })?;
        }
        let (side, d) = (self.size(256, 32), 768 * 2);
        let shape = [b, 2, side, side, 3];
        let frames = Tensor::from_u8(bytes(1, shape.iter().product()), &shape).on(self.device)?;
        let n = b * (side / 16) * (side / 16);
        let mut patches = self.zeros(DType::Bf16, &[n, d])?;
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.25; 3] };
        self.row("patch_embed", &[n, d], &Bound::Memory(3 * n * d), || {
            patch_embed::unfold(s, frames.view(), normalisation, 2, 16, patches.view_mut())
        })?;
        let (vocabulary, d, n) = (self.size(262_144, 256), self.size(768, 32), self.size(8192, 64));
        let table = self.numbers(&[vocabulary, d])?;
        let ids = (0..i32::try_from(n).unwrap_or(0)).map(|i| i * 31 % 128).collect();
        let ids = Tensor::from_i32(ids, &[n]).on(self.device)?;
        let mut out = self.zeros(DType::Bf16, &[n, d])?;
        self.row("embedding", &[n, d], &Bound::Memory(4 * n * d), || {
            embedding::forward(s, table.view(), ids.view(), 1.0, out.view_mut())
        })?;
        let (lengths, mut mean) =
            (Lengths::uniform(self.device, n / 32, 32)?, self.zeros(DType::Bf16, &[n / 32, d])?);
        self.row("pooling", &[n, d], &Bound::Memory(2 * n * d), || {
            pooling::forward(s, out.view(), &lengths, mean.view_mut())
        })?;
        Ok(())
    }
}

/// Name and function of a part of the benchmark.
type Section = (&'static str, fn(&mut Bench) -> Result<()>);

/// All sections in the order in which they run. The ceilings come first because shares depend on
/// them.
const SECTIONS: [Section; 10] = [
    ("ceilings", Bench::ceilings),
    ("attention", |bench| bench.attention("")),
    ("info_nce", |bench| bench.info_nce()),
    ("warpgroups", |bench| bench.attention("_warpgroups")),
    ("products", |bench| bench.products()),
    ("norms", |bench| bench.norms()),
    ("activations", |bench| bench.activations()),
    ("tokens", |bench| bench.tokens()),
    ("optimizer", |bench| bench.optimizer()),
    ("deterministic", |bench| bench.attention("_deterministic")),
];

fn main() -> std::result::Result<ExitCode, Box<dyn std::error::Error>> {
    let (flags, wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    // `cargo bench` passes `--bench`.
    let known = ["--emulated", "--small", "--bench"];
    if let Some(unknown) = flags.iter().find(|flag| !known.contains(&flag.as_str())) {
        return Err(format!("unknown flag {unknown}; the flags are --emulated and --small").into());
    }
    let flag = |name: &str| flags.iter().any(|flag| flag == name);
    let (emulated, small) = (flag("--emulated"), flag("--emulated") || flag("--small"));
    if let Some(unknown) = wanted.iter().find(|name| SECTIONS.iter().all(|(n, _)| n != name)) {
        let known = SECTIONS.map(|(name, _)| name).join(", ");
        return Err(format!("unknown section `{unknown}`; the sections are {known}").into());
    }
    let mut code = ExitCode::SUCCESS;
    let mut bench = Bench::open(Mode::Fast, emulated, small)?;
    for (name, section) in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let mode = match name {
            "warpgroups" => Mode::Warpgroups,
            "deterministic" => Mode::Deterministic,
            _ => Mode::Fast,
        };
        if bench.mode != mode {
            let ceilings = bench.ceilings;
            bench = Bench::open(mode, emulated, small)?;
            bench.ceilings = ceilings;
        }
        let since = Instant::now();
        let outcome = section(&mut bench);
        let seconds = since.elapsed().as_secs_f64();
        let failed = match outcome {
            Ok(()) => String::new(),
            Err(error) => {
                code = ExitCode::FAILURE;
                format!(r#","failed":"{}""#, escaped(&error.to_string()))
            }
        };
        println!(r#"{{"what":"section","section":"{name}","seconds":{seconds:.1}{failed}}}"#);
    }
    Ok(code)
}

/// Escapes text for a JSON string.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}
