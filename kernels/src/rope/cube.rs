//! Rotary embedding, fused with the split of q, k and v and with the merge of their gradients.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor and the tiling are in
//! `launch.rs`.

#![expect(clippy::cast_sign_loss, reason = "the caller guarantees positions inside the table")]

use cubecl::prelude::*;

use super::{Heads, Pairing};

/// First element of a pair: cos·z − sin·partner, or for the transpose cos·z +
/// (the partner's sine)·partner.
#[cube]
fn first<N: Size>(
    z: Vector<f32, N>,
    partner: Vector<f32, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
    partner_sin: Vector<f32, N>,
    #[comptime] transposed: bool,
) -> Vector<f32, N> {
    if comptime!(transposed) { z * cos + partner * partner_sin } else { z * cos - partner * sin }
}

/// Second element of a pair: cos·z + sin·partner, or for the transpose cos·z −
/// (the partner's sine)·partner.
#[cube]
fn second<N: Size>(
    z: Vector<f32, N>,
    partner: Vector<f32, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
    partner_sin: Vector<f32, N>,
    #[comptime] transposed: bool,
) -> Vector<f32, N> {
    if comptime!(transposed) { z * cos - partner * partner_sin } else { z * cos + partner * sin }
}

/// Exchanges the two elements of each neighbouring pair of a vector.
#[cube]
fn swapped<N: Size>(z: Vector<f32, N>, #[comptime] lanes: usize) -> Vector<f32, N> {
    let mut out = z;
    #[unroll]
    for lane in 0..lanes {
        out.insert(lane, z.extract(comptime!(lane ^ 1)));
    }
    out
}

/// Rotates the neighbouring pairs of one vector.
#[cube]
fn adjacent<N: Size>(
    z: Vector<f32, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
    #[comptime] transposed: bool,
    #[comptime] lanes: usize,
) -> Vector<f32, N> {
    let partner = swapped::<N>(z, lanes);
    let partner_sin = swapped::<N>(sin, lanes);
    let even = first::<N>(z, partner, cos, sin, partner_sin, transposed);
    let odd = second::<N>(z, partner, cos, sin, partner_sin, transposed);
    let mut out = even;
    #[unroll]
    for lane in 0..lanes {
        if comptime!(lane % 2 == 1) {
            out.insert(lane, odd.extract(lane));
        }
    }
    out
}

/// Copies one thread's share of a head from vector `from_at` of `from` to vector `to_at` of `to`,
/// and rotates it by the vectors of `cos` and `sin` at `row`.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a head, its destination, and its rotation")]
fn turn<F: Float, N: Size>(
    from: &[Vector<F, N>],
    from_at: usize,
    to: &mut [Vector<F, N>],
    to_at: usize,
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    row: usize,
    #[comptime] rotated: bool,
    #[comptime] transposed: bool,
    #[comptime] pairing: Pairing,
    #[comptime] half: usize,
    #[comptime] lanes: usize,
) {
    match comptime!(pairing) {
        Pairing::Adjacent => {
            let mut z = from[from_at];
            if comptime!(rotated) {
                let turned =
                    adjacent::<N>(Vector::cast_from(z), cos[row], sin[row], transposed, lanes);
                z = Vector::cast_from(turned);
            }
            to[to_at] = z;
        }
        Pairing::Half => {
            let mut low = from[from_at];
            let mut high = from[from_at + half];
            if comptime!(rotated) {
                let z = Vector::<f32, N>::cast_from(low);
                let partner = Vector::<f32, N>::cast_from(high);
                let (sin_low, sin_high) = (sin[row], sin[row + half]);
                let turned = first::<N>(z, partner, cos[row], sin_low, sin_high, transposed);
                low = Vector::cast_from(turned);
                let turned =
                    second::<N>(partner, z, cos[row + half], sin_high, sin_low, transposed);
                high = Vector::cast_from(turned);
            }
            to[to_at] = low;
            to[to_at + half] = high;
        }
    }
}

/// Threads that share a head of `vectors` vectors.
fn shares(pairing: Pairing, vectors: usize) -> usize {
    match pairing {
        Pairing::Adjacent => vectors,
        Pairing::Half => vectors / 2,
    }
}

/// Splits qkv into q, k and v and rotates q and k.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn rope_split<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    q: &mut [Vector<F, N>],
    k: &mut [Vector<F, N>],
    v: &mut [Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    positions: &[i32],
    count: u32,
    #[comptime] heads: Heads,
    #[comptime] rotated: bool,
    #[comptime] pairing: Pairing,
    #[comptime] lanes: usize,
) {
    let vectors = comptime!(heads.dim / lanes);
    let half = comptime!(vectors / 2);
    let shares = comptime!(shares(pairing, heads.dim / lanes));
    let all = comptime!(heads.query + 2 * heads.key_value);
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let at = at as usize;
        let share = at % shares;
        let head = at / shares % all;
        let token = at / comptime!(shares * all);
        let whole = (token * all + head) * vectors + share;
        let mut row = share;
        if comptime!(rotated) {
            row = positions[token] as usize * vectors + share;
        }
        if head < heads.query {
            let part = (token * heads.query + head) * vectors + share;
            turn::<F, N>(qkv, whole, q, part, cos, sin, row, rotated, false, pairing, half, lanes);
        } else if head < comptime!(heads.query + heads.key_value) {
            let part = (token * heads.key_value + (head - heads.query)) * vectors + share;
            turn::<F, N>(qkv, whole, k, part, cos, sin, row, rotated, false, pairing, half, lanes);
        } else {
            let head = head - comptime!(heads.query + heads.key_value);
            let part = (token * heads.key_value + head) * vectors + share;
            turn::<F, N>(qkv, whole, v, part, cos, sin, row, false, false, pairing, half, lanes);
        }
    }
}

/// Merges the gradients of q, k and v into d_qkv (`qkv`) and rotates the gradients of q and k back.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn rope_merge<F: Float, N: Size>(
    qkv: &mut [Vector<F, N>],
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    positions: &[i32],
    count: u32,
    #[comptime] heads: Heads,
    #[comptime] rotated: bool,
    #[comptime] pairing: Pairing,
    #[comptime] lanes: usize,
) {
    let vectors = comptime!(heads.dim / lanes);
    let half = comptime!(vectors / 2);
    let shares = comptime!(shares(pairing, heads.dim / lanes));
    let all = comptime!(heads.query + 2 * heads.key_value);
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let at = at as usize;
        let share = at % shares;
        let head = at / shares % all;
        let token = at / comptime!(shares * all);
        let whole = (token * all + head) * vectors + share;
        let mut row = share;
        if comptime!(rotated) {
            row = positions[token] as usize * vectors + share;
        }
        if head < heads.query {
            let part = (token * heads.query + head) * vectors + share;
            turn::<F, N>(q, part, qkv, whole, cos, sin, row, rotated, true, pairing, half, lanes);
        } else if head < comptime!(heads.query + heads.key_value) {
            let part = (token * heads.key_value + (head - heads.query)) * vectors + share;
            turn::<F, N>(k, part, qkv, whole, cos, sin, row, rotated, true, pairing, half, lanes);
        } else {
            let head = head - comptime!(heads.query + heads.key_value);
            let part = (token * heads.key_value + head) * vectors + share;
            turn::<F, N>(v, part, qkv, whole, cos, sin, row, false, true, pairing, half, lanes);
        }
    }
}

/// Rotates x in place, or applies the transpose.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn rope_rotate<F: Float, N: Size>(
    x: &mut [Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    positions: &[i32],
    count: u32,
    heads: u32,
    #[comptime] dim: usize,
    #[comptime] transposed: bool,
    #[comptime] pairing: Pairing,
    #[comptime] lanes: usize,
) {
    let vectors = comptime!(dim / lanes);
    let half = comptime!(vectors / 2);
    let shares = comptime!(shares(pairing, dim / lanes));
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let at = at as usize;
        let share = at % shares;
        let head = at / shares;
        let token = head / heads as usize;
        let row = positions[token] as usize * vectors + share;
        let at = head * vectors + share;
        match comptime!(pairing) {
            Pairing::Adjacent => {
                let z = Vector::cast_from(x[at]);
                let turned = adjacent::<N>(z, cos[row], sin[row], transposed, lanes);
                x[at] = Vector::cast_from(turned);
            }
            Pairing::Half => {
                let z = Vector::<f32, N>::cast_from(x[at]);
                let partner = Vector::<f32, N>::cast_from(x[at + half]);
                let (sin_low, sin_high) = (sin[row], sin[row + half]);
                let low = first::<N>(z, partner, cos[row], sin_low, sin_high, transposed);
                let high = second::<N>(partner, z, cos[row + half], sin_high, sin_low, transposed);
                x[at] = Vector::cast_from(low);
                x[at + half] = Vector::cast_from(high);
            }
        }
    }
}
