//! Column sums in a fixed order. See `launch.rs` for the memory floor, the tiling and the
//! alternatives considered. CubeCL calls a block a cube, a warp a plane and a thread a unit.

use cubecl::prelude::*;

/// Sums 32 vectors of columns per block over every `step`-th row. The first row of a warp is
/// `CUBE_POS_Y · planes` plus the number of the warp. The sums overwrite row `CUBE_POS_Y` of `sums`
/// or are added to it.
#[cube(launch)]
pub(super) fn column_sums<F: Float, N: Size>(
    x: &[Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    rows: u32,
    vectors: u32,
    step: u32,
    #[comptime] planes: u32,
    #[comptime] add: bool,
) {
    let lane = UNIT_POS_X % 32;
    let plane = UNIT_POS_X / 32;
    let column = CUBE_POS_X * 32 + lane;
    // sums of this warp's rows
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if column < vectors {
        let mut row = CUBE_POS_Y * planes + plane;
        while row < rows {
            sum += Vector::cast_from(x[(row * vectors + column) as usize]);
            row += step;
        }
    }
    let mut shared = Shared::<[Vector<f32, N>]>::new_slice(comptime!(planes as usize * 32));
    shared[UNIT_POS_X as usize] = sum;
    sync_cube();
    // the first warp adds the sums of all warps
    if plane == 0 && column < vectors {
        let at = (CUBE_POS_Y * vectors + column) as usize;
        let mut total = shared[lane as usize];
        #[unroll]
        for other in 1..planes {
            total += shared[(other * 32 + lane) as usize];
        }
        if comptime!(add) {
            total += sums[at];
        }
        sums[at] = total;
    }
}
