//! The kernels that move, add, average and round rows, and their launches. The driver copies
//! tensors without a kernel.
//!
//! Floor: memory. Each element is read once and written once (for sums, read twice). Each thread
//! takes one 16-byte vector.

use super::cube::rows_add::RowsAdd;
use super::cube::rows_average::RowsAverage;
use super::cube::rows_cast::RowsCast;
use super::cube::rows_gather::RowsGather;
use super::cube::rows_scatter::RowsScatter;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, Write, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Operation of the kernel.
    pub pass: Pass,
    /// Element type of the rows.
    pub element: Element,
    /// Elements per vector, from [`Element::lanes`].
    pub lanes: usize,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Moves rows to the positions of an index.
    Scatter,
    /// Reads rows from the positions of an index.
    Gather {
        /// Whether the rows are added to the output.
        add: bool,
    },
    /// Adds a tensor to another, for [`copy::add`](crate::copy::add).
    Add,
    /// Moves an average toward new values, for
    /// [`copy::moving_average`](crate::copy::moving_average).
    Average,
    /// Rounds f32 to bf16, for [`copy::cast`](crate::copy::cast).
    Cast,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = match self.pass {
            Pass::Scatter => "rows_scatter",
            Pass::Gather { add: false } => "rows_gather",
            Pass::Gather { add: true } => "rows_gather_add",
            Pass::Add => "add",
            Pass::Average => "average",
            Pass::Cast => "cast",
        };
        format!("{pass}_w{}_{}", self.lanes, self.element.name())
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
        let e = Emit::new(offset(UNITS));
        let lanes = self.lanes;
        match self.pass {
            Pass::Scatter => {
                emit!(e, name, RowsScatter::<F>: [src index out] [count vectors], lanes)
            }
            Pass::Gather { add } => {
                emit!(e, name, RowsGather::<F>: [src index out] [count vectors], lanes, add)
            }
            Pass::Add => emit!(e, name, RowsAdd::<F>: [from to] [count], lanes),
            Pass::Average => emit!(e, name, RowsAverage::<F>: [from to] [decay count], lanes),
            Pass::Cast => emit!(e, name, RowsCast: [from to] [count], lanes),
        }
    }
}

/// Launches of `out[index[i]] = src[i]`: `src` (n, d), `index` i32 (n). The caller ensures that
/// indices are distinct and within `out`.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn scatter<B: Copy>(
    buffers: [B; 3],
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    launch("rows::scatter", Pass::Scatter, buffers.to_vec(), element, shape)
}

/// Launches of `out[i] = src[index[i]]`, overwritten or added: `src`, `index` i32 (n), `out` (n,
/// d).
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn gather<B: Copy>(
    buffers: [B; 3],
    write: Write,
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let pass = Pass::Gather { add: write == Write::Add };
    launch("rows::gather", pass, buffers.to_vec(), element, shape)
}

/// Launches of to += from for `count` elements.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn add<B: Copy>(from: B, to: B, element: Element, count: usize) -> Result<Vec<Launch<B>>> {
    launch("copy::add", Pass::Add, vec![from, to], element, [1, count])
}

/// Launches of to = decay·to + (1 − decay)·from for `count` elements.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn average<B: Copy>(from: B, to: B, decay: f32, count: usize) -> Result<Vec<Launch<B>>> {
    let buffers = vec![from, to];
    let launches =
        launch("copy::moving_average", Pass::Average, buffers, Element::F32, [1, count])?;
    let with_decay = |launch: Launch<B>| {
        let scalars = [vec![Scalar::F32(decay)], launch.scalars].concat();
        Launch { scalars, ..launch }
    };
    Ok(launches.into_iter().map(with_decay).collect())
}

/// Launches of to = from for `count` elements, rounded from f32 to bf16.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn cast<B: Copy>(from: B, to: B, count: usize) -> Result<Vec<Launch<B>>> {
    launch("copy::cast", Pass::Cast, vec![from, to], Element::F32, [1, count])
}

fn launch<B: Copy>(
    operation: &'static str,
    pass: Pass,
    buffers: Vec<B>,
    element: Element,
    [n, d]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let lanes = element.lanes(d);
    check::numbered(operation, "rows", n, d / lanes)?;
    if n * d == 0 {
        return Ok(Vec::new());
    }
    let count = n * d / lanes;
    let mut scalars = vec![Scalar::U32(offset(count))];
    if !matches!(pass, Pass::Add | Pass::Average) {
        scalars.push(Scalar::U32(offset(d / lanes)));
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::Rows(Kernel { pass, element, lanes }),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers,
        scalars,
    }])
}
