//! Attention's kernels and how they are launched.
//!
//! Floor: operations. With s the pairs of query and key that the mask lets see each other, forward is 2 products of them, 4·h·hd·s operations;
//! backward is 5 products, 10·h·hd·s, or 7 in the deterministic mode. A sequence of 2,048 tokens does 1,000 operations per byte, so memory
//! is no limit. Exponentials are: a multiprocessor makes 16 per clock and 2,048 multiply-adds, so that at a width of 64 the forward pass
//! has as many clocks of exponentials as of products, and one of the two must run under the other.
//!
//! Tiling, forward: a cube owns 128 queries of one head, and keys pass by in tiles of 64 (32 at a width of 256, or 16 with a window). Up to a width of 64
//! each of four planes owns 32 queries, so that a fragment of keys or values serves two products; wider heads take eight planes of
//! 16, which is what 255 registers hold of sums. Keys and values take turns in the air: V of a tile is copied (`cp.async`)
//! while its scores are multiplied, K of the next while the values are. Shared rows are swizzled by 16 bytes, so that neither copies nor
//! `ldmatrix` meet a bank twice. Probabilities go from the sums of one product to the operand of the next without leaving registers. Only
//! tiles at an edge of mask or sequence compute the mask; tiles outside are skipped.
//!
//! Tiling, backward: a cube owns keys of one key/value head (128, or 64 below a width of 64 and at 256) and walks over the queries of all heads that share
//! it, one tile ahead by `cp.async`; d_k and d_v stay in registers, so that grouped heads need
//! neither atomics nor a copy per query head. At a width of 256 two cubes own 128 columns each and
//! both compute scores and d_scores: 7 products instead of 5, as no register file holds the sums.
//! The fast mode adds d_score·K to d_q by f32 atomics, two numbers at a time; the deterministic one
//! walks over keys once more with a cube per 128 queries. Softmax is computed from the saved
//! log-sum-exp, and δ = Σ out·d_out by a small kernel before. Versions of the pass over keys that
//! were compared: `cube/backward_keys.rs`.
//!
//! Packed sequences: a list of places (sequence, tile) of the batch's lengths, the longest first, is cut on the host; there is no padding to compute and no
//! kernel asks for a sequence that a row is in.
//!
//! Why `mma.sync`: `wgmma` reads operands from shared memory and doubles the rate, but its fragments and barriers are Hopper's alone and CubeCL has no
//! words for them. Products go through one function (`cube::multiply`) with operands made by five others, which is where a second tier goes.
//! Considered: keeping queries in registers (at 64, 32 more registers for 8 `ldmatrix` of 40: the sums then spill); a tile of
//! 64 queries at a width of 256 (half the reuse of keys, one cube per multiprocessor either way); a plane per query head for grouped heads in forward
//! (keys are read from L2 by each head instead, which the floor allows).

use super::Mask;
use super::cube::attention_finish::AttentionFinish;
use super::cube::attention_forward::AttentionForward;
use super::cube::attention_prepare::AttentionPrepare;
use super::cube::backward_keys::Shape;
use super::cube::backward_keys::attention_backward_keys::AttentionBackwardKeys;
use super::cube::backward_queries::attention_backward_queries::AttentionBackwardQueries;
use crate::compile::{self, CompileError, Emit, Launch, Scalar, Source, cubes, emit, offset};
use crate::{Lengths, Result, check};

pub use super::cube::Sight;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Which kernel.
    pub pass: Pass,
    /// Width of a head, of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Which keys a query sees.
    pub sight: Sight,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Output and log-sum-exp.
    Forward,
    /// δ = Σ out·d_out, and the zeros that [`Self::KeysFast`] adds to.
    Prepare,
    /// d_k and d_v.
    Keys,
    /// d_k and d_v, and d_q by f32 atomics.
    KeysFast,
    /// d_q.
    Queries,
    /// d_q in bf16 from the sums of [`Self::KeysFast`].
    Finish,
}

impl Pass {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Forward, Self::Prepare, Self::Keys, Self::KeysFast, Self::Queries, Self::Finish];
}

impl Mask {
    fn sight(self) -> Sight {
        match self {
            Self::Full => Sight::Full,
            Self::Causal => Sight::Causal,
            Self::Window(_) => Sight::Window,
        }
    }

    /// The window, which only [`Sight::Window`] reads. Wider than any sequence is as good as infinite.
    fn window(self) -> u32 {
        match self {
            Self::Full | Self::Causal => 0,
            Self::Window(w) => u32::try_from(w).unwrap_or(MAX_LEN).min(MAX_LEN),
        }
    }
}

/// Widths of heads that kernels are made for.
pub const HEAD_DIMS: [usize; 5] = [16, 32, 64, 128, 256];

/// Tokens of the longest sequence that kernels count in 32 bits with a window added.
const MAX_LEN: u32 = 1 << 30;

/// How a kernel cuts its work.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    /// Planes of a cube.
    planes: u32,
    /// Blocks of 16 rows that a plane owns.
    blocks: usize,
    /// Rows of the tiles that pass by.
    others: u32,
}

impl Tiling {
    /// Rows that a cube owns.
    fn rows(self) -> usize {
        self.planes as usize * 16 * self.blocks
    }
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::Prepare => "prepare",
            Pass::Keys => "backward_keys",
            Pass::KeysFast => "backward_keys_fast",
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
        self.pass == Pass::KeysFast
    }

    /// Columns of the outputs that one cube owns: what its registers hold.
    fn slice(self) -> usize {
        match self.pass {
            Pass::Keys | Pass::KeysFast => self.head_dim.min(128),
            Pass::Forward | Pass::Prepare | Pass::Queries | Pass::Finish => self.head_dim,
        }
    }

    /// How the pass over keys cuts its work.
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
            // As many as leave no register to be spilled: `cube/backward_keys.rs`.
            held: match (self.head_dim, self.sight) {
                (64, Sight::Full | Sight::Causal) => [4, 3],
                (64, Sight::Window) => [4, 2],
                _ => [0, 0],
            },
            fast: self.pass == Pass::KeysFast,
        }
    }

    fn tiling(self) -> Tiling {
        let (planes, blocks, others) = match (self.pass, self.head_dim) {
            (Pass::Forward, 256) if self.sight == Sight::Window => (8, 1, 16),
            (Pass::Forward, ..=64) => (4, 2, 64),
            (Pass::Forward, 128) | (Pass::Queries, ..=64) => (8, 1, 64),
            (Pass::Forward | Pass::Queries, _) => (8, 1, 32),
            (Pass::Keys | Pass::KeysFast, _) => {
                let shape = self.key_shape();
                let blocks = shape.fragments as usize / shape.groups as usize;
                (shape.warps, blocks, shape.queries)
            }
            (Pass::Prepare | Pass::Finish, _) => (8, 1, 0),
        };
        Tiling { planes, blocks, others }
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let Tiling { planes, blocks, others } = self.tiling();
        let e = Emit::new(planes * 32);
        let (d, sight) = (offset(self.head_dim), self.sight);
        match self.pass {
            Pass::Forward => emit!(
                e, name, AttentionForward: [q k v places out lse] [scale scale_log2 window query_heads kv_heads],
                d, sight, planes, blocks, others,
            ),
            Pass::Prepare => {
                emit!(e, name, AttentionPrepare: [out d_out delta d_q] [rows], d / 8, true)
            }
            Pass::Keys | Pass::KeysFast => emit!(
                e, name, AttentionBackwardKeys: [q k v d_out lse delta places d_k d_v d_q]
                [scale scale_log2 window query_heads kv_heads],
                self.key_shape(),
            ),
            Pass::Queries => emit!(
                e, name, AttentionBackwardQueries: [q k v d_out lse delta places d_q]
                [scale scale_log2 window query_heads kv_heads],
                d, sight, planes, others,
            ),
            Pass::Finish => emit!(e, name, AttentionFinish: [sums d_q] [scale chunks]),
        }
    }
}

/// Heads of one call, as its tensors have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of q.
    pub query: usize,
    /// Heads of k and v, a divisor of `query`.
    pub key_value: usize,
    /// Width of each, of [`HEAD_DIMS`].
    pub dim: usize,
}

/// The places of the cubes that own `rows` rows each, four numbers per cube: first token of the sequence, its length, the first row's
/// place in it, and zero. Long sequences first, so that the last cubes to run are short ones.
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

/// The rows that a cube of `pass` owns: what [`places`] are cut by.
#[must_use]
pub fn rows(pass: Pass, head_dim: usize) -> usize {
    Kernel { pass, head_dim, sight: Sight::Full }.tiling().rows()
}

/// Buffers of [`forward`].
#[derive(Debug, Clone, Copy)]
pub struct Forward<B> {
    /// bf16 (n, h, hd).
    pub q: B,
    /// bf16 (n, g, hd).
    pub k: B,
    /// bf16 (n, g, hd).
    pub v: B,
    /// u32 (tiles, 4): [`places`] of [`rows`] of [`Pass::Forward`].
    pub places: B,
    /// Written: bf16 (n, h, hd).
    pub out: B,
    /// Written: f32 (n, h).
    pub lse: B,
}

/// Attention of `n` packed tokens in `tiles` places.
///
/// # Errors
/// When the width of heads is none that kernels are made for, heads do not divide, or a tensor is too large for 32-bit offsets.
pub fn forward<B: Copy>(
    buffers: Forward<B>,
    n: usize,
    tiles: usize,
    heads: Heads,
    mask: Mask,
    scale: f32,
) -> Result<Vec<Launch<B>>> {
    check_heads("attention::forward", n, heads, mask)?;
    let Forward { q, k, v, places, out, lse } = buffers;
    Ok(launch(
        Pass::Forward,
        vec![q, k, v, places, out, lse],
        [tiles, heads.query],
        heads,
        mask,
        scale,
    ))
}

/// Buffers of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// bf16 (n, h, hd).
    pub q: B,
    /// bf16 (n, g, hd).
    pub k: B,
    /// bf16 (n, g, hd).
    pub v: B,
    /// bf16 (n, h, hd), of [`forward`].
    pub out: B,
    /// f32 (n, h), of [`forward`].
    pub lse: B,
    /// bf16 (n, h, hd).
    pub d_out: B,
    /// u32 (key tiles, 4): [`places`] of [`rows`] of [`Pass::Keys`].
    pub key_places: B,
    /// u32 (query tiles, 4): [`places`] of [`rows`] of [`Pass::Queries`]. Not read in the fast mode.
    pub query_places: B,
    /// Workspace: f32 (n, h).
    pub delta: B,
    /// Workspace: f32 (n, h, hd), where the fast mode adds up d_q.
    pub sums: B,
    /// Written: bf16 (n, h, hd).
    pub d_q: B,
    /// Written: bf16 (n, g, hd).
    pub d_k: B,
    /// Written: bf16 (n, g, hd).
    pub d_v: B,
}

/// How d_q is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By f32 atomics on the way through the keys: five products per tile, sums in an order that changes from run to run.
    Fast,
    /// In a pass of its own: seven products per tile, the same bits in every run.
    Deterministic,
}

/// Gradients of [`forward`] for `n` packed tokens in `[key tiles, query tiles]` places.
///
/// # Errors
/// As [`forward`].
pub fn backward<B: Copy>(
    buffers: Backward<B>,
    n: usize,
    [key_tiles, query_tiles]: [usize; 2],
    heads: Heads,
    mask: Mask,
    scale: f32,
    mode: Mode,
) -> Result<Vec<Launch<B>>> {
    check_heads("attention::backward", n, heads, mask)?;
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
    let mut launches = vec![simple(
        Pass::Prepare,
        vec![out, d_out, delta, sums],
        vec![Scalar::U32(offset(n * heads.query))],
    )];
    let keys = [key_tiles, heads.key_value];
    match mode {
        Mode::Fast => {
            let buffers = with(&[key_places, d_k, d_v, sums]);
            launches.extend(launch(Pass::KeysFast, buffers, keys, heads, mask, scale));
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

/// One launch of `pass` unless there is no tile.
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

fn check_heads(operation: &'static str, n: usize, heads: Heads, mask: Mask) -> Result<()> {
    let Heads { query, key_value, dim } = heads;
    if !HEAD_DIMS.contains(&dim) {
        let needed = "kernels are made for heads of 16, 32, 64, 128 and 256";
        return Err(check::value(operation, "head width", dim.to_string(), needed));
    }
    if key_value == 0
        || query == 0
        || !query.is_multiple_of(key_value)
        || query > usize::from(u16::MAX)
    {
        let found = format!("{query} query and {key_value} key/value heads");
        let needed = "query heads are a positive multiple of key/value heads, at most 65535";
        return Err(check::value(operation, "heads", found, needed));
    }
    if mask == Mask::Window(0) {
        return Err(check::value(operation, "window", "0", "a token sees at least itself"));
    }
    if n >= MAX_LEN as usize || n.saturating_mul(query * dim) >= 1 << 35 {
        let needed =
            "tokens stay below 2^30, elements of q below 2^35 (32-bit offsets of 16 bytes)";
        return Err(check::value(operation, "tokens", n.to_string(), needed));
    }
    Ok(())
}
