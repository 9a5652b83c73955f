//! The kernels of rotary embedding and how they are launched.
//!
//! Floor: memory; every element of qkv is read once and written once, 2 passes in each direction; tables of cosines and sines (f32, one
//! row per position, 0.5 MB for a clip of V-JEPA 2) stay in L2. Without the fusion there would be a pass more for q and k.
//!
//! Tiling: a unit turns whole pairs: 16 bytes of neighbouring elements, or 16 bytes of a head's lower half with the same of its upper half. Heads and
//! their width are known when the kernel is compiled, so that indices are multiplications.

use super::cube::rope_merge::RopeMerge;
use super::cube::rope_rotate::RopeRotate;
use super::cube::rope_split::RopeSplit;
use super::{Heads, Pairing};
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Units of a cube.
const UNITS: usize = 256;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Which pass.
    pub pass: Pass,
    /// Which elements are turned together.
    pub pairing: Pairing,
    /// Element type of projections, queries, keys and values.
    pub element: Element,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// q, k and v out of a fused projection.
    Split {
        /// Heads of the projection.
        heads: Heads,
        /// Whether q and k are turned.
        rotated: bool,
    },
    /// The gradient of a split.
    Merge {
        /// Heads of the projection.
        heads: Heads,
        /// Whether q and k were turned.
        rotated: bool,
    },
    /// Heads turned in place.
    Rotate {
        /// Width of a head.
        dim: usize,
        /// Whether by the transpose.
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

    /// Units that share one head.
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
        let e = Emit::new(offset(UNITS));
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

/// A table and the tokens' positions in it, which whoever makes them checks against the table.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<B> {
    /// f32 (positions, hd).
    pub cos: B,
    /// f32 (positions, hd).
    pub sin: B,
    /// i32 (n).
    pub positions: B,
    /// Which elements are turned together.
    pub pairing: Pairing,
}

/// A fused projection and its parts.
#[derive(Debug, Clone, Copy)]
pub struct Parts<B> {
    /// (n, (h + 2g)·hd).
    pub qkv: B,
    /// (n, h, hd), (n, g, hd), (n, g, hd).
    pub parts: [B; 3],
}

/// Writes q, k and v from qkv, q and k turned.
///
/// # Errors
/// When 32-bit offsets do not count the elements, or the width of a head is odd.
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

/// Writes d_qkv from the gradients of q, k and v: the gradient of [`split`].
///
/// # Errors
/// As [`split`].
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
    check_size(operation, n, heads.width(), heads.dim)?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let Parts { qkv, parts: [q, k, v] } = buffers;
    let pairing = rotation.map_or(Pairing::Half, |r| r.pairing);
    // Without a rotation nothing reads these; a buffer that the kernel writes must not stand in.
    let unread = if matches!(pass, Pass::Merge { .. }) { q } else { qkv };
    let [cos, sin, positions] = rotation.map_or([unread; 3], |r| [r.cos, r.sin, r.positions]);
    let kernel = Kernel { pass, pairing, element };
    let count = n * (heads.query + 2 * heads.key_value) * kernel.shares();
    Ok(vec![Launch {
        kernel: compile::Kernel::Rope(kernel),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers: vec![qkv, q, k, v, cos, sin, positions],
        scalars: vec![Scalar::U32(offset(count))],
    }])
}

/// Turns `x` (n, heads, dim) in place, or by the transpose.
///
/// # Errors
/// As [`split`].
pub fn rotate<B: Copy>(
    x: B,
    rotation: Rotation<B>,
    transposed: bool,
    element: Element,
    [n, heads, dim]: [usize; 3],
) -> Result<Vec<Launch<B>>> {
    check_size("rope::rotate", n, heads * dim, dim)?;
    if n * heads == 0 {
        return Ok(Vec::new());
    }
    let Rotation { cos, sin, positions, pairing } = rotation;
    let kernel = Kernel { pass: Pass::Rotate { dim, transposed }, pairing, element };
    let count = n * heads * kernel.shares();
    Ok(vec![Launch {
        kernel: compile::Kernel::Rope(kernel),
        cubes: [cubes(count, UNITS), 1, 1],
        buffers: vec![x, cos, sin, positions],
        scalars: vec![Scalar::U32(offset(count)), Scalar::U32(offset(heads))],
    }])
}

fn check_size(operation: &'static str, n: usize, width: usize, dim: usize) -> Result<()> {
    if dim == 0 || !dim.is_multiple_of(2) {
        let needed = "pairs of elements need an even width";
        return Err(check::value(operation, "head_dim", dim.to_string(), needed));
    }
    if n.saturating_mul(width) >= 1 << 32 {
        let needed = format!("tokens times a width of {width} stay below 2^32 (32-bit offsets)");
        return Err(check::value(operation, "tokens", n.to_string(), needed));
    }
    Ok(())
}
