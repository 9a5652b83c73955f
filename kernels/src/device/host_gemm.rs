//! The matrix product of the host: a safe interface to the `gemm` crate.

/// Layout of a matrix in a slice: element (i, j) is at index `i * row_stride + j * col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Number of rows of the matrix.
    pub rows: usize,
    /// Number of columns of the matrix.
    pub cols: usize,
    /// Elements between the starts of two adjacent rows.
    pub row_stride: usize,
    /// Elements between the starts of two adjacent columns.
    pub col_stride: usize,
}

impl Layout {
    /// A contiguous row-major matrix.
    #[must_use]
    pub fn row_major(rows: usize, cols: usize) -> Self {
        Self { rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose of the matrix in the same memory.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn fits(self, len: usize) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < len
    }

    fn strides(self) -> (isize, isize) {
        (self.row_stride.cast_signed(), self.col_stride.cast_signed())
    }
}

/// C = beta·C + alpha·A·B in f32. If `threads` is above one, `gemm` uses rayon; the result does not
/// depend on the number of threads.
///
/// # Panics
/// If shapes disagree or a layout reaches beyond its slice. That is a bug of the caller, which has
/// checked its arguments.
#[expect(clippy::too_many_arguments, reason = "the BLAS signature, with a layout for each slice")]
pub fn matmul(
    beta: f32,
    c: &mut [f32],
    c_layout: Layout,
    alpha: f32,
    a: &[f32],
    a_layout: Layout,
    b: &[f32],
    b_layout: Layout,
    threads: usize,
) {
    let (m, n, k) = (c_layout.rows, c_layout.cols, a_layout.cols);
    assert!(a_layout.rows == m && b_layout.rows == k && b_layout.cols == n, "matmul shapes");
    assert!(c_layout.fits(c.len()) && a_layout.fits(a.len()) && b_layout.fits(b.len()));
    let (c_rs, c_cs) = c_layout.strides();
    assert!(c_layout.row_stride >= n || c_layout.col_stride >= m, "output elements overlap");
    let ((a_rs, a_cs), (b_rs, b_cs)) = (a_layout.strides(), b_layout.strides());
    let parallelism =
        if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let read = beta != 0.0;
    #[expect(unsafe_code, reason = "gemm takes raw pointers")]
    // SAFETY: the three `fits` assertions above keep every (row, column) that gemm addresses inside
    // its slice; `c` is borrowed mutably, so it overlaps neither `a` nor `b`; all strides are
    // positive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_cs,
            c_rs,
            read,
            a.as_ptr(),
            a_cs,
            a_rs,
            b.as_ptr(),
            b_cs,
            b_rs,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
