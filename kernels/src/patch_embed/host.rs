//! Unfolding on the host: each token gathers the pixel runs of its patch rows from each of its
//! frames.

use super::Grid;
use crate::parallel::{blocks, rows_per_block};

pub(super) fn unfold<T: Copy + Sync>(
    grid: Grid,
    frames: &[T],
    out: &mut [f32],
    value: impl Fn(usize, T) -> f32 + Sync,
) {
    let elements = grid.elements();
    if elements == 0 {
        return;
    }
    let rows = rows_per_block(out.len() / elements, elements);
    blocks(out.len(), (out, rows * elements), |block, out| {
        for (i, token) in out.chunks_exact_mut(elements).enumerate() {
            unfold_token(grid, block * rows + i, frames, token, &value);
        }
    });
}

fn unfold_token<T: Copy>(
    grid: Grid,
    index: usize,
    frames: &[T],
    token: &mut [f32],
    value: impl Fn(usize, T) -> f32,
) {
    let Grid { height, width, colours, tubelet, patch, .. } = grid;
    let (column, row) = (index % width, index / width % height);
    // Every clip has a whole number of tubelets, so the number of tubelets before the token, over
    // all clips, gives its first frame.
    let first_frame = index / (width * height) * tubelet;
    let line = width * patch * colours;
    for t in 0..tubelet {
        for y in 0..patch {
            let start = ((first_frame + t) * height * patch + row * patch + y) * line;
            let pixels = &frames[start + column * patch * colours..][..patch * colours];
            for c in 0..colours {
                let out = &mut token[((c * tubelet + t) * patch + y) * patch..][..patch];
                for (out, pixel) in out.iter_mut().zip(pixels.chunks_exact(colours)) {
                    *out = value(c, pixel[c]);
                }
            }
        }
    }
}
