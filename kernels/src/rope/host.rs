//! Rotary position embedding on the host: blocks of tokens run in parallel, and a token's heads are
//! copied and rotated while they are in cache.

use rayon::prelude::*;

use super::{Heads, HostRotation, Pairing};

/// Tokens of one rayon task: enough work (tens of microseconds) to pay for the hand-over to a
/// thread.
const TOKENS: usize = 64;

/// Rotates all heads of one token in place. The transpose reads the partner's sine instead of the
/// element's own.
fn rotate_heads(heads: &mut [f32], cos: &[f32], sin: &[f32], pairing: Pairing, transpose: bool) {
    for z in heads.chunks_exact_mut(cos.len()) {
        match pairing {
            Pairing::Adjacent => rotate_adjacent(z, cos, sin, transpose),
            Pairing::Half => rotate_half(z, cos, sin, transpose),
        }
    }
}

fn rotate_adjacent(z: &mut [f32], cos: &[f32], sin: &[f32], transpose: bool) {
    let z = z.as_chunks_mut::<2>().0;
    let (cos, sin) = (cos.as_chunks::<2>().0, sin.as_chunks::<2>().0);
    for ((z, c), s) in z.iter_mut().zip(cos).zip(sin) {
        let (s0, s1) = if transpose { (-s[1], -s[0]) } else { (s[0], s[1]) };
        *z = [z[0] * c[0] - z[1] * s0, z[1] * c[1] + z[0] * s1];
    }
}

fn rotate_half(z: &mut [f32], cos: &[f32], sin: &[f32], transpose: bool) {
    let half = z.len() / 2;
    let (z0, z1) = z.split_at_mut(half);
    let ((c0, c1), (s0, s1)) = (cos.split_at(half), sin.split_at(half));
    let (s0, s1, sign) = if transpose { (s1, s0, -1.0) } else { (s0, s1, 1.0) };
    let sines = s0.iter().zip(s1);
    for (((z0, z1), (c0, c1)), (s0, s1)) in z0.iter_mut().zip(z1).zip(c0.iter().zip(c1)).zip(sines)
    {
        let (a, b) = (*z0, *z1);
        *z0 = a * c0 - sign * b * s0;
        *z1 = b * c1 + sign * a * s1;
    }
}

/// Rotates every head of every token of `x` (n, heads, hd) in place, or applies the transpose.
pub(super) fn rotate(x: &mut [f32], heads: usize, rotation: HostRotation<'_>, transpose: bool) {
    let width = heads * rotation.head_dim;
    x.par_chunks_mut(TOKENS * width).enumerate().for_each(|(block, x)| {
        for (i, token) in x.chunks_exact_mut(width).enumerate() {
            let (cos, sin) = rotation.row(block * TOKENS + i);
            rotate_heads(token, cos, sin, rotation.pairing, transpose);
        }
    });
}

/// Copies q, k and v out of `qkv` (n, (h + 2g)·hd) and rotates q and k.
pub(super) fn split(
    qkv: &[f32],
    heads: Heads,
    rotation: Option<HostRotation<'_>>,
    [q, k, v]: [&mut [f32]; 3],
) {
    let (q_width, kv_width) = (heads.query * heads.dim, heads.key_value * heads.dim);
    qkv.par_chunks(TOKENS * heads.width())
        .zip(q.par_chunks_mut(TOKENS * q_width))
        .zip(k.par_chunks_mut(TOKENS * kv_width))
        .zip(v.par_chunks_mut(TOKENS * kv_width))
        .enumerate()
        .for_each(|(block, (((qkv, q), k), v))| {
            let rows = qkv.chunks_exact(heads.width()).zip(q.chunks_exact_mut(q_width));
            let kv = k.chunks_exact_mut(kv_width).zip(v.chunks_exact_mut(kv_width));
            for (i, ((row, q), (k, v))) in rows.zip(kv).enumerate() {
                let (row_q, row_kv) = row.split_at(q_width);
                let (row_k, row_v) = row_kv.split_at(kv_width);
                q.copy_from_slice(row_q);
                k.copy_from_slice(row_k);
                v.copy_from_slice(row_v);
                if let Some(rotation) = rotation {
                    let (cos, sin) = rotation.row(block * TOKENS + i);
                    rotate_heads(q, cos, sin, rotation.pairing, false);
                    rotate_heads(k, cos, sin, rotation.pairing, false);
                }
            }
        });
}

/// The transpose of [`split`].
pub(super) fn split_backward(
    [d_q, d_k, d_v]: [&[f32]; 3],
    heads: Heads,
    rotation: Option<HostRotation<'_>>,
    d_qkv: &mut [f32],
) {
    let (q_width, kv_width) = (heads.query * heads.dim, heads.key_value * heads.dim);
    d_qkv.par_chunks_mut(TOKENS * heads.width()).enumerate().for_each(|(block, rows)| {
        for (i, row) in rows.chunks_exact_mut(heads.width()).enumerate() {
            let token = block * TOKENS + i;
            let (qk, v) = row.split_at_mut(q_width + kv_width);
            qk[..q_width].copy_from_slice(&d_q[token * q_width..][..q_width]);
            qk[q_width..].copy_from_slice(&d_k[token * kv_width..][..kv_width]);
            v.copy_from_slice(&d_v[token * kv_width..][..kv_width]);
            if let Some(rotation) = rotation {
                let (cos, sin) = rotation.row(token);
                rotate_heads(qk, cos, sin, rotation.pairing, true);
            }
        }
    });
}
