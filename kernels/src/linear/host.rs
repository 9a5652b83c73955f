//! The linear layer on the host, by the `gemm` crate.

use super::Size;
use crate::device::host_gemm::{Layout, matmul};
use crate::{Write, parallel};

/// Multiply-adds below which a product stays on one thread: about 20 µs of work.
const PARALLEL_FROM: usize = 1 << 21;

pub(super) fn forward(
    size: Size,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    write: Write,
    out: &mut [f32],
) {
    let Size { rows, inputs, outputs } = size;
    // The bias is written first and the product added to it: one streaming pass instead of a read
    // and a write afterwards.
    let beta = match bias {
        Some(bias) => {
            spread_bias(bias, write, out);
            1.0
        }
        None => beta(write),
    };
    let (x_layout, weight_layout) =
        (Layout::row_major(rows, inputs), Layout::row_major(outputs, inputs).transposed());
    let out_layout = Layout::row_major(rows, outputs);
    let threads = threads(size);
    matmul(beta, out, out_layout, 1.0, x, x_layout, weight, weight_layout, threads);
}

pub(super) fn backward_input(
    size: Size,
    d_out: &[f32],
    weight: &[f32],
    write: Write,
    d_x: &mut [f32],
) {
    let Size { rows, inputs, outputs } = size;
    let (d_out_layout, weight_layout) =
        (Layout::row_major(rows, outputs), Layout::row_major(outputs, inputs));
    let d_x_layout = Layout::row_major(rows, inputs);
    let (beta, threads) = (beta(write), threads(size));
    matmul(beta, d_x, d_x_layout, 1.0, d_out, d_out_layout, weight, weight_layout, threads);
}

pub(super) fn backward_weight(
    size: Size,
    x: &[f32],
    d_out: &[f32],
    d_weight: &mut [f32],
    d_bias: Option<&mut [f32]>,
) {
    let Size { rows, inputs, outputs } = size;
    let (d_out_layout, x_layout) =
        (Layout::row_major(rows, outputs).transposed(), Layout::row_major(rows, inputs));
    let d_weight_layout = Layout::row_major(outputs, inputs);
    let threads = threads(size);
    matmul(1.0, d_weight, d_weight_layout, 1.0, d_out, d_out_layout, x, x_layout, threads);
    if let Some(d_bias) = d_bias {
        parallel::add_column_sums(d_bias, d_out);
    }
}

fn spread_bias(bias: &[f32], write: Write, out: &mut [f32]) {
    let width = bias.len();
    let rows = parallel::rows_per_block(out.len() / width.max(1), width);
    let elements = out.len();
    parallel::blocks(elements, (out, rows * width), |_, block| {
        for row in block.chunks_exact_mut(width) {
            match write {
                Write::Set => row.copy_from_slice(bias),
                Write::Add => parallel::add_into(row, bias),
            }
        }
    });
}

fn beta(write: Write) -> f32 {
    match write {
        Write::Set => 0.0,
        Write::Add => 1.0,
    }
}

fn threads(size: Size) -> usize {
    let products = size.rows * size.inputs * size.outputs;
    if products < PARALLEL_FROM { 1 } else { rayon::current_num_threads() }
}
