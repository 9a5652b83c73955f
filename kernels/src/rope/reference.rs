//! Rotary position embedding by its definition, one element at a time.

use super::{Heads, HostRotation, Pairing};

/// Partner of element `i`, and the sign with which the partner enters the rotation of `i`.
fn partner(pairing: Pairing, head_dim: usize, i: usize) -> (usize, f32) {
    let half = head_dim / 2;
    match pairing {
        Pairing::Adjacent if i.is_multiple_of(2) => (i + 1, -1.0),
        Pairing::Adjacent => (i - 1, 1.0),
        Pairing::Half if i < half => (i + half, -1.0),
        Pairing::Half => (i - half, 1.0),
    }
}

/// out[i] = z[i]·cos[i] ± z[partner(i)]·sin[i], for one head of one token.
fn rotated(z: &[f32], cos: &[f32], sin: &[f32], pairing: Pairing, i: usize) -> f32 {
    let (other, sign) = partner(pairing, z.len(), i);
    z[i] * cos[i] + sign * z[other] * sin[i]
}

/// The transpose: z[i] enters out[i] with cos[i], and enters out[partner(i)] with the sign and the
/// sine of *partner(i)*.
fn rotated_back(d: &[f32], cos: &[f32], sin: &[f32], pairing: Pairing, i: usize) -> f32 {
    let (other, sign) = partner(pairing, d.len(), i);
    d[i] * cos[i] - sign * d[other] * sin[other]
}

/// Rotates every head of every token of `x` (n, heads, hd) in place, or applies the transpose.
pub(super) fn rotate(x: &mut [f32], heads: usize, rotation: HostRotation<'_>, transpose: bool) {
    let dim = rotation.head_dim;
    for (at, head) in x.chunks_exact_mut(dim).enumerate() {
        let (cos, sin) = rotation.row(at / heads);
        let z = head.to_vec();
        let of = if transpose { rotated_back } else { rotated };
        for (i, out) in head.iter_mut().enumerate() {
            *out = of(&z, cos, sin, rotation.pairing, i);
        }
    }
}

/// First column and width of one of the three parts within a row of `qkv`.
fn columns(heads: Heads, part: usize) -> (usize, usize) {
    let (q, kv) = (heads.query * heads.dim, heads.key_value * heads.dim);
    [(0, q), (q, kv), (q + kv, kv)][part]
}

/// Copies q, k and v (`parts`) out of `qkv` (n, (h + 2g)·hd) and rotates q and k.
pub(super) fn split(
    qkv: &[f32],
    heads: Heads,
    rotation: Option<HostRotation<'_>>,
    parts: [&mut [f32]; 3],
) {
    for (part, out) in parts.into_iter().enumerate() {
        let (start, width) = columns(heads, part);
        for (row, out) in qkv.chunks_exact(heads.width()).zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&row[start..][..width]);
        }
        if let Some(rotation) = rotation.filter(|_| part < 2) {
            rotate(out, width / heads.dim, rotation, false);
        }
    }
}

/// The transpose of [`split`]: rotates the gradients of q and k back and puts all three `parts`
/// side by side.
pub(super) fn split_backward(
    parts: [&[f32]; 3],
    heads: Heads,
    rotation: Option<HostRotation<'_>>,
    d_qkv: &mut [f32],
) {
    for (part, d) in parts.into_iter().enumerate() {
        let (start, width) = columns(heads, part);
        let mut d = d.to_vec();
        if let Some(rotation) = rotation.filter(|_| part < 2) {
            rotate(&mut d, width / heads.dim, rotation, true);
        }
        for (row, d) in d_qkv.chunks_exact_mut(heads.width()).zip(d.chunks_exact(width)) {
            row[start..][..width].copy_from_slice(d);
        }
    }
}
