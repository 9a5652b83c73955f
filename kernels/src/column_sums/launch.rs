//! The kernel of column sums and how it is launched.
//!
//! Floor: memory; every element of the matrix is read once.
//!
//! Tiling: a cube takes 32 vectors of columns, so that a plane reads 512 bytes of one row at a
//! time, and its planes take different rows. Where there are many rows, up to 64 cubes share the
//! rows of a column and leave partial sums, which a second launch adds up. Each thread adds its
//! rows in their order, and the first plane adds the planes in theirs. No atomics: the same bits in
//! every run.
//!
//! Considered: a product with a vector of ones (another upload, and cuBLASLt has few algorithms for
//! one column); one thread per column in the second launch (264 dependent loads in at most eight
//! cubes).

use super::cube::column_sums::ColumnSums;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Planes of a cube, and so rows that it reads at a time.
const PLANES: usize = 16;
/// Cubes that share the rows of one column.
const PARTS: usize = 64;

/// What decides the kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Element type of the matrix.
    pub element: Element,
    /// Elements of a vector.
    pub lanes: usize,
    /// Whether sums are added to the output or written to it.
    pub add: bool,
}

impl Kernel {
    /// The two kernels that [`add`] launches for rows of `width` elements.
    #[must_use]
    pub fn all(element: Element, width: usize) -> [Self; 2] {
        [Self::new(element, width, false), Self::new(Element::F32, width, true)]
    }

    fn new(element: Element, width: usize, add: bool) -> Self {
        Self { element, lanes: element.lanes(width), add }
    }

    pub(crate) fn name(self) -> String {
        let (add, element) = (if self.add { "_add" } else { "" }, self.element.name());
        format!("column_sums{add}_w{}_{element}", self.lanes)
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self.element {
            Element::F32 => self.emit_as::<f32>(name),
            Element::Bf16 => self.emit_as::<half::bf16>(name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(PLANES * 32));
        let Self { lanes, add, .. } = self;
        emit!(e, name, ColumnSums::<F>: [x sums] [rows vectors step], lanes, offset(PLANES), add)
    }

    /// Sums of `rows` rows in `parts` shares.
    fn launch<B>(self, [x, sums]: [B; 2], rows: usize, width: usize, parts: usize) -> Launch<B> {
        let vectors = width / self.lanes;
        Launch {
            kernel: compile::Kernel::ColumnSums(self),
            cubes: [cubes(vectors, 32), offset(parts), 1],
            buffers: vec![x, sums],
            scalars: [rows, vectors, parts * PLANES].map(|n| Scalar::U32(offset(n))).to_vec(),
        }
    }
}

/// Cubes that share the rows of one column of `n` rows.
fn parts(n: usize) -> usize {
    n.div_ceil(PLANES).min(PARTS)
}

/// Numbers in the workspace of [`add`].
#[must_use]
pub fn workspace(n: usize, width: usize) -> usize {
    parts(n) * width
}

/// Adds the sums over the `n` rows of `width` elements of `x` to `out`, f32 (width). `partial` is
/// f32, as long as [`workspace`] says.
///
/// # Errors
/// When there are too many elements for 32-bit offsets.
pub fn add<B: Copy>(
    [x, partial, out]: [B; 3],
    element: Element,
    n: usize,
    width: usize,
) -> Result<Vec<Launch<B>>> {
    let vectors = width / element.lanes(width);
    // Threads step over the last row by at most one round of all cubes.
    if (n + PARTS * PLANES).saturating_mul(vectors.max(1)) >= 1 << 32 {
        let needed = "rows times 16-byte vectors of a row stay below 2^32 (32-bit offsets)";
        return Err(check::value("column_sums::add", "rows", n.to_string(), needed));
    }
    if n == 0 || width == 0 {
        return Ok(Vec::new());
    }
    let [sums, _] = Kernel::all(element, width);
    let parts = parts(n);
    Ok(vec![sums.launch([x, partial], n, width, parts), total(partial, out, parts, width)])
}

/// Adds `parts` rows of partial sums, f32 (parts, width), to `out`, f32 (width).
pub(crate) fn total<B>(partial: B, out: B, parts: usize, width: usize) -> Launch<B> {
    Kernel::new(Element::F32, width, true).launch([partial, out], parts, width, 1)
}
