//! The kernels of the embedding table and how they are launched.
//!
//! Floor: memory; forward reads and writes n·d elements, backward reads n·d and reads and writes the rows of the table that occur, once each
//! however often they do. Positions are sorted by id on the host, where the batch is put together: a cube owns one id and 256
//! vectors of its row, and adds up the id's positions in their order. No atomics, the same bits in every run.
//!
//! Considered: atomics per position, which serialise on the ids that every text has (its first and last token) and differ from run to run.

use super::cube::embedding_backward::EmbeddingBackward;
use super::cube::embedding_forward::EmbeddingForward;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Units of a cube.
const UNITS: usize = 256;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Whether it is the gradient's.
    pub backward: bool,
    /// Element type of rows; the table's gradient is f32.
    pub element: Element,
    /// Elements of a vector.
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

/// The positions of each id, for [`backward`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// All positions, by id and then in their order.
    pub order: Vec<i32>,
    /// Where each id's positions start in `order`, and the end.
    pub starts: Vec<i32>,
    /// The ids that occur, ascending.
    pub ids: Vec<i32>,
}

impl Runs {
    /// Sorts the positions of `ids`.
    ///
    /// # Panics
    /// From 2³¹ ids on.
    #[must_use]
    pub fn new(ids: &[i32]) -> Self {
        let place = |i: usize| i32::try_from(i).expect("a batch has fewer than 2^31 tokens");
        let mut order: Vec<i32> = (0..ids.len()).map(place).collect();
        let id = |position: i32| ids[position.unsigned_abs() as usize];
        order.sort_by_key(|&position| id(position));
        let mut runs = Self { order, starts: Vec::new(), ids: Vec::new() };
        for (at, &position) in runs.order.iter().enumerate() {
            if runs.ids.last() != Some(&id(position)) {
                runs.ids.push(id(position));
                runs.starts.push(place(at));
            }
        }
        runs.starts.push(place(ids.len()));
        runs
    }
}

/// `out` (n, d) = scale · rows `ids`, i32 (n), of `table` (v, d). Ids are below v: whoever makes them checks that.
///
/// # Errors
/// When 32 bits do not number the vectors.
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

/// Buffers of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// (n, d).
    pub d_out: B,
    /// i32: [`Runs`] of the ids: order, starts, ids.
    pub runs: [B; 3],
    /// Added to: f32 (v, d).
    pub d_table: B,
}

/// Adds scale · d_out to the rows of d_table that `runs` names.
///
/// # Errors
/// As [`forward`].
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
