//! The linear layer: out = x·Wᵀ + b, with W stored (outputs, inputs) like the weight of PyTorch's
//! `nn.Linear`.

#[cfg(test)]
mod cases;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use crate::{
    DType, column_sums,
    compile::Element,
    device::cuda::{Call, Product, Region},
};
use crate::{Result, Stream, View, ViewMut, Write, check, copy};

/// Computes `x·Wᵀ + b` and writes it to `out`, or adds it to `out` (a residual connection).
///
/// `x` (n, i), `weight` (o, i), `bias` (o), `out` (n, o). On the host all tensors are f32, on a GPU
/// bf16, except that `out` may be f32; sums are f32.
///
/// # Errors
/// When shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, Write, linear};
///
/// let (x, weight, mut out) = ([1.0, 2.0], [3.0, 4.0, 5.0, 6.0], [0.0; 2]);
/// let (x, weight) = (View::from_f32(&x, &[1, 2]), View::from_f32(&weight, &[2, 2]));
/// let out_view = ViewMut::from_f32(&mut out, &[1, 2]);
/// linear::forward(&Stream::Host, x, weight, None, Write::Set, out_view)?;
/// assert_eq!(out, [11.0, 17.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    x: View<'_>,
    weight: View<'_>,
    bias: Option<View<'_>>,
    write: Write,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "linear::forward";
    let size = size(NAME, x.shape(), weight.shape(), "out", out.shape())?;
    if let Some(bias) = bias {
        check::shape(NAME, "bias", bias.shape(), &[size.outputs])?;
    }
    match stream {
        Stream::Host => {
            let bias = bias.map(|b| b.host_f32(NAME, "bias")).transpose()?;
            let (x, weight) = (x.host_f32(NAME, "x")?, weight.host_f32(NAME, "weight")?);
            host::forward(size, x, weight, bias, write, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(out.dtype(), "out")?;
            let out = call.at(out, "out", element)?;
            let addend = (write == Write::Add).then_some(out);
            multiply(call, size, (x, weight, bias), addend, (out, element))?;
        }),
    }
    Ok(())
}

/// Adds the layer's output to a residual stream without overwriting the stream:
/// `out = residual + x·Wᵀ + b`.
///
/// `residual` and `out` (n, o) are different tensors; the other arguments are as in [`forward`].
///
/// # Errors
/// Same as [`forward`].
pub fn forward_onto(
    stream: &Stream,
    x: View<'_>,
    weight: View<'_>,
    bias: Option<View<'_>>,
    residual: View<'_>,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "linear::forward_onto";
    let size = size(NAME, x.shape(), weight.shape(), "out", out.shape())?;
    check::shape(NAME, "residual", residual.shape(), out.shape())?;
    if let Some(bias) = bias {
        check::shape(NAME, "bias", bias.shape(), &[size.outputs])?;
    }
    match stream {
        Stream::Host => {
            copy::copy(stream, residual, out.reborrow())?;
            forward(stream, x, weight, bias, Write::Add, out)
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let addend = Some(call.at(residual, "residual", DType::Bf16)?);
            let out = call.at(out, "out", DType::Bf16)?;
            multiply(call, size, (x, weight, bias), addend, (out, Element::Bf16))
        }),
    }
}

/// out = x·Wᵀ + b + addend on a GPU.
#[cfg(feature = "cuda")]
fn multiply(
    call: Call,
    size: Size,
    (x, weight, bias): (View<'_>, View<'_>, Option<View<'_>>),
    addend: Option<Region>,
    (out, out_element): (Region, Element),
) -> Result<()> {
    call.stream.multiply(Product {
        rows: size.rows,
        columns: size.outputs,
        inner: size.inputs,
        left: call.at(x, "x", DType::Bf16)?,
        left_transposed: false,
        right: call.at(weight, "weight", DType::Bf16)?,
        right_transposed: true,
        bias: bias.map(|b| call.at(b, "bias", DType::Bf16)).transpose()?,
        out,
        out_element,
        addend,
    })
}

/// Gradient of the input: `d_out·W` is written or added to `d_x` (n, i), with `d_out` (n, o) and
/// `weight` (o, i). On a GPU `d_x` is bf16 or f32.
///
/// # Errors
/// When shapes or element types disagree.
pub fn backward_input(
    stream: &Stream,
    d_out: View<'_>,
    weight: View<'_>,
    write: Write,
    d_x: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "linear::backward_input";
    let size = size(NAME, d_x.shape(), weight.shape(), "d_out", d_out.shape())?;
    match stream {
        Stream::Host => {
            let (d_out, weight) =
                (d_out.host_f32(NAME, "d_out")?, weight.host_f32(NAME, "weight")?);
            host::backward_input(size, d_out, weight, write, d_x.host_f32_mut(NAME, "d_x")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(d_x.dtype(), "d_x")?;
            let d_x = call.at(d_x, "d_x", element)?;
            call.stream.multiply(Product {
                rows: size.rows,
                columns: size.inputs,
                inner: size.outputs,
                left: call.at(d_out, "d_out", DType::Bf16)?,
                left_transposed: false,
                right: call.at(weight, "weight", DType::Bf16)?,
                right_transposed: false,
                bias: None,
                out: d_x,
                out_element: element,
                addend: (write == Write::Add).then_some(d_x),
            })?;
        }),
    }
    Ok(())
}

/// Gradients of the parameters, added: `d_weight` (o, i) += `d_outᵀ·x`, `d_bias` (o) += column sums
/// of `d_out` (n, o). Both are f32.
///
/// # Errors
/// When shapes or element types disagree.
pub fn backward_weight(
    stream: &Stream,
    x: View<'_>,
    d_out: View<'_>,
    d_weight: ViewMut<'_>,
    d_bias: Option<ViewMut<'_>>,
) -> Result<()> {
    const NAME: &str = "linear::backward_weight";
    let size = size(NAME, x.shape(), d_weight.shape(), "d_out", d_out.shape())?;
    if let Some(d_bias) = &d_bias {
        check::shape(NAME, "d_bias", d_bias.shape(), &[size.outputs])?;
    }
    match stream {
        Stream::Host => {
            let d_bias = d_bias.map(|b| b.host_f32_mut(NAME, "d_bias")).transpose()?;
            let (x, d_out) = (x.host_f32(NAME, "x")?, d_out.host_f32(NAME, "d_out")?);
            let d_weight = d_weight.host_f32_mut(NAME, "d_weight")?;
            host::backward_weight(size, x, d_out, d_weight, d_bias);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let d_weight = call.f32(d_weight, "d_weight")?;
            call.stream.multiply(Product {
                rows: size.outputs,
                columns: size.inputs,
                inner: size.rows,
                left: call.at(d_out, "d_out", DType::Bf16)?,
                left_transposed: true,
                right: call.at(x, "x", DType::Bf16)?,
                right_transposed: false,
                bias: None,
                out: d_weight,
                out_element: Element::F32,
                addend: Some(d_weight),
            })?;
            if let Some(d_bias) = d_bias {
                column_sums::add(&Stream::Cuda(*stream), d_out, d_bias)?;
            }
        }),
    }
    Ok(())
}

/// n, i and o of one call.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

fn size(
    name: &'static str,
    x: &[usize],
    weight: &[usize],
    out_name: &'static str,
    out: &[usize],
) -> Result<Size> {
    let [outputs, inputs] = check::rank(name, "weight", weight)?;
    let [rows, _] = check::rank(name, "the input", x)?;
    check::shape(name, "the input", x, &[rows, inputs])?;
    check::shape(name, out_name, out, &[rows, outputs])?;
    Ok(Size { rows, inputs, outputs })
}
