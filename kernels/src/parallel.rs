//! Splits host operations into blocks, and computes sums. Blocks depend only on the shape, never on
//! the number of threads.
//!
//! Every result is therefore the same for any number of threads, and a run that resumes on another
//! machine repeats bit for bit.

use rayon::prelude::*;

/// Operations on fewer elements than this run on one thread: waking other threads takes some 10 µs.
const PARALLEL_FROM: usize = 65_536;

/// Elements of one block. Its rows stay in the first-level cache between the passes over them.
pub(crate) const BLOCK: usize = 16_384;

/// Largest number of blocks in a sum over rows. It bounds the memory of the partial sums.
const BLOCKS_MAX: usize = 64;

/// Whether an operation on `elements` elements uses more than one thread.
fn worthwhile(elements: usize) -> bool {
    elements >= PARALLEL_FROM && rayon::current_num_threads() > 1
}

/// Rows in one block of a (rows, width) matrix.
pub(crate) fn rows_per_block(rows: usize, width: usize) -> usize {
    (BLOCK / width.max(1)).max(rows.div_ceil(BLOCKS_MAX)).max(1)
}

/// Calls `f(block, a)` on blocks of `a_len` elements, in parallel if `elements` is large enough.
pub(crate) fn blocks<A: Send>(
    elements: usize,
    (a, a_len): (&mut [A], usize),
    f: impl Fn(usize, &mut [A]) + Sync,
) {
    let a_len = a_len.max(1);
    if worthwhile(elements) {
        a.par_chunks_mut(a_len).enumerate().for_each(|(i, a)| f(i, a));
    } else {
        a.chunks_mut(a_len).enumerate().for_each(|(i, a)| f(i, a));
    }
}

/// Calls `f(block, a, b)` on blocks of two slices; see [`blocks`].
pub(crate) fn blocks2<A: Send, B: Send>(
    elements: usize,
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (a_len, b_len) = (a_len.max(1), b_len.max(1));
    if worthwhile(elements) {
        let pairs = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len));
        pairs.enumerate().for_each(|(i, (a, b))| f(i, a, b));
    } else {
        let pairs = a.chunks_mut(a_len).zip(b.chunks_mut(b_len));
        pairs.enumerate().for_each(|(i, (a, b))| f(i, a, b));
    }
}

/// Calls `f(block, a, b, c)` on blocks of three slices; see [`blocks`].
pub(crate) fn blocks3<A: Send, B: Send, C: Send>(
    elements: usize,
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    (c, c_len): (&mut [C], usize),
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
) {
    let (a_len, b_len, c_len) = (a_len.max(1), b_len.max(1), c_len.max(1));
    if worthwhile(elements) {
        let pairs = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len));
        let triples = pairs.zip(c.par_chunks_mut(c_len));
        triples.enumerate().for_each(|(i, ((a, b), c))| f(i, a, b, c));
    } else {
        let pairs = a.chunks_mut(a_len).zip(b.chunks_mut(b_len));
        let triples = pairs.zip(c.chunks_mut(c_len));
        triples.enumerate().for_each(|(i, ((a, b), c))| f(i, a, b, c));
    }
}

/// Independent partial sums of one pass: four 256-bit registers of f32.
const LANES: usize = 32;

/// Σ f(xᵢ) in f32: 32 partial sums, added pairwise.
#[inline]
pub(crate) fn sum1(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += f(x[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    pairwise(lanes)
}

/// Σ f(xᵢ, yᵢ) in f32: 32 partial sums, added pairwise.
#[inline]
pub(crate) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (x_chunks, y_chunks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = x_chunks.remainder().iter().zip(y_chunks.remainder());
    for (x, y) in x_chunks.zip(y_chunks) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(rest) {
        *lane += f(x, y);
    }
    pairwise(lanes)
}

/// Σ f(xᵢ, yᵢ, zᵢ) in f32: 32 partial sums, added pairwise.
#[inline]
pub(crate) fn sum3(x: &[f32], y: &[f32], z: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (x_chunks, y_chunks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let z_chunks = z.chunks_exact(LANES);
    let rest = x_chunks.remainder().iter().zip(y_chunks.remainder()).zip(z_chunks.remainder());
    for ((x, y), z) in x_chunks.zip(y_chunks).zip(z_chunks) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i], z[i]);
        }
    }
    for (lane, ((&x, &y), &z)) in lanes.iter_mut().zip(rest) {
        *lane += f(x, y, z);
    }
    pairwise(lanes)
}

#[inline]
fn pairwise(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (l, h) in low.iter_mut().zip(high) {
            *l += *h;
        }
        half /= 2;
    }
    lanes[0]
}

/// sum += term, for each element.
#[inline]
pub(crate) fn add_into(sum: &mut [f32], term: &[f32]) {
    for (s, &t) in sum.iter_mut().zip(term) {
        *s += t;
    }
}

/// Adds the column sums of a (rows, width) matrix to `sum`: one partial sum per block of rows,
/// added in the order of the blocks.
pub(crate) fn add_column_sums(sum: &mut [f32], matrix: &[f32]) {
    let width = sum.len();
    if width == 0 || matrix.is_empty() {
        return;
    }
    let rows = rows_per_block(matrix.len() / width, width);
    let blocks_count = (matrix.len() / width).div_ceil(rows);
    let mut partials = vec![0.0; blocks_count * width];
    blocks(matrix.len(), (&mut partials, width), |i, partial| {
        let end = ((i + 1) * rows * width).min(matrix.len());
        for row in matrix[i * rows * width..end].chunks_exact(width) {
            add_into(partial, row);
        }
    });
    for partial in partials.chunks_exact(width) {
        add_into(sum, partial);
    }
}

/// Rounds a sum in f64 to f32.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
pub(crate) fn round(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::{add_column_sums, round, sum1, sum2, sum3};
    use crate::testing::{assert_close, assert_differs, dot, normal};

    #[test]
    fn sums_match_f64_at_every_remainder() {
        for len in (0..70).chain([1024, 4097]) {
            let (x, y) = (normal(1, len), normal(2, len));
            let got =
                [sum1(&x, |v| v), sum2(&x, &y, |a, b| a * b), sum3(&x, &y, &y, |a, b, _| a * b)];
            let product = round(dot(&x, &y));
            let want = [round(x.iter().map(|&v| f64::from(v)).sum()), product, product];
            // Each of 32 lanes adds len / 32 numbers near 1: ε · √len · √(len / 32), at most 7e-6.
            assert_close("sums", &got, &want, 1e-5);
        }
    }

    #[test]
    fn column_sums_do_not_depend_on_threads_and_match_f64() {
        let (rows, width) = (1999, 67);
        let x = normal(3, rows * width);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut sum = vec![0.5; width];
            pool.install(|| add_column_sums(&mut sum, &x));
            sum
        };
        let want: Vec<f32> = (0..width)
            .map(|j| {
                round(0.5 + x.iter().skip(j).step_by(width).map(|&v| f64::from(v)).sum::<f64>())
            })
            .collect();
        let got = run(1);
        assert_eq!(got, run(3));
        // A partial sum of 244 rows is near √244, and 1999 additions round: ε · √244 · √1999.
        assert_close("column sums", &got, &want, 5e-5);
        let off_by_one: Vec<f32> = want.iter().map(|v| v + 1.0).collect();
        assert_differs("column sums", &got, &off_by_one, 5e-5);
    }
}
