//! The kernels that move, add and round rows, and how they are launched. A plain copy is the driver's, without a kernel.
//!
//! Floor: memory; each element is read once and written once (added: read twice). One 16-byte vector per unit.

use super::cube::rows_add::RowsAdd;
use super::cube::rows_cast::RowsCast;
use super::cube::rows_gather::RowsGather;
use super::cube::rows_scatter::RowsScatter;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, Write, check};

/// Units of a cube.
const UNITS: usize = 256;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Which one.
    pub pass: Pass,
    /// Element type.
    pub element: Element,
    /// Elements of a vector.
    pub lanes: usize,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Rows to where an index says.
    Scatter,
    /// Rows from where an index says.
    Gather {
        /// Whether they are added.
        add: bool,
    },
    /// A tensor onto another, for [`copy::add`](crate::copy::add).
    Add,
    /// f32 rounded to bf16, for [`copy::cast`](crate::copy::cast).
    Cast,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = match self.pass {
            Pass::Scatter => "rows_scatter",
            Pass::Gather { add: false } => "rows_gather",
            Pass::Gather { add: true } => "rows_gather_add",
            Pass::Add => "add",
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
            Pass::Cast => emit!(e, name, RowsCast: [from to] [count], lanes),
        }
    }
}

/// `out[index[i]] = src[i]`: `src` (n, d), `index` i32 (n), distinct and within `out`, which whoever makes it checks.
///
/// # Errors
/// When 32-bit offsets do not count the elements.
pub fn scatter<B: Copy>(
    buffers: [B; 3],
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    launch("rows::scatter", Pass::Scatter, buffers.to_vec(), element, shape)
}

/// `out[i] = src[index[i]]`, written or added: `src`, `index` i32 (n), `out` (n, d).
///
/// # Errors
/// As [`scatter`].
pub fn gather<B: Copy>(
    buffers: [B; 3],
    write: Write,
    element: Element,
    shape: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let pass = Pass::Gather { add: write == Write::Add };
    launch("rows::gather", pass, buffers.to_vec(), element, shape)
}

/// to += from, `count` elements.
///
/// # Errors
/// As [`scatter`].
pub fn add<B: Copy>(from: B, to: B, element: Element, count: usize) -> Result<Vec<Launch<B>>> {
    launch("copy::add", Pass::Add, vec![from, to], element, [1, count])
}

/// to = from rounded from f32 to bf16, `count` elements.
///
/// # Errors
/// As [`scatter`].
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
    if pass != Pass::Add {
        scalars.push(Scalar::U32(offset(d / lanes)));
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::Rows(Kernel { pass, element, lanes }),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers,
        scalars,
    }])
}
