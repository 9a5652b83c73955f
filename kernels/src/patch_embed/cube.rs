//! Patches from bytes: normalised, converted, and laid out as the rows that one linear layer
//! embeds.
//!
//! CubeCL calls a block a cube and a thread a unit. The floor and the tiling are in `launch.rs`.

#![expect(clippy::cast_possible_truncation, reason = "lanes and colours fit `u32`")]

use cubecl::prelude::*;

/// Colours of a pixel.
const COLOURS: usize = 3;

/// out = byte·scale + shift, from frames (b·T, H·patch, W·patch, 3) to rows of
/// (3, tubelet, patch, patch). A thread takes `lanes` neighbouring pixels of one patch row.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn patch_unfold<F: Float, N: Size>(
    frames: &[u32],
    out: &mut [Vector<F, N>],
    scale0: f32,
    scale1: f32,
    scale2: f32,
    shift0: f32,
    shift1: f32,
    shift2: f32,
    count: u32,
    height: u32,
    width: u32,
    #[comptime] tubelet: u32,
    #[comptime] patch: u32,
    #[comptime] lanes: usize,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        // The thread's position in the order of the frames: column, row, frame.
        let across = comptime!(patch / lanes as u32);
        let column = at % (width * across);
        let line = at / (width * across);
        let y = line % (height * patch);
        let frame = line / (height * patch);
        let (dx, px) = (column % across, column / across);
        let (dy, py) = (y % patch, y / patch);
        let (dt, t) = (frame % tubelet, frame / tubelet);
        // Position of the vector in the output: token, then frame and row within the tubelet.
        let token = (t * height + py) * width + px;
        let place = (token * comptime!(COLOURS as u32 * tubelet) + dt) * patch + dy;
        let first = at * comptime!((COLOURS * lanes) as u32);
        // Normalise and store one colour at a time.
        #[unroll]
        for c in 0..COLOURS {
            let mut value = Vector::<f32, N>::new(0.0f32);
            let mut scale = scale0;
            let mut shift = shift0;
            if comptime!(c == 1) {
                scale = scale1;
                shift = shift1;
            }
            if comptime!(c == 2) {
                scale = scale2;
                shift = shift2;
            }
            #[unroll]
            for i in 0..lanes {
                let byte = first + comptime!((COLOURS * i + c) as u32);
                let word = frames[(byte / 4) as usize];
                let pixel = (word >> (byte % 4 * 8)) & 255u32;
                value.insert(i, f32::cast_from(pixel) * scale + shift);
            }
            let row = place + comptime!(c as u32 * tubelet * patch);
            out[(row * across + dx) as usize] = Vector::cast_from(value);
        }
    }
}
