//! Attention's kernels: the key of each, its tiling and its source. The floor and the reasons for
//! the tilings are in `launch.rs`.

use super::Mask;
use super::cube::attention_finish::AttentionFinish;
use super::cube::attention_prepare::AttentionPrepare;
use super::cube::backward_keys::Shape;
use super::cube::backward_keys::attention_backward_keys::AttentionBackwardKeys;
use super::cube::backward_queries::attention_backward_queries::AttentionBackwardQueries;
use super::cube::forward::attention_forward::AttentionForward;
use super::cube::warpgroup_backward::attention_backward_warpgroups::AttentionBackwardWarpgroups;
use super::cube::warpgroup_forward::attention_forward_warpgroups::AttentionForwardWarpgroups;
use super::cube::{Sight, warpgroup_backward, warpgroup_forward};
use crate::compile::{CompileError, Emit, Source, emit, offset};

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

/// Head widths for which kernels are compiled.
pub const HEAD_DIMS: [usize; 5] = [16, 32, 64, 128, 256];
/// Head widths that have a kernel for the forward pass alone, for encoders that are not trained.
pub const FORWARD_HEAD_DIMS: [usize; 4] = [72, 80, 96, 192];

/// Sizes by which a kernel divides its work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    warps: u32,
    /// Fragments of 16 rows per warp. Rows that two warps share count once.
    fragments: usize,
    /// Rows of the tiles that a block walks over.
    tile_rows: u32,
}

impl Tiling {
    /// Rows that a block owns.
    pub(super) fn rows(self) -> usize {
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
    pub(super) fn slice(self) -> usize {
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

    pub(super) fn tiling(self) -> Tiling {
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
