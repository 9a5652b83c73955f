//! Rotary position embedding, fused with the split of a projection into queries, keys and values.
//!
//! out = z ⊙ cos + rot(z) ⊙ sin with full-width tables, where rot swaps the two elements of each
//! pair and negates the first. The backward pass applies the transpose. The transpose differs from
//! the rotation by −angle if the two elements of a pair have different angles, as in V-JEPA 2's
//! tables.
//!
//! Sources: `RoFormer` (arXiv 2104.09864) §3.4; the constructors of [`Table`] name the sources of
//! their forms.
//!
//! # On a GPU
//!
//! Memory bounds the operation: one pass over qkv reads it, rotates q and k, and writes the three
//! parts; the gradient is the same pass in reverse. A thread rotates whole pairs, 16 bytes at a
//! time; tables stay in L2.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod reference;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

pub use table::{Llama3Scaling, Pairing, Table, inv_freq, llama3_inv_freq};

#[cfg(feature = "cuda")]
use crate::device::cuda::{Call, Region};
use crate::{Result, Stream, View, ViewMut, check};

/// Numbers of heads of a fused projection, and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Heads {
    /// Query heads, called h in shapes.
    pub query: usize,
    /// Key/value heads, called g in shapes.
    pub key_value: usize,
    /// Width of a head, called hd in shapes.
    pub dim: usize,
}

impl Heads {
    /// Columns of the fused projection: (h + 2g)·hd.
    #[must_use]
    pub fn width(self) -> usize {
        (self.query + 2 * self.key_value) * self.dim
    }
}

/// A table of angles and the position of each token.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines and sines of all positions.
    pub table: &'a Table,
    /// Row of the table for each token, i32 (n).
    pub positions: View<'a>,
}

/// Splits `qkv` = [q | k | v] of each token, and rotates q and k if there is a `rotation`.
///
/// # Shapes
/// `qkv` (n, (h + 2g)·hd), positions i32 (n); writes `q` (n, h, hd), `k` (n, g, hd) and `v`
/// (n, g, hd).
///
/// # Errors
/// When shapes or element types disagree, or a position is outside the table. On a GPU positions
/// are not read back, so the caller checks them.
pub fn split(
    stream: &Stream,
    qkv: View<'_>,
    heads: Heads,
    rotation: Option<Rotation<'_>>,
    q: ViewMut<'_>,
    k: ViewMut<'_>,
    v: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "rope::split";
    let n = check_heads(NAME, qkv.shape(), "qkv", heads)?;
    check::shape(NAME, "q", q.shape(), &[n, heads.query, heads.dim])?;
    check::shape(NAME, "k", k.shape(), &[n, heads.key_value, heads.dim])?;
    check::shape(NAME, "v", v.shape(), &[n, heads.key_value, heads.dim])?;
    match stream {
        Stream::Host => {
            let rotation = rotation.map(|r| on_host(NAME, r, n, heads.dim)).transpose()?;
            let parts = [
                q.host_f32_mut(NAME, "q")?,
                k.host_f32_mut(NAME, "k")?,
                v.host_f32_mut(NAME, "v")?,
            ];
            host::split(qkv.host_f32(NAME, "qkv")?, heads, rotation, parts);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(qkv.dtype(), "qkv")?;
            let parts = [call.at(q, "q", e)?, call.at(k, "k", e)?, call.at(v, "v", e)?];
            let parts = launch::Parts { qkv: call.at(qkv, "qkv", e)?, parts };
            let rotation = rotation.map(|r| on_gpu(call, r, n, heads.dim)).transpose()?;
            call.run(launch::split(parts, heads, rotation, e, n)?)?;
        }),
    }
    Ok(())
}

/// Gradient of [`split`]: `d_q` and `d_k`, rotated back by the transpose, and `d_v` side by side.
///
/// # Shapes
/// `d_q` (n, h, hd), `d_k` (n, g, hd), `d_v` (n, g, hd); writes `d_qkv` (n, (h + 2g)·hd).
///
/// # Errors
/// Same as [`split`].
pub fn split_backward(
    stream: &Stream,
    d_q: View<'_>,
    d_k: View<'_>,
    d_v: View<'_>,
    heads: Heads,
    rotation: Option<Rotation<'_>>,
    d_qkv: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "rope::split_backward";
    let n = check_heads(NAME, d_qkv.shape(), "d_qkv", heads)?;
    check::shape(NAME, "d_q", d_q.shape(), &[n, heads.query, heads.dim])?;
    check::shape(NAME, "d_k", d_k.shape(), &[n, heads.key_value, heads.dim])?;
    check::shape(NAME, "d_v", d_v.shape(), &[n, heads.key_value, heads.dim])?;
    match stream {
        Stream::Host => {
            let rotation = rotation.map(|r| on_host(NAME, r, n, heads.dim)).transpose()?;
            let parts = [
                d_q.host_f32(NAME, "d_q")?,
                d_k.host_f32(NAME, "d_k")?,
                d_v.host_f32(NAME, "d_v")?,
            ];
            host::split_backward(parts, heads, rotation, d_qkv.host_f32_mut(NAME, "d_qkv")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(d_qkv.dtype(), "d_qkv")?;
            let parts = [call.at(d_q, "d_q", e)?, call.at(d_k, "d_k", e)?, call.at(d_v, "d_v", e)?];
            let parts = launch::Parts { qkv: call.at(d_qkv, "d_qkv", e)?, parts };
            let rotation = rotation.map(|r| on_gpu(call, r, n, heads.dim)).transpose()?;
            call.run(launch::merge(parts, heads, rotation, e, n)?)?;
        }),
    }
    Ok(())
}

/// Rotates `x` (n, heads, hd) in place. Used by models that normalise queries and keys between the
/// split and the rotation.
///
/// # Errors
/// Same as [`split`].
pub fn rotate(stream: &Stream, x: ViewMut<'_>, rotation: Rotation<'_>) -> Result<()> {
    apply(stream, "rope::rotate", x, rotation, false)
}

/// Gradient of [`rotate`]: applies the transpose to `d_x` (n, heads, hd) in place.
///
/// # Errors
/// Same as [`split`].
pub fn rotate_backward(stream: &Stream, d_x: ViewMut<'_>, rotation: Rotation<'_>) -> Result<()> {
    apply(stream, "rope::rotate_backward", d_x, rotation, true)
}

fn apply(
    stream: &Stream,
    name: &'static str,
    x: ViewMut<'_>,
    rotation: Rotation<'_>,
    transpose: bool,
) -> Result<()> {
    let [n, heads, dim] = check::rank(name, "x", x.shape())?;
    match stream {
        Stream::Host => {
            let rotation = on_host(name, rotation, n, dim)?;
            let x = x.host_f32_mut(name, "x")?;
            if !x.is_empty() {
                host::rotate(x, heads, rotation, transpose);
            }
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(name);
            let e = call.element(x.dtype(), "x")?;
            let rotation = on_gpu(call, rotation, n, dim)?;
            call.run(launch::rotate(
                call.at(x, "x", e)?,
                rotation,
                transpose,
                e,
                [n, heads, dim],
            )?)?;
        }),
    }
    Ok(())
}

/// A table and the positions of the tokens, in host memory.
#[derive(Debug, Clone, Copy)]
struct HostRotation<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    pairing: Pairing,
    head_dim: usize,
    positions: &'a [i32],
}

impl HostRotation<'_> {
    /// Cosines and sines of the token's position. Positions have been checked against the table.
    fn row(&self, token: usize) -> (&[f32], &[f32]) {
        let start = self.positions[token].unsigned_abs() as usize * self.head_dim;
        (&self.cos[start..][..self.head_dim], &self.sin[start..][..self.head_dim])
    }
}

/// Checks a fused projection and returns its number of tokens.
fn check_heads(
    operation: &'static str,
    found: &[usize],
    what: &'static str,
    heads: Heads,
) -> Result<usize> {
    let n = found.first().copied().unwrap_or(0);
    check::shape(operation, what, found, &[n, heads.width()])?;
    if heads.query == 0 || heads.key_value == 0 || heads.dim == 0 {
        let needed = "the numbers of heads and the head width must be positive";
        return Err(check::value(operation, "heads", format!("{heads:?}"), needed));
    }
    Ok(n)
}

/// Checks that a rotation fits `n` tokens with heads of `head_dim` elements.
fn check_rotation(
    operation: &'static str,
    rotation: Rotation<'_>,
    n: usize,
    head_dim: usize,
) -> Result<()> {
    let Rotation { table, positions } = rotation;
    let rows = table.positions();
    check::shape(operation, "cos", table.cos.shape(), &[rows, head_dim])?;
    check::shape(operation, "sin", table.sin.shape(), &[rows, head_dim])?;
    check::shape(operation, "positions", positions.shape(), &[n])?;
    if !head_dim.is_multiple_of(2) {
        let needed = "the head width must be even, because elements are rotated in pairs";
        return Err(check::value(operation, "head_dim", head_dim.to_string(), needed));
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn on_gpu(
    call: Call,
    rotation: Rotation<'_>,
    n: usize,
    head_dim: usize,
) -> Result<launch::Rotation<Region>> {
    check_rotation(call.operation, rotation, n, head_dim)?;
    let Rotation { table, positions } = rotation;
    Ok(launch::Rotation {
        cos: call.f32(table.cos.view(), "cos")?,
        sin: call.f32(table.sin.view(), "sin")?,
        positions: call.i32(positions, "positions")?,
        pairing: table.pairing,
    })
}

fn on_host<'a>(
    operation: &'static str,
    rotation: Rotation<'a>,
    n: usize,
    head_dim: usize,
) -> Result<HostRotation<'a>> {
    let Rotation { table, positions } = rotation;
    check_rotation(operation, rotation, n, head_dim)?;
    let positions = positions.host_i32(operation, "positions")?;
    check::indices(operation, "position", positions, table.positions())?;
    Ok(HostRotation {
        cos: table.cos.view().host_f32(operation, "cos")?,
        sin: table.sin.view().host_f32(operation, "sin")?,
        pairing: table.pairing,
        head_dim,
        positions,
    })
}
