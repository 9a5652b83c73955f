//! Products of matrices of a few dozen rows, the sizes of one head of a short sequence.
//!
//! The `gemm` crate spends about a microsecond on a call before it multiplies; a product of 32 × 16
//! by 16 × 32 takes a quarter of that. Here a tile of 6 × 16 results stays in registers, and
//! operands are read in place: the left one row by row or column by column, the right one in rows
//! that are padded to whole vectors.

use crate::Write;

/// Columns of a full tile: two 256-bit registers of f32.
const WIDE: usize = 16;

/// Elements per vector; rows and columns are padded to whole vectors.
pub(super) const VECTOR: usize = 8;

/// `len` rounded up to whole vectors.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(VECTOR)
}

/// Left operand of a product, (m, k).
#[derive(Debug, Clone, Copy)]
pub(super) enum Left<'a> {
    /// Row i begins at `i * stride`.
    Rows(&'a [f32], usize),
    /// Column i begins at `i * stride`: the transpose of a row-major matrix.
    Columns(&'a [f32], usize),
}

/// C (m, n) [+]= A (m, k) · B (k, n).
///
/// All three sizes are positive. Row i of B begins at `i * b_stride` and is readable up to n padded
/// to whole vectors. Row i of C begins at `i * c_stride`.
pub(super) fn multiply(
    write: Write,
    (c, c_stride): (&mut [f32], usize),
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    (b, b_stride): (&[f32], usize),
) {
    let mut column = 0;
    while column < n {
        let left = n - column;
        let out = (&mut c[column..], c_stride);
        if left > VECTOR {
            panel::<WIDE>(write, out, [m, left.min(WIDE), k], a, (&b[column..], b_stride));
        } else {
            panel::<VECTOR>(write, out, [m, left, k], a, (&b[column..], b_stride));
        }
        column += WIDE;
    }
}

/// Computes up to `NR` columns of the result.
fn panel<const NR: usize>(
    write: Write,
    (c, c_stride): (&mut [f32], usize),
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    b: (&[f32], usize),
) {
    let mut row = 0;
    while row < m {
        let out = (&mut c[row * c_stride..], c_stride, n);
        let rows = (m - row).min(6);
        match rows {
            6 => strip::<6, NR>(write, out, k, a, row, b),
            5 => strip::<5, NR>(write, out, k, a, row, b),
            4 => strip::<4, NR>(write, out, k, a, row, b),
            3 => strip::<3, NR>(write, out, k, a, row, b),
            2 => strip::<2, NR>(write, out, k, a, row, b),
            _ => strip::<1, NR>(write, out, k, a, row, b),
        }
        row += rows;
    }
}

/// Computes `MR` rows by up to `NR` columns. A narrower tile is computed in a buffer and copied.
fn strip<const MR: usize, const NR: usize>(
    write: Write,
    (c, c_stride, n): (&mut [f32], usize, usize),
    k: usize,
    a: Left<'_>,
    row: usize,
    b: (&[f32], usize),
) {
    if n == NR {
        return tile::<MR, NR>(write, c, c_stride, k, a, row, b);
    }
    let mut whole = [0.0; 6 * WIDE];
    tile::<MR, NR>(Write::Set, &mut whole, NR, k, a, row, b);
    for (out, results) in c.chunks_mut(c_stride).zip(whole.chunks_exact(NR)).take(MR) {
        for (out, result) in out[..n].iter_mut().zip(results) {
            match write {
                Write::Set => *out = *result,
                Write::Add => *out += *result,
            }
        }
    }
}

fn tile<const MR: usize, const NR: usize>(
    write: Write,
    c: &mut [f32],
    c_stride: usize,
    k: usize,
    a: Left<'_>,
    row: usize,
    b: (&[f32], usize),
) {
    match a {
        Left::Rows(a, stride) => {
            let rows: [&[f32]; MR] = std::array::from_fn(|r| &a[(row + r) * stride..][..k]);
            accumulate::<MR, NR>(write, c, c_stride, k, b, |i| {
                Some(std::array::from_fn(|r| rows[r][i]))
            });
        }
        Left::Columns(a, stride) => accumulate::<MR, NR>(write, c, c_stride, k, b, |i| {
            a.get(i * stride + row..)?.first_chunk().copied()
        }),
    }
}

/// Σ over i of (column i of A) ⊗ (row i of B). Both sizes are constants, so every loop over them is
/// unrolled and the sums stay in registers.
///
/// The compiler keeps the sums in registers only if constants index them and the loop cannot panic;
/// operands that are too short therefore end the loop.
#[inline(always)]
fn accumulate<const MR: usize, const NR: usize>(
    write: Write,
    c: &mut [f32],
    c_stride: usize,
    k: usize,
    (b, b_stride): (&[f32], usize),
    a: impl Fn(usize) -> Option<[f32; MR]>,
) {
    let mut sums = [[0.0_f32; NR]; MR];
    for (i, row) in b.chunks(b_stride).enumerate().take(k) {
        let (Some(column), Some(row)) = (a(i), row.first_chunk::<NR>()) else { break };
        for r in 0..MR {
            for j in 0..NR {
                sums[r][j] = column[r].mul_add(row[j], sums[r][j]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let Some(out) = c.get_mut(r * c_stride..).and_then(|c| c.first_chunk_mut::<NR>()) else {
            return;
        };
        if write == Write::Add {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        } else {
            *out = *sums;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Left, multiply, padded};
    use crate::Write;
    use crate::testing::{assert_close, assert_differs, normal};

    #[test]
    fn products_match_the_definition_at_every_remainder() {
        for m in [1, 5, 6, 7, 17] {
            for n in [1, 7, 8, 9, 16, 20, 24, 33] {
                for k in [1, 3, 16] {
                    let (a, b) = (normal(1, m * k), normal(2, k * padded(n)));
                    let transposed: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
                    let cell = |i: usize| -> f32 {
                        (0..k).map(|l| a[i / n * k + l] * b[l * padded(n) + i % n]).sum()
                    };
                    let want: Vec<f32> = (0..m * n).map(cell).collect();
                    let run = |write, a: Left<'_>| {
                        let mut c = vec![0.0; m * n];
                        multiply(write, (&mut c, n), [m, n, k], a, (&b, padded(n)));
                        c
                    };
                    // Sums of at most 16 products near 1: 16 · 2⁻²⁴ · 4.
                    let got = run(Write::Set, Left::Rows(&a, k));
                    assert_close("rows", &got, &want, 4e-6);
                    assert_close(
                        "columns",
                        &run(Write::Add, Left::Columns(&transposed, m)),
                        &want,
                        4e-6,
                    );
                    if m > 1 && k > 1 {
                        let wrong = run(Write::Set, Left::Rows(&transposed, k));
                        assert_differs("not transposed", &wrong, &want, 4e-6);
                    }
                }
            }
        }
    }
}
