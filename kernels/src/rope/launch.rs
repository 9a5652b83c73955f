//! The kernels of rotary embedding and their launches.
//!
//! Floor: memory. Every element of qkv is read once and written once, 2 passes in each direction.
//! Tables of cosines and sines (f32, one row per position, 0.5 MB for a clip of V-JEPA 2) stay in
//! L2. Without the fusion, q and k would take one more pass.
//!
//! Tiling: a thread rotates whole pairs: 16 bytes of neighbouring elements, or 16 bytes of a head's
//! lower half with the same 16 bytes of its upper half. Numbers of heads and their width are known
//! when a kernel is compiled, so that indices need only multiplications.

use super::cube::rope_merge::RopeMerge;
use super::cube::rope_rotate::RopeRotate;
use super::cube::rope_split::RopeSplit;
use super::{Heads, Pairing};
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block of every kernel here.
const THREADS: usize = 256;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// The kernel of this operation.
    pub pass: Pass,
    /// Pairs of elements that are rotated together.
    pub pairing: Pairing,
    /// Element type of projections, queries, keys and values.
    pub element: Element,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Splits a fused projection into q, k and v.
    Split {
        /// Heads of the projection.
        heads: Heads,
        /// Whether q and k are rotated.
        rotated: bool,
    },
    /// The gradient of a split.
    Merge {
        /// Heads of the projection.
        heads: Heads,
        /// Whether q and k were rotated by the split.
        rotated: bool,
    },
    /// Rotates heads in place.
    Rotate {
        /// Width of a head.
        dim: usize,
        /// Whether the kernel applies the transpose.
        transposed: bool,
    },
}

impl Kernel {
    fn dim(self) -> usize {
        match self.pass {
            Pass::Split { heads, .. } | Pass::Merge { heads, .. } => heads.dim,
            Pass::Rotate { dim, .. } => dim,
        }
    }

    /// Elements of a vector, which holds whole pairs or lies within half a head.
    fn lanes(self) -> usize {
        match self.pairing {
            Pairing::Half => self.element.lanes(self.dim() / 2),
            Pairing::Adjacent => self.element.lanes(self.dim()).max(2),
        }
    }

    /// Threads that share one head.
    fn shares(self) -> usize {
        match self.pairing {
            Pairing::Half => self.dim() / 2 / self.lanes(),
            Pairing::Adjacent => self.dim() / self.lanes(),
        }
    }

    pub(crate) fn name(self) -> String {
        let pairing = match self.pairing {
            Pairing::Half => "half",
            Pairing::Adjacent => "adjacent",
        };
        let element = self.element.name();
        let of = |name: &str, heads: Heads, rotated: bool| {
            let Heads { query, key_value, dim } = heads;
            let plain = if rotated { "" } else { "_plain" };
            format!("rope_{name}{plain}_{pairing}_h{query}_{key_value}_d{dim}_{element}")
        };
        match self.pass {
            Pass::Split { heads, rotated } => of("split", heads, rotated),
            Pass::Merge { heads, rotated } => of("merge", heads, rotated),
            Pass::Rotate { dim, transposed } => {
                let back = if transposed { "_back" } else { "" };
                format!("rope_rotate{back}_{pairing}_d{dim}_{element}")
            }
        }
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
        let e = Emit::new(offset(THREADS));
        let (lanes, pairing) = (self.lanes(), self.pairing);
        match self.pass {
            Pass::Split { heads, rotated } => emit!(
                e, name, RopeSplit::<F>: [qkv q k v cos sin positions] [count],
                lanes, heads, rotated, pairing, lanes,
            ),
            Pass::Merge { heads, rotated } => emit!(
                e, name, RopeMerge::<F>: [qkv q k v cos sin positions] [count],
                lanes, heads, rotated, pairing, lanes,
            ),
            Pass::Rotate { dim, transposed } => emit!(
                e, name, RopeRotate::<F>: [x cos sin positions] [count heads],
                lanes, dim, transposed, pairing, lanes,
            ),
        }
    }
}

/// A table and the tokens' positions in it. The caller guarantees that positions are inside the
/// table.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<B> {
    /// Cosines, f32 (positions, hd).
    pub cos: B,
    /// Sines, f32 (positions, hd).
    pub sin: B,
    /// Row of the table for each token, i32 (n).
    pub positions: B,
    /// Pairs of elements that are rotated together.
    pub pairing: Pairing,
}

/// A fused projection and its three parts.
#[derive(Debug, Clone, Copy)]
pub struct Parts<B> {
    /// The fused projection, (n, (h + 2g)·hd).
    pub qkv: B,
    /// Queries (n, h, hd), keys (n, g, hd) and values (n, g, hd).
    pub parts: [B; 3],
}

/// Launch that writes q, k and v from qkv and, with a `rotation`, rotates q and k.
///
/// # Errors
/// When the elements are too many for 32-bit offsets, or the width of a head is odd.
pub fn split<B: Copy>(
    buffers: Parts<B>,
    heads: Heads,
    rotation: Option<Rotation<B>>,
    element: Element,
    n: usize,
) -> Result<Vec<Launch<B>>> {
    let pass = Pass::Split { heads, rotated: rotation.is_some() };
    launch_parts("rope::split", buffers, pass, heads, rotation, element, n)
}

/// Launch that writes d_qkv from the gradients of q, k and v: the gradient of [`split`].
///
/// # Errors
/// Same as [`split`].
pub fn merge<B: Copy>(
    buffers: Parts<B>,
    heads: Heads,
    rotation: Option<Rotation<B>>,
    element: Element,
    n: usize,
) -> Result<Vec<Launch<B>>> {
    let pass = Pass::Merge { heads, rotated: rotation.is_some() };
    launch_parts("rope::split_backward", buffers, pass, heads, rotation, element, n)
}

fn launch_parts<B: Copy>(
    operation: &'static str,
    buffers: Parts<B>,
    pass: Pass,
    heads: Heads,
    rotation: Option<Rotation<B>>,
    element: Element,
    n: usize,
) -> Result<Vec<Launch<B>>> {
    check_even(operation, heads.dim)?;
    let pairing = rotation.map_or(Pairing::Half, |r| r.pairing);
    let kernel = Kernel { pass, pairing, element };
    check::numbered(operation, "tokens", n, heads.width() / kernel.lanes())?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let Parts { qkv, parts: [q, k, v] } = buffers;
    // Without a rotation the kernel reads none of these three, so any buffer that it does not write
    // will do.
    let unread = if matches!(pass, Pass::Merge { .. }) { q } else { qkv };
    let [cos, sin, positions] = rotation.map_or([unread; 3], |r| [r.cos, r.sin, r.positions]);
    let count = n * (heads.query + 2 * heads.key_value) * kernel.shares();
    Ok(vec![Launch {
        kernel: compile::Kernel::Rope(kernel),
        cubes: [cubes(count, THREADS), 1, 1],
        buffers: vec![qkv, q, k, v, cos, sin, positions],
        scalars: vec![Scalar::U32(offset(count))],
    }])
}

/// Launch that rotates `x` (n, heads, dim) in place, or applies the transpose if `transposed`.
///
/// # Errors
/// Same as [`split`].
pub fn rotate<B: Copy>(
    x: B,
    rotation: Rotation<B>,
    transposed: bool,
    element: Element,
    [n, heads, dim]: [usize; 3],
) -> Result<Vec<Launch<B>>> {
    check_even("rope::rotate", dim)?;
    let Rotation { cos, sin, positions, pairing } = rotation;
    let kernel = Kernel { pass: Pass::Rotate { dim, transposed }, pairing, element };
    check::numbered("rope::rotate", "tokens", n, heads * dim / kernel.lanes())?;
    if n * heads == 0 {
        return Ok(Vec::new());
    }
    let count = n * heads * kernel.shares();
    Ok(vec![Launch {
        kernel: compile::Kernel::Rope(kernel),
        cubes: [cubes(count, THREADS), 1, 1],
        buffers: vec![x, cos, sin, positions],
        scalars: vec![Scalar::U32(offset(count)), Scalar::U32(offset(heads))],
    }])
}

fn check_even(operation: &'static str, dim: usize) -> Result<()> {
    if dim == 0 || !dim.is_multiple_of(2) {
        let needed = "the head width must be even, because elements are rotated in pairs";
        return Err(check::value(operation, "head_dim", dim.to_string(), needed));
    }
    Ok(())
}
