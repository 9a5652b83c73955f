//! The launches of attention's kernels, and how the kernels divide the work.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit.
//!
//! Floor: operations. With s the number of pairs of a query and a key that it sees, the forward
//! pass computes 2 products per pair, 4·h·hd·s operations. The backward pass computes 5 products,
//! 10·h·hd·s operations, or 7 products in the deterministic mode. A sequence of 2,048 tokens does
//! 1,000 operations per byte, so memory is not the limit. Exponentials are: per clock, a
//! multiprocessor computes 16 exponentials or 2,048 multiply-adds, so at a width of 64 the forward
//! pass needs as many clocks for exponentials as for products, and one must overlap the other.
//!
//! Tiling, forward: a block owns 128 queries of one head and walks over K and V in tiles of 64 keys
//! (32 at a width of 256, or 16 with a window). Up to a width of 64, each of four warps owns 32
//! queries, so a fragment of K or V is used in two products. Wider heads take eight warps of 16
//! queries, because 255 registers hold no more sums. K and V loads alternate: V of a tile is in
//! flight (`cp.async`) while its scores are computed, and K of the next tile is in flight during
//! P·V. Shared rows are swizzled in chunks of 16 bytes, so neither copies nor `ldmatrix` have bank
//! conflicts. Probabilities go from the sums of one product to the operand of the next without
//! leaving registers. Only tiles at an edge of the mask or the sequence evaluate the mask; tiles
//! outside are skipped.
//!
//! Tiling, backward: a block owns keys of one key/value head (64 at widths below 64 and at 256,
//! otherwise 128) and walks over the queries of all heads that share it; `cp.async` loads one tile
//! ahead. d_k and d_v stay in registers, so grouped heads need neither atomics nor a copy per query
//! head. At a width of 256 two blocks own 128 columns each and both compute scores and dP: 7
//! products instead of 5, because no register file holds the sums of all columns. The fast mode
//! adds dS·K to d_q by f32 atomics, two numbers at a time; the deterministic mode walks over the
//! keys again with a block per 128 queries. The softmax is recomputed from the saved log-sum-exp; a
//! small kernel computes δ = Σ out·d_out first. `cube/backward_keys.rs` compares versions of the
//! pass over keys.
//!
//! Packed sequences: the host cuts the sequences of a batch into a table of tiles ([`places`]), the
//! longest sequences first. No padding is computed, and no kernel searches for the sequence that
//! contains a row.
//!
//! Products: these kernels multiply by `mma.sync`, whose operands every warp loads from shared
//! memory with `ldmatrix`. [`Mode::Warpgroups`] takes kernels that multiply by `wgmma` instead
//! (`cube/warpgroup_forward.rs`, `cube/warpgroup_backward.rs`), which Hopper executes at twice the
//! rate and which reads its right operand from shared memory. They exist for heads of 64 without a
//! window: the attention of V-JEPA 2, of Llama and of most dual encoders. Only benchmarks and tests
//! select this mode; it has not run on a GPU.
//!
//! Considered: keeping queries in registers (at a width of 64 this takes 32 more registers and
//! saves 8 of 40 `ldmatrix`, but the sums spill); a tile of 64 queries at a width of 256 (half the
//! reuse of keys, with one block per multiprocessor either way); a warp per query head for grouped
//! heads in the forward pass (instead, each head reads the keys from L2, which the floor allows).

use super::Mask;
use crate::compile::{self, Launch, Scalar, cubes, offset};
use crate::{Lengths, Result, check};

pub use super::cube::Sight;
pub use super::kernels::{FORWARD_HEAD_DIMS, HEAD_DIMS, Kernel, Mode, Pass};

impl Mask {
    fn sight(self) -> Sight {
        match self {
            Self::Full => Sight::Full,
            Self::Causal => Sight::Causal,
            Self::Window(_) => Sight::Window,
        }
    }

    /// The window, read only by kernels of [`Sight::Window`]. It is capped at [`MAX_LEN`], because
    /// a window wider than any sequence hides nothing.
    fn window(self) -> u32 {
        match self {
            Self::Full | Self::Causal => 0,
            Self::Window(w) => u32::try_from(w).unwrap_or(MAX_LEN).min(MAX_LEN),
        }
    }
}

/// Bound on the tokens of a call, so that a token's position plus a window fits into 32 bits.
const MAX_LEN: u32 = 1 << 30;

/// Numbers of heads in the tensors of one call, and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of q, called h.
    pub query: usize,
    /// Heads of k and v, called g: a divisor of `query`.
    pub key_value: usize,
    /// Width of a head, called hd: one of [`HEAD_DIMS`] or, in the forward pass, of
    /// [`FORWARD_HEAD_DIMS`].
    pub dim: usize,
}

/// Tile table for blocks that own `rows` rows each. Four numbers per tile: first token of the
/// sequence, length of the sequence, the tile's first row within the sequence, and zero.
///
/// Tiles of long sequences come first, so that the last blocks to run are short.
#[must_use]
pub fn places(lengths: &Lengths, rows: usize) -> Vec<u32> {
    let mut tiles: Vec<[u32; 4]> = (0..lengths.rows())
        .flat_map(|row| {
            let tokens = lengths.range(row);
            let (start, len) = (offset(tokens.start), offset(tokens.len()));
            (0..tokens.len()).step_by(rows).map(move |first| [start, len, offset(first), 0])
        })
        .collect();
    tiles.sort_by_key(|[start, len, first, _]| (std::cmp::Reverse(*len), *start, *first));
    tiles.concat()
}

/// Rows that a block of `pass` owns: the `rows` argument of [`places`].
#[must_use]
pub fn rows(pass: Pass, head_dim: usize) -> usize {
    Kernel { pass, head_dim, sight: Sight::Full }.tiling().rows()
}

/// Buffers of one call of [`forward`].
#[derive(Debug, Clone, Copy)]
pub struct Forward<B> {
    /// Queries, bf16 (n, h, hd).
    pub q: B,
    /// Keys, bf16 (n, g, hd).
    pub k: B,
    /// Values, bf16 (n, g, hd).
    pub v: B,
    /// Tile table, u32 (tiles, 4): [`places`] for the [`rows`] of [`Pass::forward`].
    pub places: B,
    /// Written: outputs, bf16 (n, h, hd).
    pub out: B,
    /// Written: log-sum-exps, f32 (n, h).
    pub lse: B,
}

/// Launches of the forward pass over `n` packed tokens in `tiles` tiles.
///
/// # Errors
/// When no kernel exists for the head width, the head counts do not divide, a window is empty, or a
/// tensor is too large for 32-bit offsets.
pub fn forward<B: Copy>(
    buffers: Forward<B>,
    n: usize,
    tiles: usize,
    heads: Heads,
    mask: Mask,
    scale: f32,
    mode: Mode,
) -> Result<Vec<Launch<B>>> {
    let dims = [&HEAD_DIMS[..], &FORWARD_HEAD_DIMS[..]].concat();
    check_heads("attention::forward", n, heads, mask, &dims)?;
    let Forward { q, k, v, places, out, lse } = buffers;
    Ok(launch(
        Pass::forward(mode, heads.dim, mask),
        vec![q, k, v, places, out, lse],
        [tiles, heads.query],
        heads,
        mask,
        scale,
    ))
}

/// Buffers of one call of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// Queries, bf16 (n, h, hd).
    pub q: B,
    /// Keys, bf16 (n, g, hd).
    pub k: B,
    /// Values, bf16 (n, g, hd).
    pub v: B,
    /// Outputs of [`forward`], bf16 (n, h, hd).
    pub out: B,
    /// Log-sum-exps of [`forward`], f32 (n, h).
    pub lse: B,
    /// Gradient of the outputs, bf16 (n, h, hd).
    pub d_out: B,
    /// Tile table, u32 (key tiles, 4): [`places`] for the [`rows`] of [`Pass::keys`].
    pub key_places: B,
    /// Tile table, u32 (query tiles, 4): [`places`] for the [`rows`] of [`Pass::Queries`]. Read
    /// only in the deterministic mode.
    pub query_places: B,
    /// Workspace for δ, f32 (n, h).
    pub delta: B,
    /// Workspace in which d_q is summed by atomics, f32 (n, h, hd). Empty in the deterministic
    /// mode.
    pub sums: B,
    /// Written: gradient of q, bf16 (n, h, hd).
    pub d_q: B,
    /// Written: gradient of k, bf16 (n, g, hd).
    pub d_k: B,
    /// Written: gradient of v, bf16 (n, g, hd).
    pub d_v: B,
}

/// Launches for the gradients of [`forward`] over `n` packed tokens in `[key_tiles, query_tiles]`
/// tiles.
///
/// # Errors
/// Same as [`forward`].
pub fn backward<B: Copy>(
    buffers: Backward<B>,
    n: usize,
    [key_tiles, query_tiles]: [usize; 2],
    heads: Heads,
    mask: Mask,
    scale: f32,
    mode: Mode,
) -> Result<Vec<Launch<B>>> {
    check_heads("attention::backward", n, heads, mask, &HEAD_DIMS)?;
    if mode != Mode::Deterministic && n.saturating_mul(heads.query * heads.dim) >= 1 << 32 {
        let needed = "elements of q must stay below 2^32 (32-bit offsets of f32 sums), except in \
                      the deterministic mode";
        return Err(check::value("attention::backward", "tokens", n.to_string(), needed));
    }
    if n == 0 {
        return Ok(Vec::new());
    }
    let Backward { q, k, v, out, lse, d_out, key_places, query_places, delta, sums, d_q, d_k, d_v } =
        buffers;
    let chunks = n * heads.query * heads.dim / 8;
    let each = 256;
    let simple = |pass, buffers, scalars| Launch {
        kernel: compile::Kernel::Attention(Kernel {
            pass,
            head_dim: heads.dim,
            sight: Sight::Full,
        }),
        cubes: [cubes(chunks, each), 1, 1],
        buffers,
        scalars,
    };
    let inputs = [q, k, v, d_out, lse, delta];
    let with = |rest: &[B]| [&inputs[..], rest].concat();
    let prepare = match mode {
        Mode::Deterministic => Pass::Prepare,
        Mode::Fast | Mode::Warpgroups => Pass::PrepareFast,
    };
    let mut launches = vec![simple(
        prepare,
        vec![out, d_out, delta, sums],
        vec![Scalar::U32(offset(n * heads.query))],
    )];
    let keys = [key_tiles, heads.key_value];
    match mode {
        Mode::Fast | Mode::Warpgroups => {
            let buffers = with(&[key_places, d_k, d_v, sums]);
            let pass = Pass::keys(mode, heads.dim, mask);
            launches.extend(launch(pass, buffers, keys, heads, mask, scale));
            let scalars = vec![Scalar::F32(scale), Scalar::U32(offset(chunks))];
            launches.push(simple(Pass::Finish, vec![sums, d_q], scalars));
        }
        Mode::Deterministic => {
            let buffers = with(&[key_places, d_k, d_v, sums]);
            launches.extend(launch(Pass::Keys, buffers, keys, heads, mask, scale));
            let buffers = with(&[query_places, d_q]);
            let queries = [query_tiles, heads.query];
            launches.extend(launch(Pass::Queries, buffers, queries, heads, mask, scale));
        }
    }
    Ok(launches)
}

/// The launch of `pass` over `tiles` tiles and `in_y` heads; empty if there are no tiles.
fn launch<B>(
    pass: Pass,
    buffers: Vec<B>,
    [tiles, in_y]: [usize; 2],
    heads: Heads,
    mask: Mask,
    scale: f32,
) -> Vec<Launch<B>> {
    if tiles == 0 {
        return Vec::new();
    }
    let kernel = Kernel { pass, head_dim: heads.dim, sight: mask.sight() };
    vec![Launch {
        kernel: compile::Kernel::Attention(kernel),
        cubes: [offset(tiles), offset(in_y), offset(heads.dim / kernel.slice())],
        buffers,
        scalars: vec![
            Scalar::F32(scale),
            Scalar::F32(scale * std::f32::consts::LOG2_E),
            Scalar::U32(mask.window()),
            Scalar::U32(offset(heads.query)),
            Scalar::U32(offset(heads.key_value)),
        ],
    }]
}

fn check_heads(
    operation: &'static str,
    n: usize,
    heads: Heads,
    mask: Mask,
    dims: &[usize],
) -> Result<()> {
    let Heads { query, key_value, dim } = heads;
    if !dims.contains(&dim) {
        let mut dims = dims.to_vec();
        dims.sort_unstable();
        let needed = format!("kernels exist for head widths {dims:?}");
        return Err(check::value(operation, "head width", dim.to_string(), needed));
    }
    if key_value == 0
        || query == 0
        || !query.is_multiple_of(key_value)
        || query > usize::from(u16::MAX)
    {
        let found = format!("{query} query and {key_value} key/value heads");
        let needed = "the number of query heads must be a positive multiple of the number of \
                      key/value heads, and at most 65535";
        return Err(check::value(operation, "heads", found, needed));
    }
    if mask == Mask::Window(0) {
        let needed = "a window must be at least 1, so that a token sees itself";
        return Err(check::value(operation, "window", "0", needed));
    }
    if n >= MAX_LEN as usize || n.saturating_mul(query * dim) >= 1 << 35 {
        let needed = "tokens must stay below 2^30 and elements of q below 2^35 (32-bit offsets \
                      of 16 bytes)";
        return Err(check::value(operation, "tokens", n.to_string(), needed));
    }
    Ok(())
}
