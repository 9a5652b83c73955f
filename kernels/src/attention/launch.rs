//! Attention's kernels and their launches.
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
use super::cube::attention_finish::AttentionFinish;
use super::cube::attention_prepare::AttentionPrepare;
use super::cube::backward_keys::Shape;
use super::cube::backward_keys::attention_backward_keys::AttentionBackwardKeys;
use super::cube::backward_queries::attention_backward_queries::AttentionBackwardQueries;
use super::cube::forward::attention_forward::AttentionForward;
use super::cube::warpgroup_backward::attention_backward_warpgroups::AttentionBackwardWarpgroups;
use super::cube::warpgroup_forward::attention_forward_warpgroups::AttentionForwardWarpgroups;
use super::cube::{warpgroup_backward, warpgroup_forward};
use crate::compile::{self, CompileError, Emit, Launch, Scalar, Source, cubes, emit, offset};
use crate::{Lengths, Result, check};

pub use super::cube::Sight;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// The kernel of this operation.
    pub pass: Pass,
    /// Width of a head, one of [`HEAD_DIMS`] or, in the forward pass, of [`FORWARD_HEAD_DIMS`].
    pub head_dim: usize,
    /// Which keys a query sees.
    pub sight: Sight,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// The forward pass: out and the log-sum-exps.
    Forward,
    /// [`Self::Forward`] with products of warpgroups, for heads of 64 without a window.
    ForwardWarpgroups,
    /// δ = Σ out·d_out.
    Prepare,
    /// δ, and the zeros that [`Self::KeysFast`] and [`Self::KeysWarpgroups`] add to.
    PrepareFast,
    /// The backward pass over keys in the deterministic mode: d_k and d_v.
    Keys,
    /// The backward pass over keys in the fast mode: d_k and d_v, and d_q by f32 atomics.
    KeysFast,
    /// [`Self::KeysFast`] with products of warpgroups, for heads of 64 without a window.
    KeysWarpgroups,
    /// The backward pass over queries in the deterministic mode: d_q.
    Queries,
    /// Scales the f32 sums of [`Self::KeysFast`] or [`Self::KeysWarpgroups`] to d_q in bf16.
    Finish,
}

impl Pass {
    /// All kernels of this operation.
    pub const ALL: [Self; 9] = [
        Self::Forward,
        Self::ForwardWarpgroups,
        Self::Prepare,
        Self::PrepareFast,
        Self::Keys,
        Self::KeysFast,
        Self::KeysWarpgroups,
        Self::Queries,
        Self::Finish,
    ];

    /// The kernel that computes the forward pass.
    #[must_use]
    pub fn forward(mode: Mode, head_dim: usize, mask: Mask) -> Self {
        if mode.takes_warpgroups(head_dim, mask) { Self::ForwardWarpgroups } else { Self::Forward }
    }

    /// The kernel that computes d_k and d_v.
    #[must_use]
    pub fn keys(mode: Mode, head_dim: usize, mask: Mask) -> Self {
        match mode {
            Mode::Deterministic => Self::Keys,
            Mode::Warpgroups if mode.takes_warpgroups(head_dim, mask) => Self::KeysWarpgroups,
            Mode::Fast | Mode::Warpgroups => Self::KeysFast,
        }
    }
}

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

/// Head widths for which kernels are compiled.
pub const HEAD_DIMS: [usize; 5] = [16, 32, 64, 128, 256];
/// Head widths that have a kernel for the forward pass alone, for encoders that are not trained.
pub const FORWARD_HEAD_DIMS: [usize; 4] = [72, 80, 96, 192];

/// Bound on the tokens of a call, so that a token's position plus a window fits into 32 bits.
const MAX_LEN: u32 = 1 << 30;

/// Sizes by which a kernel divides its work.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    warps: u32,
    /// Fragments of 16 rows per warp. Rows that two warps share count once.
    fragments: usize,
    /// Rows of the tiles that a block walks over.
    tile_rows: u32,
}

impl Tiling {
    /// Rows that a block owns.
    fn rows(self) -> usize {
        self.warps as usize * 16 * self.fragments
    }
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::ForwardWarpgroups => "forward_warpgroups",
            Pass::Prepare => "prepare",
            Pass::PrepareFast => "prepare_fast",
            Pass::Keys => "backward_keys",
            Pass::KeysFast => "backward_keys_fast",
            Pass::KeysWarpgroups => "backward_keys_warpgroups",
            Pass::Queries => "backward_queries",
            Pass::Finish => "finish",
        };
        let sight = match self.sight {
            Sight::Full => "full",
            Sight::Causal => "causal",
            Sight::Window => "window",
        };
        format!("attention_{pass}_d{}_{sight}", self.head_dim)
    }

    pub(crate) fn sums_atomically(self) -> bool {
        matches!(self.pass, Pass::KeysFast | Pass::KeysWarpgroups)
    }

    /// Columns of the outputs that one block owns, limited by its registers.
    fn slice(self) -> usize {
        match self.pass {
            Pass::Keys | Pass::KeysFast => self.head_dim.min(128),
            Pass::Forward
            | Pass::ForwardWarpgroups
            | Pass::Prepare
            | Pass::PrepareFast
            | Pass::KeysWarpgroups
            | Pass::Queries
            | Pass::Finish => self.head_dim,
        }
    }

    /// Sizes of the pass over keys.
    fn key_shape(self) -> Shape {
        let (warps, groups, fragments, queries, strip) = match self.head_dim {
            ..=32 => (4, 1, 1, 64, 64),
            64 => (8, 2, 2, 128, 16),
            128 => (8, 1, 1, 32, 32),
            _ => (4, 1, 1, 32, 32),
        };
        Shape {
            head_dim: offset(self.head_dim),
            slice: offset(self.slice()),
            sight: self.sight,
            warps,
            groups,
            fragments,
            queries,
            strip,
            // The most steps that can be held without spilling registers: `cube/backward_keys.rs`.
            held: match (self.head_dim, self.sight) {
                (64, Sight::Full | Sight::Causal) => [4, 3],
                (64, Sight::Window) => [4, 2],
                _ => [0, 0],
            },
            fast: self.pass == Pass::KeysFast,
        }
    }

    fn tiling(self) -> Tiling {
        let (warps, fragments, tile_rows) = match (self.pass, self.head_dim) {
            (Pass::Forward, 256) if self.sight == Sight::Window => (8, 1, 16),
            (Pass::Forward, ..=64) => (4, 2, 64),
            (Pass::Forward, ..=128) | (Pass::Queries, ..=64) => (8, 1, 64),
            (Pass::Forward | Pass::Queries, _) => (8, 1, 32),
            (Pass::Keys | Pass::KeysFast, _) => {
                let shape = self.key_shape();
                let fragments = shape.fragments as usize / shape.groups as usize;
                (shape.warps, fragments, shape.queries)
            }
            (Pass::ForwardWarpgroups, _) => (warpgroup_forward::WARPS, 1, warpgroup_forward::ROWS),
            (Pass::KeysWarpgroups, _) => (warpgroup_backward::WARPS, 1, warpgroup_backward::ROWS),
            (Pass::Prepare | Pass::PrepareFast | Pass::Finish, _) => (8, 1, 0),
        };
        Tiling { warps, fragments, tile_rows }
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let Tiling { warps, fragments, tile_rows } = self.tiling();
        let blocks = match self.pass {
            Pass::ForwardWarpgroups => warpgroup_forward::BLOCKS,
            _ => 1,
        };
        let e = Emit::new(warps * 32).blocks(blocks);
        let (d, sight) = (offset(self.head_dim), self.sight);
        match self.pass {
            Pass::Forward => emit!(
                e, name, AttentionForward: [q k v places out lse] [scale scale_log2 window query_heads kv_heads],
                d, sight, warps, fragments, tile_rows,
            ),
            Pass::ForwardWarpgroups => emit!(
                e, name, AttentionForwardWarpgroups: [q k v places out lse]
                [scale scale_log2 window query_heads kv_heads],
                sight,
            ),
            Pass::KeysWarpgroups => emit!(
                e, name, AttentionBackwardWarpgroups: [q k v d_out lse delta places d_k d_v d_q]
                [scale scale_log2 window query_heads kv_heads],
                sight,
            ),
            Pass::Prepare | Pass::PrepareFast => emit!(
                e, name, AttentionPrepare: [out d_out delta d_q] [rows],
                d / 8, self.pass == Pass::PrepareFast,
            ),
            Pass::Keys | Pass::KeysFast => emit!(
                e, name, AttentionBackwardKeys: [q k v d_out lse delta places d_k d_v d_q]
                [scale scale_log2 window query_heads kv_heads],
                self.key_shape(),
            ),
            Pass::Queries => emit!(
                e, name, AttentionBackwardQueries: [q k v d_out lse delta places d_q]
                [scale scale_log2 window query_heads kv_heads],
                d, sight, warps, tile_rows,
            ),
            Pass::Finish => emit!(e, name, AttentionFinish: [sums d_q] [scale chunks]),
        }
    }
}

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

/// Which kernels compute attention, and how the backward pass sums d_q.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sums by f32 atomics during the pass over keys: five products per tile. The order of the
    /// sums, and so their last bits, change from run to run.
    Fast,
    /// Sums in a separate pass over queries: seven products per tile, and the same bits in every
    /// run.
    Deterministic,
    /// Like [`Self::Fast`], with products of warpgroups (`wgmma`) where kernels with them exist.
    /// Only benchmarks and tests select it; it has not run on a GPU.
    Warpgroups,
}

impl Mode {
    /// Whether kernels with products of warpgroups compute this attention.
    fn takes_warpgroups(self, head_dim: usize, mask: Mask) -> bool {
        self == Self::Warpgroups && head_dim == 64 && !matches!(mask, Mask::Window(_))
    }
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
