//! Tests that operations give the same results on a GPU's stream as on the host: dispatch, element
//! types, workspaces, products. The GPU is emulated unless `VLJEPA_TEST_GPU` is set; the tests of
//! each operation compare its kernels with the reference.

use half::bf16;

use super::Cuda;
use crate::adamw::{self, Hyper};
use crate::attention::launch::Mode;
use crate::attention::{self, Mask};
use crate::distance::{self, Distance};
use crate::testing::{Comparison, normal};
use crate::{DType, Device, KernelError, Lengths, Stream, Tensor, Write};
use crate::{
    activation, copy, cross_entropy, embedding, gated_mlp, global_norm, info_nce, layer_norm,
    linear,
};
use crate::{normalize, pooling, rms_norm, rows};

/// Relative to the largest element: one bf16 rounding of inputs and of the result, and sums of a
/// few dozen terms.
const TOLERANCE: f32 = 3.0 / 256.0;

/// Host and GPU, in the order of the results.
fn devices(mode: Mode) -> [Device; 2] {
    [Device::Host, Device::Cuda(Cuda::for_tests(mode))]
}

/// `values` on `device`: f32 on the host, bf16 on the GPU. Callers pass values that are exact in
/// both types.
pub(super) fn activation(device: Device, values: &[f32], shape: &[usize]) -> Tensor {
    match device {
        Device::Host => Tensor::from_f32(values.to_vec(), shape),
        Device::Cuda(_) => {
            let values = values.iter().map(|&x| bf16::from_f32(x)).collect();
            Tensor::from_bf16(values, shape).on(device).unwrap()
        }
    }
}

/// Element type of activations on `device`.
pub(super) fn dtype(device: Device) -> DType {
    if device == Device::Host { DType::F32 } else { DType::Bf16 }
}

pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    normal(seed, len).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

pub(super) fn zeros(device: Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

/// Runs `operation` on both devices. Each pair of results must agree, and no result may be all
/// zeros.
fn agree(mode: Mode, operation: impl Fn(Device, &Stream) -> Vec<Tensor>) {
    let [host, gpu] = devices(mode).map(|device| {
        let stream = device.compute_stream();
        let results = operation(device, &stream);
        let values = |tensor: &Tensor| tensor.to_f32().unwrap().into_owned();
        results.iter().map(values).collect::<Vec<_>>()
    });
    assert_eq!(host.len(), gpu.len());
    for (i, (want, got)) in host.iter().zip(&gpu).enumerate() {
        let largest = want.iter().fold(0.0f32, |a, &x| a.max(x.abs()));
        assert!(largest > 0.0, "result {i} is empty");
        let compared = Comparison::new(got, want, TOLERANCE * largest.max(1.0));
        assert!(compared.is_close(), "result {i}: {compared}");
    }
}

#[test]
fn values_survive_the_way_to_the_gpu_and_back() {
    let device = Device::Cuda(Cuda::for_tests(Mode::Fast));
    let stream = device.compute_stream();
    let there = Tensor::from_f32(vec![1.0, -2.0, 3.5], &[3]).on(device).unwrap();
    let mut other = zeros(device, DType::F32, &[4]);
    copy::copy(&stream, there.view(), other.view_mut().part(1, &[3])).unwrap();
    assert_eq!(other.to_f32().unwrap()[..], [0.0, 1.0, -2.0, 3.5]);
    copy::add(&stream, there.view(), other.view_mut().part(0, &[3])).unwrap();
    assert_eq!(other.to_f32().unwrap()[..], [1.0, -1.0, 1.5, 3.5]);
}

#[test]
fn a_tensor_of_another_device_or_type_is_refused_by_name() {
    let device = Device::Cuda(Cuda::for_tests(Mode::Fast));
    let stream = device.compute_stream();
    let host = Tensor::from_f32(vec![1.0; 4], &[4]);
    let mut there = zeros(device, DType::F32, &[4]);
    let error = copy::add(&stream, host.view(), there.view_mut()).unwrap_err();
    assert_eq!(error, KernelError::Device { operation: "copy::add", what: "from" });
    let error = copy::add(&Stream::Host, host.view(), there.view_mut()).unwrap_err();
    assert_eq!(error, KernelError::Device { operation: "copy::add", what: "to" });
    let elsewhere = zeros(Device::Cuda(Cuda::for_tests(Mode::Deterministic)), DType::F32, &[4]);
    let error = copy::add(&stream, elsewhere.view(), there.view_mut()).unwrap_err();
    assert_eq!(error, KernelError::Device { operation: "copy::add", what: "from" });
    let half = zeros(device, DType::Bf16, &[4]);
    let error = copy::add(&stream, half.view(), there.view_mut()).unwrap_err();
    assert!(error.to_string().contains("bf16"), "{error}");
}

#[test]
fn linear_layers_multiply_add_bias_and_accumulate_as_on_the_host() {
    let (n, i, o) = (5, 24, 16);
    agree(Mode::Fast, |device, stream| {
        let x = activation(device, &numbers(1, n * i), &[n, i]);
        let weight = activation(device, &numbers(2, o * i), &[o, i]);
        let bias = activation(device, &numbers(3, o), &[o]);
        let d_out = activation(device, &numbers(4, n * o), &[n, o]);
        let mut out = activation(device, &numbers(5, n * o), &[n, o]);
        let mut d_x = zeros(device, dtype(device), &[n, i]);
        let mut d_weight = zeros(device, DType::F32, &[o, i]);
        let mut d_bias = zeros(device, DType::F32, &[o]);
        let bias = Some(bias.view());
        let mut onto = zeros(device, dtype(device), &[n, o]);
        let residual = out.view();
        linear::forward_onto(stream, x.view(), weight.view(), bias, residual, onto.view_mut())
            .unwrap();
        linear::forward(stream, x.view(), weight.view(), bias, Write::Add, out.view_mut()).unwrap();
        let write = Write::Set;
        linear::backward_input(stream, d_out.view(), weight.view(), write, d_x.view_mut()).unwrap();
        for _ in 0..2 {
            let d_bias = Some(d_bias.view_mut());
            linear::backward_weight(stream, x.view(), d_out.view(), d_weight.view_mut(), d_bias)
                .unwrap();
        }
        vec![onto, out, d_x, d_weight, d_bias]
    });
}

#[test]
fn layer_norms_use_their_workspaces_as_on_the_host() {
    let (n, d) = (9, 64);
    agree(Mode::Fast, |device, stream| {
        let x = activation(device, &numbers(1, n * d), &[n, d]);
        let weight = activation(device, &numbers(2, d), &[d]);
        let bias = activation(device, &numbers(3, d), &[d]);
        let d_out = activation(device, &numbers(4, n * d), &[n, d]);
        let [mut out, mut d_x] = [(); 2].map(|()| zeros(device, dtype(device), &[n, d]));
        let [mut mean, mut rstd] = [(); 2].map(|()| zeros(device, DType::F32, &[n]));
        let [mut d_weight, mut d_bias] = [(); 2].map(|()| zeros(device, DType::F32, &[d]));
        let (weight, m, r) = (weight.view(), mean.view_mut(), rstd.view_mut());
        layer_norm::forward(stream, x.view(), weight, bias.view(), 1e-5, out.view_mut(), m, r)
            .unwrap();
        layer_norm::backward(
            stream,
            x.view(),
            weight,
            mean.view(),
            rstd.view(),
            d_out.view(),
            Write::Set,
            d_x.view_mut(),
            d_weight.view_mut(),
            d_bias.view_mut(),
        )
        .unwrap();
        vec![out, d_x, d_weight, d_bias]
    });
}

#[test]
fn attention_and_pooling_of_packed_sequences_agree_in_every_mode() {
    let (n, h, g) = (21, 4, 2);
    for (mode, hd) in [(Mode::Fast, 16), (Mode::Deterministic, 16), (Mode::Warpgroups, 64)] {
        agree(mode, |device, stream| {
            let lengths = Lengths::new(device, vec![0, 1, 18, 21]).unwrap();
            let of =
                |seed, heads| activation(device, &numbers(seed, n * heads * hd), &[n, heads, hd]);
            let (q, k, v, d_out) = (of(1, h), of(2, g), of(3, g), of(4, h));
            let [mut out, mut d_q] = [(); 2].map(|()| zeros(device, dtype(device), &[n, h, hd]));
            let [mut d_k, mut d_v] = [(); 2].map(|()| zeros(device, dtype(device), &[n, g, hd]));
            let mut lse = zeros(device, DType::F32, &[n, h]);
            let (mask, scale) = (Mask::Window(7), 0.25);
            let (q, k, v) = (q.view(), k.view(), v.view());
            let o = out.view_mut();
            attention::forward(stream, q, k, v, &lengths, mask, scale, o, lse.view_mut()).unwrap();
            attention::backward(
                stream,
                q,
                k,
                v,
                out.view(),
                lse.view(),
                d_out.view(),
                &lengths,
                mask,
                scale,
                d_q.view_mut(),
                d_k.view_mut(),
                d_v.view_mut(),
            )
            .unwrap();
            let mut pooled = zeros(device, dtype(device), &[3, h * hd]);
            let rows = out.view().reshaped(&[n, h * hd]);
            pooling::forward(stream, rows, &lengths, pooled.view_mut()).unwrap();
            vec![out, lse, d_q, d_k, d_v, pooled]
        });
    }
}

#[test]
fn info_nce_agrees_with_temperature_and_equal_targets() {
    let (b, g, e) = (6, 10, 32);
    agree(Mode::Fast, |device, stream| {
        let rows = activation(device, &numbers(1, b * e), &[b, e]);
        let all = activation(device, &numbers(2, g * e), &[g, e]);
        let all_lse = Tensor::from_f32(vec![2.0; g], &[g]).on(device).unwrap();
        let hash = |first: u64, len: usize| (first..).take(len).map(|i| i % 7).collect::<Vec<_>>();
        let own = Tensor::from_u64(hash(3, b), &[b]).on(device).unwrap();
        let everyone = Tensor::from_u64(hash(0, g), &[g]).on(device).unwrap();
        let equal = info_nce::EqualTargets { rows: own.view(), all: everyone.view() };
        let [mut lse, mut diagonal] = [(); 2].map(|()| zeros(device, DType::F32, &[b]));
        let mut d_rows = zeros(device, DType::F32, &[b, e]);
        let (rows, all, alpha) = (rows.view(), all.view(), 0.3);
        let (l, d) = (lse.view_mut(), diagonal.view_mut());
        info_nce::statistics(stream, rows, all, alpha, 3, Some(equal), l, d).unwrap();
        let (own_lse, d) = (lse.view(), d_rows.view_mut());
        let all_lse = all_lse.view();
        // The gradient is added to this initial value.
        let mut d_scale = Tensor::from_f32(vec![0.5], &[1]).on(device).unwrap();
        let (equal, s) = (Some(equal), Some(d_scale.view_mut()));
        info_nce::backward(stream, rows, all, own_lse, all_lse, alpha, 3, equal, d, s).unwrap();
        vec![lse, diagonal, d_rows, d_scale]
    });
}

#[test]
fn embeddings_gather_rows_and_add_up_gradients_of_repeated_ids() {
    let (v, d, ids) = (11, 16, vec![3, 0, 3, 10, 3]);
    agree(Mode::Fast, |device, stream| {
        let table = activation(device, &numbers(1, v * d), &[v, d]);
        let n = ids.len();
        let there = Tensor::from_i32(ids.clone(), &[n]).on(device).unwrap();
        let d_out = activation(device, &numbers(2, n * d), &[n, d]);
        let mut out = zeros(device, dtype(device), &[n, d]);
        let mut d_table = zeros(device, DType::F32, &[v, d]);
        embedding::forward(stream, table.view(), there.view(), 2.0, out.view_mut()).unwrap();
        embedding::backward(stream, &ids, d_out.view(), 2.0, d_table.view_mut()).unwrap();
        vec![out, d_table]
    });
}

#[test]
fn activations_rows_and_the_global_norm_agree() {
    let (n, d) = (6, 32);
    agree(Mode::Fast, |device, stream| {
        let x = activation(device, &numbers(1, n * d), &[n, d]);
        let weight = activation(device, &numbers(2, d), &[d]);
        let d_out = activation(device, &numbers(3, n * d), &[n, d]);
        let [mut normed, mut d_x, mut curved, mut placed] =
            [(); 4].map(|()| zeros(device, dtype(device), &[n, d]));
        let mut gated = zeros(device, dtype(device), &[n, d / 2]);
        let mut rstd = zeros(device, DType::F32, &[n]);
        let mut d_weight = zeros(device, DType::F32, &[d]);
        let [mut norms, mut sum] = [n, 1].map(|len| zeros(device, DType::F32, &[len]));
        let mut control = zeros(device, DType::F32, &[2]);
        let (view, weight, scale) = (x.view(), weight.view(), rms_norm::Scale::OnePlus);
        let (out, r) = (normed.view_mut(), rstd.view_mut());
        rms_norm::forward(stream, view, weight, scale, 1e-6, out, r).unwrap();
        let (r, d, w) = (rstd.view(), d_out.view(), d_weight.view_mut());
        let write = Write::Set;
        rms_norm::backward(stream, view, weight, scale, r, d, write, d_x.view_mut(), w).unwrap();
        activation::forward(stream, view, activation::Activation::Gelu, curved.view_mut()).unwrap();
        gated_mlp::forward(stream, view, gated_mlp::Activation::Silu, gated.view_mut()).unwrap();
        let index = Tensor::from_i32(vec![5, 3, 0, 1, 2, 4], &[n]).on(device).unwrap();
        rows::scatter(stream, view, index.view(), placed.view_mut()).unwrap();
        let mut unit = zeros(device, dtype(device), &[n, 32]);
        normalize::forward(stream, view, 1e-12, unit.view_mut(), norms.view_mut()).unwrap();
        global_norm::squared_sum(stream, d_weight.view(), sum.view_mut()).unwrap();
        global_norm::control(stream, sum.view(), 1.0, control.view_mut()).unwrap();
        vec![normed, d_x, d_weight, curved, gated, placed, unit, norms, sum, control]
    });
}

#[test]
fn distances_and_their_gradients_agree() {
    let (b, e) = (5, 24);
    for kind in [Distance::Cosine, Distance::L1, Distance::L2] {
        agree(Mode::Fast, |device, stream| {
            let [p, t] = [1, 2].map(|seed| activation(device, &numbers(seed, b * e), &[b, e]));
            let [mut d_p, mut d_t] = [(); 2].map(|()| zeros(device, DType::F32, &[b, e]));
            let (p, t) = (p.view(), t.view());
            #[expect(clippy::cast_possible_truncation, reason = "compared in f32")]
            let sum = distance::forward(stream, p, t, kind).unwrap() as f32;
            let (d_p_out, d_t_out) = (d_p.view_mut(), d_t.view_mut());
            distance::backward(stream, p, t, kind, 0.5, d_p_out, d_t_out).unwrap();
            vec![Tensor::from_f32(vec![sum], &[1]), d_p, d_t]
        });
    }
}

#[test]
fn cross_entropy_agrees() {
    let (n, v) = (6, 40);
    agree(Mode::Fast, |device, stream| {
        let mut logits = activation(device, &numbers(1, n * v), &[n, v]);
        let targets = Tensor::from_i32(vec![0, 39, 7, 7, 20, 1], &[n]).on(device).unwrap();
        let [mut losses, mut lse] = [(); 2].map(|()| zeros(device, DType::F32, &[n]));
        let (l, s) = (losses.view_mut(), lse.view_mut());
        cross_entropy::forward(stream, logits.view(), targets.view(), l, s).unwrap();
        let (l, s) = (logits.view_mut(), lse.view());
        cross_entropy::backward(stream, l, targets.view(), s, 0.25).unwrap();
        vec![losses, lse, logits]
    });
}

#[test]
fn an_update_writes_the_rounded_copy_too() {
    let n = 300;
    let gpu = Device::Cuda(Cuda::for_tests(Mode::Fast));
    let mut after = Vec::new();
    for device in [Device::Host, gpu] {
        let stream = device.compute_stream();
        let on = |seed| Tensor::from_f32(numbers(seed, n), &[n]).on(device).unwrap();
        let (mut w, gradient) = (on(1), on(2));
        let [mut m, mut v] = [(); 2].map(|()| zeros(device, DType::F32, &[n]));
        let mut rounded = zeros(device, DType::Bf16, &[n]);
        let control = Tensor::from_f32(vec![0.5, 1.0], &[2]).on(device).unwrap();
        let hyper =
            Hyper { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };
        let copy = (device != Device::Host).then(|| rounded.view_mut());
        let (w_out, m, v) = (w.view_mut(), m.view_mut(), v.view_mut());
        let control = control.view();
        adamw::step(&stream, w_out, m, v, gradient.view(), hyper, control, copy).unwrap();
        let weights = w.to_f32().unwrap().into_owned();
        if device != Device::Host {
            let want: Vec<f32> = weights.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            assert_eq!(rounded.to_f32().unwrap()[..], want[..]);
        }
        after.push(weights);
    }
    // Steps of 0.1 on numbers near one, in f32.
    let compared = Comparison::new(&after[1], &after[0], 1e-6);
    assert!(compared.is_close(), "{compared}");
}

#[test]
fn casts_round_to_the_nearest_wherever_the_tensors_are() {
    let device = Device::Cuda(Cuda::for_tests(Mode::Fast));
    let stream = device.compute_stream();
    let values = normal(5, 1000);
    let want: Vec<f32> = values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let here = Tensor::from_f32(values.clone(), &[1000]);
    let there = Tensor::from_f32(values, &[1000]).on(device).unwrap();
    for from in [&here, &there] {
        let mut to = zeros(device, DType::Bf16, &[1000]);
        copy::cast(&stream, from.view(), to.view_mut()).unwrap();
        assert_eq!(to.to_f32().unwrap()[..], want[..]);
    }
    let mut to = zeros(Device::Host, DType::Bf16, &[1000]);
    copy::cast(&Stream::Host, here.view(), to.view_mut()).unwrap();
    assert_eq!(to.to_f32().unwrap()[..], want[..]);
    let mut bytes = zeros(device, DType::U8, &[1000]);
    assert!(copy::cast(&stream, there.view(), bytes.view_mut()).is_err());
}

#[test]
fn empty_tensors_are_copied_filled_and_multiplied_without_a_call_of_the_driver() {
    let device = Device::Cuda(Cuda::for_tests(Mode::Fast));
    let stream = device.compute_stream();
    let empty = Tensor::from_f32(Vec::new(), &[0, 4]).on(device).unwrap();
    let mut other = zeros(device, DType::F32, &[0, 4]);
    copy::copy(&stream, empty.view(), other.view_mut()).unwrap();
    other.view_mut().fill_zero(&stream).unwrap();
    assert!(other.to_f32().unwrap().is_empty());
    // No tokens: gradients of weights keep their values, and a product over an empty dimension is
    // zero.
    let nothing = activation(device, &[], &[0, 8]);
    let mut d_weight = Tensor::from_f32(vec![2.0; 64], &[8, 8]).on(device).unwrap();
    let mut d_bias = Tensor::from_f32(vec![3.0; 8], &[8]).on(device).unwrap();
    let (x, d_out) = (nothing.view(), nothing.view());
    let gradient = Some(d_bias.view_mut());
    linear::backward_weight(&stream, x, d_out, d_weight.view_mut(), gradient).unwrap();
    assert_eq!(d_weight.to_f32().unwrap()[..], [2.0; 64]);
    assert_eq!(d_bias.to_f32().unwrap()[..], [3.0; 8]);
    let [no_inputs, no_weights] = [3, 8].map(|n| activation(device, &[], &[n, 0]));
    let mut out = activation(device, &numbers(1, 24), &[3, 8]);
    let (x, weight) = (no_inputs.view(), no_weights.view());
    linear::forward(&stream, x, weight, None, Write::Set, out.view_mut()).unwrap();
    assert_eq!(out.to_f32().unwrap()[..], [0.0; 24]);
}

#[test]
fn a_trace_names_what_ran_and_for_how_long() {
    let cuda = Cuda::for_one_test(Mode::Fast);
    let device = Device::Cuda(cuda);
    let stream = device.compute_stream();
    let x = activation(device, &numbers(1, 64), &[64]);
    let mut out = zeros(device, DType::Bf16, &[64]);
    cuda.trace().unwrap();
    activation::forward(&stream, x.view(), activation::Activation::Gelu, out.view_mut()).unwrap();
    let spans = cuda.traced().unwrap();
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert!(span.name.contains("gelu"), "{span:?}");
    assert!(span.start_ms >= 0.0 && span.duration_ms > 0.0, "{span:?}");
    activation::forward(&stream, x.view(), activation::Activation::Gelu, out.view_mut()).unwrap();
    assert!(cuda.traced().unwrap().is_empty(), "the trace has ended");
}
