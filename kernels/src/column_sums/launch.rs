//! The kernel of column sums and its launches.
//!
//! Floor: memory. Every element of the matrix is read once.
//!
//! Tiling: a block takes 32 vectors of columns, so that a warp reads 512 bytes of one row at a
//! time, and its warps take different rows. If there are many rows, up to 64 blocks share the rows
//! of a column and write partial sums, which a second launch adds. Each thread adds its rows in
//! order, and the first warp adds the sums of the warps in order. Without atomics, every run gives
//! the same bits.
//!
//! Alternatives considered: a product with a vector of ones (needs another upload, and cuBLASLt has
//! few algorithms for one column); one thread per column in the second launch (264 dependent loads
//! in at most eight blocks).

use super::cube::column_sums::ColumnSums;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Warps per block, which is also the number of rows that a block reads at a time. CubeCL calls a
/// warp a plane and a block a cube.
const PLANES: usize = 16;
/// Largest number of blocks that share the rows of one column.
const PARTS: usize = 64;

/// Key of the kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Element type of the matrix.
    pub element: Element,
    /// Elements per vector, from [`Element::lanes`].
    pub lanes: usize,
    /// Whether the kernel adds the sums to the output or overwrites it.
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

    /// Launch that sums `rows` rows in `parts` shares.
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

/// Number of blocks that share the `n` rows of one column.
fn parts(n: usize) -> usize {
    n.div_ceil(PLANES).min(PARTS)
}

/// Number of f32 elements in the workspace of [`add`] for `n` rows of `width` elements.
#[must_use]
pub fn workspace(n: usize, width: usize) -> usize {
    parts(n) * width
}

/// Launches that add the sums over the `n` rows of `x` (n, width) to `out`, f32 (width). `partial`
/// is f32 with as many elements as [`workspace`] says.
///
/// # Errors
/// If there are too many elements for 32-bit offsets.
pub fn add<B: Copy>(
    [x, partial, out]: [B; 3],
    element: Element,
    n: usize,
    width: usize,
) -> Result<Vec<Launch<B>>> {
    let vectors = width / element.lanes(width);
    // The loop of a thread exceeds the last row by at most one round of all blocks.
    if (n + PARTS * PLANES).saturating_mul(vectors.max(1)) >= 1 << 32 {
        let needed = "rows times 16-byte vectors per row must stay below 2^32 (32-bit offsets)";
        return Err(check::value("column_sums::add", "rows", n.to_string(), needed));
    }
    if n == 0 || width == 0 {
        return Ok(Vec::new());
    }
    let [sums, _] = Kernel::all(element, width);
    let parts = parts(n);
    Ok(vec![sums.launch([x, partial], n, width, parts), total(partial, out, parts, width)])
}

/// Launch that adds `parts` rows of partial sums, f32 (parts, width), to `out`, f32 (width).
pub(crate) fn total<B>(partial: B, out: B, parts: usize, width: usize) -> Launch<B> {
    Kernel::new(Element::F32, width, true).launch([partial, out], parts, width, 1)
}
