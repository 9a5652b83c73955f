//! The kernel of cached attention and its launch.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit.
//!
//! Floor: memory. A list of 2,000 rows with 8 key/value heads of width 64 is 4 MB of keys and
//! values, read once. A block owns one query and one key/value head, with up to eight of the query
//! heads that share it. A head is hd/8 chunks of 16 bytes, so hd/8 lanes share a row, and a block
//! of four warps reads 1024/hd rows at a time. Each such stream of lanes has a softmax of its own;
//! they are merged at the end, first in each warp by shuffles, then through shared memory.
//!
//! Alternative considered: several blocks per list with a second launch that merges them, which
//! would keep all multiprocessors busy for a single sequence. Batches and beams make enough blocks.

use super::cube::cached_attention_forward::CachedAttentionForward;
use crate::attention::launch::{HEAD_DIMS, Heads};
use crate::compile::{self, CompileError, Emit, Launch, Scalar, Source, emit, offset};
use crate::{Result, check};

pub use super::cube::Shape;

/// Warps of a block.
const WARPS: u32 = 4;

/// Query heads of a block at most: 16 registers per head and lane hold its query and its sum.
const MAX_HEADS: usize = 8;

/// Key of the kernel: everything that determines its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel(pub Shape);

impl Kernel {
    /// The kernel for heads of width `dim` of which `group` share a key/value head.
    #[must_use]
    pub fn of(dim: usize, group: usize) -> Self {
        let divisor = |heads: &usize| group.is_multiple_of(*heads);
        let heads = (1..=group.min(MAX_HEADS)).rev().find(divisor).unwrap_or(1);
        Self(Shape { chunks: offset(dim / 8), heads, warps: WARPS })
    }

    pub(crate) fn name(self) -> String {
        let Shape { chunks, heads, .. } = self.0;
        format!("cached_attention_d{}_h{heads}", 8 * chunks)
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(32 * self.0.warps);
        emit!(
            e, name, CachedAttentionForward: [q k v rows ends out] [scale query_heads kv_heads],
            self.0,
        )
    }
}

/// Buffers of one call.
#[derive(Debug, Clone, Copy)]
pub struct Forward<B> {
    /// Queries, bf16 (n, h, hd).
    pub q: B,
    /// Pool of keys, bf16 (p, g, hd).
    pub k: B,
    /// Pool of values, bf16 (p, g, hd).
    pub v: B,
    /// Rows of all lists, i32.
    pub rows: B,
    /// Ends of the lists, i32 (n + 1), from 0. No list is empty.
    pub ends: B,
    /// Attended values, bf16 (n, h, hd).
    pub out: B,
}

/// Launch that writes `out` for n queries over a pool of p rows. The kernel does not check that the
/// rows of the lists are below p; the caller does.
///
/// # Errors
/// If no kernel exists for the width of the heads, or sizes exceed the grid or 32-bit offsets.
pub fn forward<B: Copy>(
    buffers: Forward<B>,
    [n, p]: [usize; 2],
    heads: Heads,
    scale: f32,
) -> Result<Vec<Launch<B>>> {
    const NAME: &str = "cached_attention::forward";
    let Heads { query, key_value, dim } = heads;
    if !HEAD_DIMS.contains(&dim) {
        let needed = "kernels exist for head widths 16, 32, 64, 128 and 256";
        return Err(check::value(NAME, "head width", dim.to_string(), needed));
    }
    if key_value == 0 || query > usize::from(u16::MAX) || !query.is_multiple_of(key_value) {
        let found = format!("{query} query and {key_value} key/value heads");
        let needed = "the number of query heads must be a multiple of the number of key/value \
                      heads, and at most 65535";
        return Err(check::value(NAME, "heads", found, needed));
    }
    check::numbered(NAME, "queries", n, query * dim / 8)?;
    check::numbered(NAME, "rows of the pool", p, key_value * dim / 8)?;
    // The grid of a GPU has at most 2³¹ − 1 blocks in x.
    check::numbered(NAME, "queries", n, 2)?;
    if n == 0 || query == 0 {
        return Ok(Vec::new());
    }
    let kernel = Kernel::of(dim, query / key_value);
    let Forward { q, k, v, rows, ends, out } = buffers;
    Ok(vec![Launch {
        kernel: compile::Kernel::CachedAttention(kernel),
        cubes: [offset(n), offset(key_value), offset(query / key_value / kernel.0.heads)],
        buffers: vec![q, k, v, rows, ends, out],
        scalars: vec![
            Scalar::F32(scale),
            Scalar::U32(offset(query)),
            Scalar::U32(offset(key_value)),
        ],
    }])
}
