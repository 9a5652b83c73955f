//! Timed operations on a device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use vljepa_kernels::activation::{self, Activation};
use vljepa_kernels::adamw::{self, Hyper};
use vljepa_kernels::attention::{self, Mask};
use vljepa_kernels::rms_norm::{self, Scale};
use vljepa_kernels::rope::{self, Heads};
use vljepa_kernels::testing::normal;
use vljepa_kernels::{DType, Device, Lengths, Stream, Tensor, View, Write};
use vljepa_kernels::{copy, gated_mlp, info_nce, layer_norm, linear};
use vljepa_recipes::Recipe;
use vljepa_recipes::cost::Layers;

use crate::collectives::Collectives;

/// Repetitions of an operation, of which the median counts.
const REPETITIONS: usize = 9;
/// Repetitions before those that count.
const WARM_UP: usize = 2;
/// Different random numbers; larger tensors repeat them.
const DIFFERENT: usize = 1 << 20;
/// Elements of the optimizer's state: enough to leave the caches.
const PARAMETERS: usize = 1 << 24;
/// Launches that are timed together.
const LAUNCHES: u32 = 1000;
/// Synchronisations in a step, each of which leaves the device without work for a moment.
const WAITS: f64 = 10.0;
/// Sums of one number whose latency is timed.
const SMALL_SUMS: u32 = 100;

/// Amounts of work and the time that they took, by size.
#[derive(Debug, Default)]
pub(super) struct Measured(BTreeMap<usize, [f64; 2]>);

impl Measured {
    /// Adds `amount` of work of a size, which takes `seconds`.
    pub(super) fn add(&mut self, size: usize, amount: f64, seconds: f64) {
        if seconds > 0.0 && amount > 0.0 {
            let sums = self.0.entry(size).or_default();
            *sums = [sums[0] + amount, sums[1] + seconds];
        }
    }

    /// Rate of each size.
    pub(super) fn rates(&self) -> Vec<(usize, f64)> {
        self.0.iter().map(|(size, [amount, seconds])| (*size, amount / seconds)).collect()
    }

    /// Rate of all sizes together.
    pub(super) fn rate(&self) -> f64 {
        let [amount, seconds] =
            self.0.values().fold([0.0, 0.0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
        amount / seconds
    }
}

/// Bytes that are written between two repetitions on the host: more than its caches hold, because
/// the tensors of a step are not there either when an operation begins.
const COLD_BYTES: usize = 64 << 20;

/// A device whose operations are timed.
pub(super) struct Bench {
    device: Device,
    stream: Stream,
    element: DType,
    cold: RefCell<Vec<u8>>,
}

impl Bench {
    pub(super) fn new(device: Device) -> Self {
        let element = match device {
            Device::Host => DType::F32,
            Device::Cuda(_) => DType::Bf16,
        };
        let cold = match device {
            Device::Host => vec![0; COLD_BYTES],
            Device::Cuda(_) => Vec::new(),
        };
        Self { device, stream: device.compute_stream(), element, cold: RefCell::new(cold) }
    }

    fn numbers(&self, shape: &[usize]) -> anyhow::Result<Tensor> {
        let len: usize = shape.iter().product();
        let some = normal(1, len.clamp(1, DIFFERENT));
        let all: Vec<f32> = some.iter().copied().cycle().take(len).collect();
        let f32s = Tensor::from_f32(all, shape).on(self.device)?;
        if self.element == DType::F32 {
            return Ok(f32s);
        }
        let mut numbers = self.zeros(shape)?;
        copy::cast(&self.stream, f32s.view(), numbers.view_mut())?;
        Ok(numbers)
    }

    fn zeros(&self, shape: &[usize]) -> anyhow::Result<Tensor> {
        Ok(Tensor::zeros(self.device, self.element, shape)?)
    }

    fn f32_zeros(&self, shape: &[usize]) -> anyhow::Result<Tensor> {
        Ok(Tensor::zeros(self.device, DType::F32, shape)?)
    }

    /// Median time of `work` in seconds.
    fn seconds(&self, mut work: impl FnMut() -> vljepa_kernels::Result<()>) -> anyhow::Result<f64> {
        for _ in 0..WARM_UP {
            work()?;
        }
        self.synchronize()?;
        let mut times = Vec::with_capacity(REPETITIONS);
        for repetition in 0..REPETITIONS {
            self.cold.borrow_mut().fill(u8::try_from(repetition).unwrap_or(0));
            let start = Instant::now();
            work()?;
            self.synchronize()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[REPETITIONS / 2])
    }

    fn synchronize(&self) -> anyhow::Result<()> {
        match &self.stream {
            Stream::Host => Ok(()),
            Stream::Cuda(stream) => Ok(stream.synchronize()?),
        }
    }

    /// Times the products of a layer with `n` tokens. They count with the `operations` that all
    /// layers of the network need.
    pub(super) fn products(
        &self,
        layers: &Layers,
        n: usize,
        trained: bool,
        operations: f64,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        let (mut done, mut seconds) = (0.0, 0.0);
        for [inputs, outputs] in layers.maps() {
            let (x, d_out) = (self.numbers(&[n, inputs])?, self.numbers(&[n, outputs])?);
            let w = self.numbers(&[outputs, inputs])?;
            let mut out = self.zeros(&[n, outputs])?;
            let (x, w, d_out) = (x.view(), w.view(), d_out.view());
            let of_one = 2.0 * as_f64(n) * as_f64(inputs) * as_f64(outputs);
            done += of_one;
            seconds += self.seconds(|| {
                linear::forward(&self.stream, x, w, None, Write::Set, out.view_mut())
            })?;
            if trained {
                let (mut d_x, mut d_w) =
                    (self.zeros(&[n, inputs])?, self.f32_zeros(&[outputs, inputs])?);
                done += 2.0 * of_one;
                seconds += self.seconds(|| {
                    linear::backward_input(&self.stream, d_out, w, Write::Set, d_x.view_mut())
                })?;
                seconds += self.seconds(|| {
                    linear::backward_weight(&self.stream, x, d_out, d_w.view_mut(), None)
                })?;
            }
        }
        measured.add(layers.hidden, operations, operations * seconds / done);
        Ok(())
    }

    /// Times the norms, the split of heads and the activation of a layer with `n` tokens.
    pub(super) fn memory_bound(
        &self,
        layers: &Layers,
        n: usize,
        trained: bool,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        let count = as_f64(layers.count);
        let bytes = |values: usize| count * as_f64(n) * as_f64(values * self.element.bytes());
        let (norm, norm_backward) = self.norm(layers, n)?;
        measured.add(0, bytes(4 * layers.hidden), 2.0 * count * norm);
        let (split, join) = self.split(layers, n)?;
        let qkv = layers.query + 2 * layers.key;
        measured.add(0, bytes(2 * qkv), count * split);
        let (act, act_backward) = self.activation(layers, n)?;
        let (before, after) = (layers.before_activation(), layers.intermediate);
        measured.add(0, bytes(before + after), count * act);
        if trained {
            measured.add(0, bytes(8 * layers.hidden), 2.0 * count * norm_backward);
            measured.add(0, bytes(2 * qkv), count * join);
            measured.add(0, bytes(2 * before + after), count * act_backward);
        }
        Ok(())
    }

    fn norm(&self, layers: &Layers, n: usize) -> anyhow::Result<(f64, f64)> {
        let (s, d) = (&self.stream, layers.hidden);
        let (x, d_out) = (self.numbers(&[n, d])?, self.numbers(&[n, d])?);
        let (w, bias) = (self.numbers(&[d])?, self.numbers(&[d])?);
        let (mut out, mut d_x) = (self.zeros(&[n, d])?, self.zeros(&[n, d])?);
        let (mut mean, mut rstd) = (self.f32_zeros(&[n])?, self.f32_zeros(&[n])?);
        let (mut d_w, mut d_b) = (self.f32_zeros(&[d])?, self.f32_zeros(&[d])?);
        let (x, w, d_out) = (x.view(), w.view(), d_out.view());
        if layers.gated {
            let forward = self.seconds(|| {
                rms_norm::forward(s, x, w, Scale::Plain, 1e-5, out.view_mut(), rstd.view_mut())
            })?;
            let backward = self.seconds(|| {
                let (rstd, d_x, d_w) = (rstd.view(), d_x.view_mut(), d_w.view_mut());
                rms_norm::backward(s, x, w, Scale::Plain, rstd, d_out, Write::Add, d_x, d_w)
            })?;
            return Ok((forward, backward));
        }
        let forward = self.seconds(|| {
            let (out, mean, rstd) = (out.view_mut(), mean.view_mut(), rstd.view_mut());
            layer_norm::forward(s, x, w, bias.view(), 1e-6, out, mean, rstd)
        })?;
        let backward = self.seconds(|| {
            let (mean, rstd) = (mean.view(), rstd.view());
            let (d_x, d_w, d_b) = (d_x.view_mut(), d_w.view_mut(), d_b.view_mut());
            layer_norm::backward(s, x, w, mean, rstd, d_out, Write::Add, d_x, d_w, d_b)
        })?;
        Ok((forward, backward))
    }

    fn split(&self, layers: &Layers, n: usize) -> anyhow::Result<(f64, f64)> {
        let heads = Heads {
            query: layers.query / layers.head,
            key_value: layers.key / layers.head,
            dim: layers.head,
        };
        let mut qkv = self.numbers(&[n, heads.width()])?;
        let mut q = self.numbers(&[n, heads.query, heads.dim])?;
        let shape = [n, heads.key_value, heads.dim];
        let (mut k, mut v) = (self.numbers(&shape)?, self.numbers(&shape)?);
        let split = self.seconds(|| {
            let (q, k, v) = (q.view_mut(), k.view_mut(), v.view_mut());
            rope::split(&self.stream, qkv.view(), heads, None, q, k, v)
        })?;
        let join = self.seconds(|| {
            let (q, k, v) = (q.view(), k.view(), v.view());
            rope::split_backward(&self.stream, q, k, v, heads, None, qkv.view_mut())
        })?;
        Ok((split, join))
    }

    fn activation(&self, layers: &Layers, n: usize) -> anyhow::Result<(f64, f64)> {
        let (s, before, f) = (&self.stream, layers.before_activation(), layers.intermediate);
        let (x, d_out) = (self.numbers(&[n, before])?, self.numbers(&[n, f])?);
        let (mut out, mut d_x) = (self.zeros(&[n, f])?, self.zeros(&[n, before])?);
        let (x, d_out) = (x.view(), d_out.view());
        let (silu, gelu) = (gated_mlp::Activation::Silu, Activation::Gelu);
        let forward = self.seconds(|| match layers.gated {
            true => gated_mlp::forward(s, x, silu, out.view_mut()),
            false => activation::forward(s, x, gelu, out.view_mut()),
        })?;
        let backward = self.seconds(|| match layers.gated {
            true => gated_mlp::backward(s, x, silu, d_out, d_x.view_mut()),
            false => activation::backward(s, x, gelu, d_out, d_x.view_mut()),
        })?;
        Ok((forward, backward))
    }

    /// Times attention of all layers, forward and backward.
    pub(super) fn attention(
        &self,
        layers: &Layers,
        sequences: usize,
        length: usize,
        trained: bool,
    ) -> anyhow::Result<[f64; 2]> {
        let (n, d) = (sequences * length, layers.head);
        let (h, kv) = (layers.query / d, layers.key / d);
        let (mask, scale) = (Mask::Full, 0.125);
        let lengths = Lengths::uniform(self.device, sequences, length)?;
        let (q, d_out) = (self.numbers(&[n, h, d])?, self.numbers(&[n, h, d])?);
        let (k, v) = (self.numbers(&[n, kv, d])?, self.numbers(&[n, kv, d])?);
        let (mut out, mut lse) = (self.zeros(&[n, h, d])?, self.f32_zeros(&[n, h])?);
        let (q, k, v, d_out) = (q.view(), k.view(), v.view(), d_out.view());
        let s = &self.stream;
        let forward = self.seconds(|| {
            let (out, lse) = (out.view_mut(), lse.view_mut());
            attention::forward(s, q, k, v, &lengths, mask, scale, out, lse)
        })?;
        let count = as_f64(layers.count);
        if !trained {
            return Ok([count * forward, 0.0]);
        }
        let mut d_q = self.zeros(&[n, h, d])?;
        let (mut d_k, mut d_v) = (self.zeros(&[n, kv, d])?, self.zeros(&[n, kv, d])?);
        let (out, lse) = (out.view(), lse.view());
        let backward = self.seconds(|| {
            let (d_q, d_k, d_v) = (d_q.view_mut(), d_k.view_mut(), d_v.view_mut());
            #[rustfmt::skip]
            let done = attention::backward(
                s, q, k, v, out, lse, d_out, &lengths, mask, scale, d_q, d_k, d_v,
            );
            done
        })?;
        Ok([count * forward, count * backward])
    }

    /// Bytes per second of AdamW.
    pub(super) fn optimizer(&self) -> anyhow::Result<f64> {
        let n = PARAMETERS;
        let zeros = || self.f32_zeros(&[n]);
        let (mut w, mut m, mut v, gradient) = (zeros()?, zeros()?, zeros()?, zeros()?);
        let on_gpu = self.element == DType::Bf16;
        let mut rounded = on_gpu.then(|| self.zeros(&[n])).transpose()?;
        let control = Tensor::from_f32(vec![1.0, 1.0], &[2]).on(self.device)?;
        let hyper =
            Hyper { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, step: 1 };
        let seconds = self.seconds(|| {
            let (w, m, v) = (w.view_mut(), m.view_mut(), v.view_mut());
            let copy = rounded.as_mut().map(Tensor::view_mut);
            adamw::step(&self.stream, w, m, v, gradient.view(), hyper, control.view(), copy)
        })?;
        let bytes = if on_gpu { 30 } else { 28 };
        Ok(as_f64(bytes * n) / seconds)
    }

    /// Times InfoNCE's one-sided kernels for both sides. They count with the operations that the
    /// plan counts: two products for the statistics and four for the gradients.
    pub(super) fn info_nce(
        &self,
        recipe: &Recipe,
        rows: usize,
        batch: usize,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        let (e, alpha) = (recipe.model.embed_dim, 1.0 / 0.07);
        let rows = rows.min(batch);
        let all = self.numbers(&[batch, e])?;
        let own: View<'_> = all.view().rows(0, rows);
        let (mut lse, mut diagonal) = (self.f32_zeros(&[rows])?, self.f32_zeros(&[rows])?);
        let all_lse = self.f32_zeros(&[batch])?;
        let (mut d, mut d_scale) = (self.f32_zeros(&[rows, e])?, self.f32_zeros(&[1])?);
        let s = &self.stream;
        let statistics = self.seconds(|| {
            let (l, c) = (lse.view_mut(), diagonal.view_mut());
            info_nce::statistics(s, own, all.view(), alpha, 0, None, l, c)
        })?;
        let gradients = self.seconds(|| {
            let (l, c, scale) = (lse.view(), all_lse.view(), Some(d_scale.view_mut()));
            info_nce::backward(s, own, all.view(), l, c, alpha, 0, None, d.view_mut(), scale)
        })?;
        let operations = 12.0 * as_f64(rows) * as_f64(batch) * as_f64(e);
        measured.add(0, operations, 2.0 * (statistics + gradients));
        Ok(())
    }

    /// Seconds in which the host issues a launch.
    pub(super) fn launch(&self) -> anyhow::Result<f64> {
        let from = self.numbers(&[8])?;
        let mut to = self.zeros(&[8])?;
        self.synchronize()?;
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            copy::copy(&self.stream, from.view(), to.view_mut())?;
        }
        let seconds = start.elapsed().as_secs_f64();
        self.synchronize()?;
        Ok(seconds / f64::from(LAUNCHES))
    }

    /// Seconds of a step in which the device waits for the host.
    pub(super) fn wait(&self) -> anyhow::Result<f64> {
        if self.device.name() == Device::Host.name() {
            return Ok(0.0);
        }
        let from = self.numbers(&[8])?;
        let mut to = self.zeros(&[8])?;
        let one = self.seconds(|| copy::copy(&self.stream, from.view(), to.view_mut()))?;
        Ok(WAITS * one)
    }

    /// Bytes per second that a rank sends in a sum over all ranks, and the latency between two
    /// ranks in seconds.
    pub(super) fn sums(&self, collectives: &Collectives, bytes: usize) -> anyhow::Result<[f64; 2]> {
        let ranks = as_f64(collectives.world_size());
        let sum = |len: usize, times: u32| -> anyhow::Result<f64> {
            let mut values = self.f32_zeros(&[len])?;
            collectives.all_reduce_sum(&self.stream, values.view_mut())?;
            collectives.barrier();
            let start = Instant::now();
            for _ in 0..times {
                collectives.all_reduce_sum(&self.stream, values.view_mut())?;
            }
            self.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / f64::from(times))
        };
        // A sum of a ring goes around twice.
        let latency = sum(1, SMALL_SUMS)? / (2.0 * (ranks - 1.0));
        let sent = 2.0 * as_f64(bytes) * (ranks - 1.0) / ranks;
        let seconds = sum(bytes / DType::F32.bytes(), 5)?;
        Ok([sent / seconds, latency])
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
