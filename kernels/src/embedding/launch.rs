//! The kernels of the embedding table and their launches.
//!
//! Floor: memory. Forward reads and writes n·d elements. Backward reads n·d elements, and reads and
//! writes the rows of the table that occur, each row once regardless of its number of occurrences.
//! The host sorts the positions by id. A block owns one id and 256 vectors of its row, and adds the
//! positions of the id in order. Without atomics, every run gives the same bits.
//!
//! Alternative considered: atomics for each position. They serialise on the ids that every text has
//! (its first and last token), and their results differ from run to run.

use super::cube::embedding_backward::EmbeddingBackward;
use super::cube::embedding_forward::EmbeddingForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block. CubeCL calls a thread a unit and a block a cube.
const UNITS: usize = 256;

/// Key of a kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether the kernel computes the gradient.
    pub backward: bool,
    /// Element type of activations and of the table; the gradient of the table is f32.
    pub element: Element,
    /// Elements per vector, from [`Element::lanes`].
    pub lanes: usize,
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = if self.backward { "backward" } else { "forward" };
        format!("embedding_{pass}_w{}_{}", self.lanes, self.element.name())
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
        if self.backward {
            emit!(
                e, name, EmbeddingBackward::<F>: [d_out order starts ids d_table] [scale vectors],
                self.lanes,
            )
        } else {
            emit!(e, name, EmbeddingForward::<F>: [table ids out] [scale count vectors], self.lanes)
        }
    }
}

/// Positions of each id, in the form that [`backward`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// All positions, sorted by id; the positions of one id are in ascending order.
    pub order: Vec<i32>,
    /// Index in `order` of the first position of each id, followed by the number of positions.
    pub starts: Vec<i32>,
    /// The distinct ids, ascending.
    pub ids: Vec<i32>,
}

impl Runs {
    /// Sorts the positions of `ids`.
    ///
    /// # Panics
    /// If there are 2³¹ ids or more.
    #[must_use]
    pub fn new(ids: &[i32]) -> Self {
        let to_i32 = |i: usize| i32::try_from(i).expect("a batch has fewer than 2^31 tokens");
        let mut order: Vec<i32> = (0..ids.len()).map(to_i32).collect();
        let id = |position: i32| ids[position.unsigned_abs() as usize];
        order.sort_by_key(|&position| id(position));
        let mut runs = Self { order, starts: Vec::new(), ids: Vec::new() };
        for (at, &position) in runs.order.iter().enumerate() {
            if runs.ids.last() != Some(&id(position)) {
                runs.ids.push(id(position));
                runs.starts.push(to_i32(at));
            }
        }
        runs.starts.push(to_i32(ids.len()));
        runs
    }
}

/// Launches of `out` (n, d) = scale · rows `ids`, i32 (n), of `table` (v, d). The kernel does not
/// check that ids are below v; the caller does.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn forward<B: Copy>(
    [table, ids, out]: [B; 3],
    scale: f32,
    element: Element,
    n: usize,
    [v, d]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let lanes = element.lanes(d);
    check::numbered("embedding::forward", "tokens or words", n.max(v), d / lanes)?;
    let count = n * d / lanes;
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch {
        kernel: compile::Kernel::Embedding(Kernel { backward: false, element, lanes }),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers: vec![table, ids, out],
        scalars: vec![
            Scalar::F32(scale),
            Scalar::U32(offset(count)),
            Scalar::U32(offset(d / lanes)),
        ],
    }])
}

/// Buffers of one call of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// Gradient of the output (n, d).
    pub d_out: B,
    /// Order, starts and ids of [`Runs`], i32 each.
    pub runs: [B; 3],
    /// Gradient of the table, f32 (v, d), to which the kernel adds.
    pub d_table: B,
}

/// Launches that add scale · `d_out` to the rows of `d_table` whose ids are in `runs`.
///
/// # Errors
/// If the kernel cannot number the vectors in 32 bits.
pub fn backward<B: Copy>(
    buffers: Backward<B>,
    runs: &Runs,
    scale: f32,
    element: Element,
    [v, d]: [usize; 2],
) -> Result<Vec<Launch<B>>> {
    let lanes = element.lanes(d);
    let tokens = runs.order.len();
    check::numbered("embedding::backward", "tokens or words", tokens.max(v), d / lanes)?;
    if runs.ids.is_empty() || d == 0 {
        return Ok(Vec::new());
    }
    let Backward { d_out, runs: [order, starts, ids], d_table } = buffers;
    Ok(vec![Launch {
        kernel: compile::Kernel::Embedding(Kernel { backward: true, element, lanes }),
        cubes: [offset(runs.ids.len()), cubes(d / lanes, UNITS), 1],
        buffers: vec![d_out, order, starts, ids, d_table],
        scalars: vec![Scalar::F32(scale), Scalar::U32(offset(d / lanes))],
    }])
}
