//! Products of a warpgroup, four warps of a block: `wgmma` m64nNk16 on bf16 with f32 sums.
//!
//! `wgmma` multiplies 64 rows at once. It reads its right operand, and optionally its left one,
//! from shared memory, so no thread loads fragments of them. Each function here issues the products
//! of one tile and waits for them. Another warpgroup computes meanwhile. No product is pending
//! between two functions, because CubeCL may move registers that a pending product still writes.
//!
//! A tile has rows of 64 bf16, [swizzled](super::swizzled) with eight chunks per row, which is the
//! layout that `wgmma` calls a swizzle of 128 bytes. It begins at a multiple of 1,024 bytes.
//!
//! A thread's sums of 64 rows by N columns are N / 8 groups of four, each placed like
//! [`Sums`]: warp w of the warpgroup holds rows 16·w to 16·w + 15, and group i holds columns 8·i to
//! 8·i + 7.

use cubecl::prelude::*;

use super::{Packed4, Sums};

/// A thread's sums of 64 rows by 64 columns.
pub(crate) type Sums64 = Vector<f32, Const<32>>;

/// Bytes of eight rows of a tile, over which its swizzle repeats.
const PATTERN_BYTES: u32 = 1024;
/// Bytes of which the address of a tile must be a multiple.
pub(crate) const TILE_ALIGNMENT: usize = PATTERN_BYTES as usize;

/// Upper half of a descriptor: a swizzle of 128 bytes, and the distance between groups of eight
/// rows in units of 16 bytes.
const UPPER: u32 = (1 << 30) | (PATTERN_BYTES / 16);

/// Lower half of a descriptor: the shared address in units of 16 bytes. The distance between groups
/// of 64 columns stays zero, because no operand has two of them.
#[cube]
pub(crate) fn descriptor(address: u32) -> u32 {
    address / 16
}

/// Makes this thread's stores and finished copies to shared memory visible to the products of all
/// threads that it meets at the next barrier.
#[cube]
pub(crate) fn publish() {
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// Group `at` of a thread's sums.
#[cube]
pub(crate) fn group<N: Size>(of: Vector<f32, N>, #[comptime] at: usize) -> Sums {
    let mut sums = Sums::empty();
    #[unroll]
    for i in 0..4usize {
        sums.insert(i, of.extract(comptime!(4 * at + i)));
    }
    sums
}

/// Distance of 16 terms of the sum in a tile, in units of 16 bytes.
fn step(over_rows: bool) -> u32 {
    if over_rows { 16 * 8 } else { 2 }
}

/// a·b, a sum of 64 terms: 64 rows of `a`, given as fragments of 16 columns, and 64 columns of `b`,
/// the descriptor of a tile. With `over_rows` the product sums over the tile's rows, otherwise over
/// its columns.
#[cube]
pub(crate) fn multiply_64(a: &Array<Packed4>, b: u32, #[comptime] over_rows: bool) -> Sums64 {
    let (a0, a1, a2, a3) = (a[0usize], a[1usize], a[2usize], a[3usize]);
    let d: Sums64;
    gpu_asm!(
        "{{ .reg .pred p; .reg .b64 b; mov.b64 b, {{{b}, {upper}}}; setp.ne.b32 p, 0, 0; wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, {a0}, b, p, 1, 1, {t}; setp.ne.b32 p, 1, 0; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, {a1}, b, p, 1, 1, {t}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, {a2}, b, p, 1, 1, {t}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, {a3}, b, p, 1, 1, {t};",
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }}",
        a0 = in(_) a0, a1 = in(_) a1, a2 = in(_) a2, a3 = in(_) a3,
        b = in(_) u32::reinterpret(b), d = out(_) d, upper = const UPPER,
        t = const u32::from(over_rows), step = const step(over_rows)
    );
    d
}

/// The sums of two products of 64 rows by 64 columns: a thread's groups 0 to 7 belong to the first,
/// 8 to 15 to the second.
pub(crate) type TwoSums64 = Vector<f32, Const<64>>;

/// The registers of the first or second half of 64, which start at register `from`.
fn half(from: usize) -> String {
    let names: Vec<String> = (from..from + 32).map(|i| format!("%{i}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// Copies the 64 registers after the result's to those of the result: `gpu_asm!` has no operand
/// that is both read and written.
fn moves() -> String {
    (0..64).map(|i| format!("mov.f32 %{i}, %{};", i + 64)).collect()
}

/// a·b and c·d, sums of 64 terms each: rows of `a` and `c` as fragments of 16 columns, columns of
/// `b` and `d` as descriptors of tiles over whose columns the products sum.
#[cube]
pub(crate) fn multiply_two_64(a: &Array<Packed4>, b: u32, c: &Array<Packed4>, d: u32) -> TwoSums64 {
    let (a0, a1, a2, a3) = (a[0usize], a[1usize], a[2usize], a[3usize]);
    let (c0, c1, c2, c3) = (c[0usize], c[1usize], c[2usize], c[3usize]);
    let out: TwoSums64;
    gpu_asm!(
        "{{ .reg .pred p; .reg .b64 b, d; mov.b64 b, {{{b}, {upper}}}; mov.b64 d, {{{d}, {upper}}}; /* {out} */",
        "setp.ne.b32 p, 0, 0; wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a0}, b, p, 1, 1, 0; setp.ne.b32 p, 1, 0; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a1}, b, p, 1, 1, 0; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a2}, b, p, 1, 1, 0; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a3}, b, p, 1, 1, 0;",
        "setp.ne.b32 p, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c0}, d, p, 1, 1, 0; setp.ne.b32 p, 1, 0; add.s64 d, d, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c1}, d, p, 1, 1, 0; add.s64 d, d, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c2}, d, p, 1, 1, 0; add.s64 d, d, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c3}, d, p, 1, 1, 0;",
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }}",
        a0 = in(_) a0, a1 = in(_) a1, a2 = in(_) a2, a3 = in(_) a3,
        c0 = in(_) c0, c1 = in(_) c1, c2 = in(_) c2, c3 = in(_) c3,
        b = in(_) u32::reinterpret(b), d = in(_) u32::reinterpret(d), out = out(_) out,
        upper = const UPPER, step = const step(false), first = const half(0), second = const half(32)
    );
    out
}

/// `sums` + (a·b, c·d), sums of 64 terms each: rows of `a` and `c` as fragments of 16 columns,
/// columns of `b` and `d` as descriptors of tiles over whose rows the products sum.
#[cube]
pub(crate) fn add_two_64(
    sums: TwoSums64,
    a: &Array<Packed4>,
    b: u32,
    c: &Array<Packed4>,
    d: u32,
) -> TwoSums64 {
    let (a0, a1, a2, a3) = (a[0usize], a[1usize], a[2usize], a[3usize]);
    let (c0, c1, c2, c3) = (c[0usize], c[1usize], c[2usize], c[3usize]);
    let out: TwoSums64;
    gpu_asm!(
        "{{ .reg .pred p; .reg .b64 b, d; mov.b64 b, {{{b}, {upper}}}; mov.b64 d, {{{d}, {upper}}};",
        "setp.ne.b32 p, 1, 0; {moves} /* {out} from {sums} */ wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a0}, b, p, 1, 1, 1; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a1}, b, p, 1, 1, 1; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a2}, b, p, 1, 1, 1; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {first}, {a3}, b, p, 1, 1, 1;",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c0}, d, p, 1, 1, 1; add.s64 d, d, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c1}, d, p, 1, 1, 1; add.s64 d, d, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c2}, d, p, 1, 1, 1; add.s64 d, d, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {second}, {c3}, d, p, 1, 1, 1;",
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }}",
        sums = in(_) TwoSums64::reinterpret(sums),
        a0 = in(_) a0, a1 = in(_) a1, a2 = in(_) a2, a3 = in(_) a3,
        c0 = in(_) c0, c1 = in(_) c1, c2 = in(_) c2, c3 = in(_) c3,
        b = in(_) u32::reinterpret(b), d = in(_) u32::reinterpret(d), out = out(_) out,
        upper = const UPPER, step = const step(true), moves = const moves(),
        first = const half(0), second = const half(32)
    );
    out
}

/// aᵀ·b, a sum of 128 terms: 64 rows and 64 columns, given as descriptors of tiles over whose rows
/// the product sums.
#[cube]
pub(crate) fn multiply_rows(a: u32, b: u32) -> Sums64 {
    let d: Sums64;
    gpu_asm!(
        "{{ .reg .pred p; .reg .b64 a, b; mov.b64 a, {{{a}, {upper}}}; mov.b64 b, {{{b}, {upper}}};",
        "setp.ne.b32 p, 0, 0; wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; setp.ne.b32 p, 1, 0; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1; add.s64 a, a, {step}; add.s64 b, b, {step};",
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {d}, a, b, p, 1, 1, 1, 1;",
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }}",
        a = in(_) u32::reinterpret(a), b = in(_) u32::reinterpret(b), d = out(_) d,
        upper = const UPPER, step = const step(true)
    );
    d
}
