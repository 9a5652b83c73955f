//! The tensor-core tile in inline PTX: `ldmatrix`, `mma.sync` m16n8k16 on bf16 with f32 sums, and
//! `cp.async` into shared memory.
//!
//! Each instruction has one function here. A tile in shared memory consists of rows of 16-byte
//! chunks of eight bf16 each; [`swizzled`] spreads a column of chunks over all banks. "16 rows from
//! `row`" means rows `row` to `row + 15`.

use cubecl::prelude::*;
use cubecl_cpp::cuda::ptx::generic_to_shared;
use half::bf16;

/// 16 bytes: eight bf16 elements.
pub(crate) type Chunk = Vector<bf16, Const<8>>;
/// Four registers of packed bf16 pairs: the left operand of one multiplication, or two right
/// operands.
pub(crate) type Packed4 = Vector<u32, Const<4>>;
/// A lane's four f32 sums of one `mma.sync`. Elements 0 and 1 belong to the upper row, lane / 4,
/// and elements 2 and 3 to the lower row, lane / 4 + 8; each pair covers column 2·(lane mod 4) and
/// the next.
pub(crate) type Sums = Vector<f32, Const<4>>;

/// Adds the products of `a` with two right operands, elements 0 and 1 and elements 2 and 3 of `b`,
/// to `sums[at]` and `sums[at + 1]`.
#[cube]
pub(crate) fn multiply_pair(a: Packed4, b: Packed4, sums: &mut Array<Sums>, #[comptime] at: usize) {
    sums[at] = multiply(a, b.extract(0usize), b.extract(1usize), sums[at]);
    sums[at + 1] = multiply(a, b.extract(2usize), b.extract(3usize), sums[at + 1]);
}

/// a·b + c. The right operand is `b0` (rows 0 to 7 of its 16) and `b1` (rows 8 to 15). The compiler
/// may not move the product into a branch that only some lanes take.
#[cube]
fn multiply(a: Packed4, b0: u32, b1: u32, c: Sums) -> Sums {
    let d: Sums;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{c0}, {c1}, {c2}, {c3}}};",
        a0 = in(_) a.extract(0usize), a1 = in(_) a.extract(1usize), a2 = in(_) a.extract(2usize), a3 = in(_) a.extract(3usize),
        b0 = in(_) u32::reinterpret(b0), b1 = in(_) u32::reinterpret(b1),
        c0 = in(_) c.extract(0usize), c1 = in(_) c.extract(1usize), c2 = in(_) c.extract(2usize), c3 = in(_) c.extract(3usize),
        d = out(_) d, options(nomem)
    );
    d
}

/// Loads four 8×8 matrices of bf16. Lane i holds the shared address of row i mod 8 of matrix i / 8.
#[cube]
pub(crate) fn load_matrices(address: u32) -> Packed4 {
    let d: Packed4;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {d}, [{address}];",
        address = in(_) u32::reinterpret(address), d = out(_) d
    );
    d
}

/// Loads four 8×8 matrices like [`load_matrices`] and transposes each of them.
#[cube]
pub(crate) fn load_matrices_transposed(address: u32) -> Packed4 {
    let d: Packed4;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {d}, [{address}];",
        address = in(_) u32::reinterpret(address), d = out(_) d
    );
    d
}

/// Rounds two numbers to bf16 and packs them into one register, `low` in the lower half.
#[cube]
pub(crate) fn pack_pair(low: f32, high: f32) -> u32 {
    let d: u32;
    gpu_asm!(
        "cvt.rn.bf16x2.f32 {d}, {high}, {low};",
        high = in(_) f32::reinterpret(high), low = in(_) f32::reinterpret(low), d = out(_) d,
        options(pure, nomem)
    );
    d
}

/// 2ˣ with a relative error below 2⁻²²; 0 at −∞.
#[cube]
pub(crate) fn exp2(x: f32) -> f32 {
    let d: f32;
    gpu_asm!(
        "ex2.approx.ftz.f32 {d}, {x};",
        x = in(_) f32::reinterpret(x), d = out(_) d, options(pure, nomem)
    );
    d
}

/// Shared address of the first chunk of `tile`.
#[cube]
pub(crate) fn shared_address(tile: &Shared<[Chunk]>) -> u32 {
    generic_to_shared::<Chunk>(tile.as_ptr())
}

/// Starts an asynchronous copy of chunk `index` of `from` to shared address `to`. `bytes` is 16, or
/// 0 to write zeros.
#[cube]
pub(crate) fn copy_chunk(from: &[Chunk], index: u32, to: u32, bytes: u32) {
    let from = from[index as usize..].as_ptr();
    gpu_asm!(
        "cp.async.cg.shared.global [{to}], [{from}], 16, {bytes};",
        to = in(_) u32::reinterpret(to), from = mem_in(_) from, bytes = in(_) u32::reinterpret(bytes),
        options(explicit_mem)
    );
}

/// Closes the group of copies that this thread has started since the last call.
#[cube]
pub(crate) fn copies_commit() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until at most `pending` groups of this thread's copies are in flight. `sync_cube` must
/// follow before other threads read the data.
#[cube]
pub(crate) fn copies_wait(#[comptime] pending: usize) {
    gpu_asm!("cp.async.wait_group {pending};", pending = const pending);
}

/// Byte offset of a chunk in a tile of `chunks` chunks per row (a power of two, at least 8): chunk
/// c of row r is stored at position c ⊕ (r mod 8) of its row.
#[cube]
pub(crate) fn swizzled(row: u32, chunk: u32, #[comptime] chunks: u32) -> u32 {
    (row * chunks + (chunk ^ (row % 8))) * 16
}

/// Stores a packed pair of bf16 to shared address `to`.
#[cube]
pub(crate) fn store_pair(to: u32, pair: u32) {
    gpu_asm!(
        "st.shared.b32 [{to}], {pair};",
        to = in(_) u32::reinterpret(to), pair = in(_) u32::reinterpret(pair)
    );
}

/// Stores four sums to shared address `to`.
#[cube]
pub(crate) fn store_sums(to: u32, sums: Sums) {
    gpu_asm!(
        "st.shared.v4.f32 [{to}], {{{s0}, {s1}, {s2}, {s3}}};",
        to = in(_) u32::reinterpret(to),
        s0 = in(_) sums.extract(0usize), s1 = in(_) sums.extract(1usize),
        s2 = in(_) sums.extract(2usize), s3 = in(_) sums.extract(3usize)
    );
}

/// Loads four sums from shared address `from`.
#[cube]
pub(crate) fn load_sums(from: u32) -> Sums {
    let d: Sums;
    gpu_asm!("ld.shared.v4.f32 {d}, [{from}];", from = in(_) u32::reinterpret(from), d = out(_) d);
    d
}

/// Address of the row that this lane passes to an `ldmatrix`: row `lane_row` and chunk `lane_chunk`
/// (0 or 1), counted from row `row` (a multiple of 8) and the even chunk `chunk` of a swizzled
/// tile.
///
/// A tile begins at a multiple of 128 bytes, so the exclusive or of [`swizzled`] may come last: one
/// number per lane serves all rows and chunks of a tile, and the row is a constant of the
/// instruction.
#[cube]
fn matrix_address(
    tile: u32,
    row: u32,
    chunk: u32,
    lane_row: u32,
    lane_chunk: u32,
    #[comptime] chunks: u32,
) -> u32 {
    let lane = tile + swizzled(lane_row, lane_chunk, chunks);
    (lane ^ (chunk % 8 * 16)) + (row * chunks + chunk / 8 * 8) * 16
}

/// Left operand from a swizzled tile: 16 rows from `row`, 16 columns from 16·`step`.
#[cube]
pub(crate) fn left(tile: u32, row: u32, step: u32, #[comptime] chunks: u32) -> Packed4 {
    let lane = UNIT_POS_X % 32;
    load_matrices(matrix_address(tile, row, step * 2, lane % 16, lane / 16, chunks))
}

/// Left operand from the transpose of a tile: its 16 rows are the tile's columns from 8·`chunk`,
/// its 16 columns are the tile's rows from `row`.
#[cube]
pub(crate) fn left_transposed(tile: u32, row: u32, chunk: u32, #[comptime] chunks: u32) -> Packed4 {
    let lane = UNIT_POS_X % 32;
    let lane_row = (lane / 16) * 8 + lane % 8;
    load_matrices_transposed(matrix_address(tile, row, chunk, lane_row, (lane / 8) % 2, chunks))
}

/// Two right operands from the transpose of a tile. The tile's 16 rows from `row` are their columns
/// (8 each); the product sums over the tile's 16 columns from 16·`step`.
#[cube]
pub(crate) fn right_transposed(tile: u32, row: u32, step: u32, #[comptime] chunks: u32) -> Packed4 {
    let lane = UNIT_POS_X % 32;
    let lane_row = (lane / 16) * 8 + lane % 8;
    load_matrices(matrix_address(tile, row, step * 2, lane_row, (lane / 8) % 2, chunks))
}

/// Two right operands from a tile. The tile's 16 columns from 8·`chunk` are their columns (8 each);
/// the product sums over the tile's 16 rows from `row`.
#[cube]
pub(crate) fn right(tile: u32, row: u32, chunk: u32, #[comptime] chunks: u32) -> Packed4 {
    let lane = UNIT_POS_X % 32;
    load_matrices_transposed(matrix_address(tile, row, chunk, lane % 16, lane / 16, chunks))
}

/// Sums that hold `top` in both elements of the upper row and `bottom` in both of the lower row.
#[cube]
pub(crate) fn by_row(top: f32, bottom: f32) -> Sums {
    let mut sums = Sums::empty();
    sums.insert(0usize, top);
    sums.insert(1usize, top);
    sums.insert(2usize, bottom);
    sums.insert(3usize, bottom);
    sums
}

/// Left operand from packed pairs of sums: upper and lower row of columns 0 to 7 (`a0`, `a1`), then
/// of columns 8 to 15 (`a2`, `a3`).
#[cube]
pub(crate) fn operand(a0: u32, a1: u32, a2: u32, a3: u32) -> Packed4 {
    let mut a = Packed4::empty();
    a.insert(0usize, a0);
    a.insert(1usize, a1);
    a.insert(2usize, a2);
    a.insert(3usize, a3);
    a
}

/// Adds `x` and `y` atomically to elements `index` and `index + 1` of `to`. The order among blocks
/// is not fixed.
#[cube]
pub(crate) fn add_pair(to: &mut [f32], index: u32, x: f32, y: f32) {
    let to = to[index as usize..].as_ptr();
    gpu_asm!(
        "red.global.add.v2.f32 [{to}], {{{x}, {y}}};",
        to = mem_inout(_) to, x = in(_) f32::reinterpret(x), y = in(_) f32::reinterpret(y),
        options(explicit_mem)
    );
}
