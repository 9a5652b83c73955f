//! Draws shapes in integer arithmetic, so that the pixels are the same on every machine.

use super::design::{PIXEL, SIZE};
use super::names::{Figure, Shape};

/// Bytes of one RGB frame.
pub(super) const FRAME_BYTES: usize = SIZE * SIZE * 3;

/// Side of the torus in 1/256 pixel.
pub(super) const SIDE: i32 = {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "the side is a small constant"
    )]
    let side = SIZE as i32;
    side * PIXEL
};

/// Whether a shape of radius `r` (`None` is the diamond) covers the point at offset (dx, dy) from
/// its centre. The y axis points down.
fn covers(shape: Option<Shape>, dx: i32, dy: i32, r: i32) -> bool {
    let (u, v, square) = (dx.abs(), dy.abs(), dx * dx + dy * dy);
    match shape {
        Some(Shape::Circle) => square < r * r,
        Some(Shape::Square) => 20 * u < 17 * r && 20 * v < 17 * r,
        Some(Shape::Triangle) => 10 * dy < 7 * r && 5 * (dy + r) > 9 * u,
        Some(Shape::Cross) => (u < r && 3 * v < r) || (v < r && 3 * u < r),
        Some(Shape::Ring) => square < r * r && 4 * square > r * r,
        Some(Shape::Bar) => u < r && 5 * v < 2 * r,
        None => 10 * (u + v) < 11 * r,
    }
}

/// Fills the pixels whose centres the figure covers. Parts that leave the frame on one side appear
/// on the other side.
pub(super) fn paint(frame: &mut [u8], figure: Figure, centre: (i32, i32), radius: i32) {
    let rgb = figure.rgb();
    let offset = |pixel: i32, centre: i32| {
        (pixel * PIXEL + PIXEL / 2 - centre + SIDE / 2).rem_euclid(SIDE) - SIDE / 2
    };
    for (y, row) in (0..).zip(frame.chunks_exact_mut(SIZE * 3)) {
        let dy = offset(y, centre.1);
        for (x, pixel) in (0..).zip(row.chunks_exact_mut(3)) {
            if covers(figure.shape, offset(x, centre.0), dy, radius) {
                pixel.copy_from_slice(&rgb);
            }
        }
    }
}
