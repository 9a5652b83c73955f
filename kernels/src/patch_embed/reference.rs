//! Unfolding by its definition: the source of each output element.

use super::Grid;

pub(super) fn unfold(grid: Grid, clips: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let Grid { time, height, width, colours, tubelet, patch } = grid;
    let mut out = Vec::new();
    for clip in 0..clips {
        for (t, row, column) in triples(time / tubelet, height, width) {
            for c in 0..colours {
                for (dt, dy, dx) in triples(tubelet, patch, patch) {
                    let (frame, y) = (clip * time + t * tubelet + dt, row * patch + dy);
                    let x = column * patch + dx;
                    let pixel = (frame * height * patch + y) * width * patch + x;
                    out.push(value(pixel * colours + c, c));
                }
            }
        }
    }
    out
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}
