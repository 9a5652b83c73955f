//! Scaled dot-product attention over packed sequences, with grouped key/value heads.
//!
//! out_i = Σ_j softmax_j(scale · q_i·k_j) v_j, where j runs over the tokens of i's own sequence
//! that the mask lets i see. No matrix of size tokens × tokens is ever stored: the forward pass
//! keeps one log-sum-exp per token and head, from which the backward pass recomputes the
//! probabilities. With P the probabilities and D_i = d_out_i·out_i, dS = P ∘ (d_out·Vᵀ − D),
//! d_q = scale · dS·K, d_k = scale · dSᵀ·Q, d_v = Pᵀ·d_out.
//!
//! Shapes: n packed tokens, h query heads, g key/value heads (a divisor of h), and heads of width
//! hd. Query heads j·h/g .. (j + 1)·h/g share key/value head j.
//!
//! Source: `FlashAttention-2` (arXiv 2307.08691), algorithms 1 and 2.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
pub mod launch;
mod product;
#[cfg(test)]
mod reference;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

use std::ops::Range;

pub(crate) use self::rows::dot;
#[cfg(feature = "cuda")]
use crate::DType;
use crate::{Lengths, Result, Stream, View, ViewMut, check};

/// Which tokens of its own sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Every token of the sequence.
    Full,
    /// The token itself and every token before it.
    Causal,
    /// Tokens j with |i − j| below the window, for token i.
    Window(usize),
}

impl Mask {
    /// Keys that token `i` of a sequence of `len` tokens sees. Neither end decreases as `i` grows.
    fn keys(self, i: usize, len: usize) -> Range<usize> {
        match self {
            Self::Full => 0..len,
            Self::Causal => 0..i + 1,
            Self::Window(w) => (i + 1).saturating_sub(w)..len.min(i.saturating_add(w)),
        }
    }
}

/// Numbers of heads and their width.
#[derive(Debug, Clone, Copy)]
struct Dims {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Dims {
    /// Converts to the type that the GPU kernels take.
    #[cfg(feature = "cuda")]
    fn heads(self) -> launch::Heads {
        launch::Heads { query: self.query_heads, key_value: self.kv_heads, dim: self.head_dim }
    }

    /// Query heads that share one key/value head.
    fn group(self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Elements of one token of q.
    fn q_width(self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Elements of one token of k or v.
    fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of one token of q, k and v that belong to one key/value head.
    fn head_widths(self) -> [usize; 3] {
        [self.group() * self.head_dim, self.head_dim, self.head_dim]
    }
}

/// Computes attention over packed tokens and writes the log-sum-exps that [`backward`] needs
/// besides the inputs and `out`.
///
/// # Shapes
/// `q` (n, h, hd), `k` and `v` (n, g, hd), `lengths` over n tokens; writes `out` (n, h, hd) and
/// `lse` (n, h), the logarithm of each token's sum of exponentials per query head. Tensors are f32
/// on the host; on a GPU they are bf16 and `lse` is f32.
///
/// # Errors
/// When shapes or element types disagree, h is not a multiple of g, or a window is empty.
#[expect(clippy::too_many_arguments, reason = "the tensors and parameters of one formula")]
pub fn forward(
    stream: &Stream,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    lengths: &Lengths,
    mask: Mask,
    scale: f32,
    out: ViewMut<'_>,
    lse: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "attention::forward";
    let dims = check_inputs(NAME, [q, k, v], lengths, mask)?;
    check::shape(NAME, "out", out.shape(), q.shape())?;
    check::shape(NAME, "lse", lse.shape(), &q.shape()[..2])?;
    match stream {
        Stream::Host => {
            let inputs = host::Inputs {
                q: q.host_f32(NAME, "q")?,
                k: k.host_f32(NAME, "k")?,
                v: v.host_f32(NAME, "v")?,
                dims,
                mask,
                scale,
            };
            let (out, lse) = (out.host_f32_mut(NAME, "out")?, lse.host_f32_mut(NAME, "lse")?);
            host::forward(&inputs, lengths, out, lse);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let heads = dims.heads();
            let mode = call.stream.cuda().attention_mode();
            let pass = launch::Pass::forward(mode, heads.dim, mask);
            let rows = launch::rows(pass, heads.dim);
            let places = lengths.places(call, rows)?;
            let buffers = launch::Forward {
                q: call.at(q, "q", DType::Bf16)?,
                k: call.at(k, "k", DType::Bf16)?,
                v: call.at(v, "v", DType::Bf16)?,
                places: call.i32(places.view(), "places")?,
                out: call.at(out, "out", DType::Bf16)?,
                lse: call.f32(lse, "lse")?,
            };
            let (n, tiles) = (q.shape()[0], places.shape()[0] / 4);
            call.run(launch::forward(buffers, n, tiles, heads, mask, scale, mode)?)?;
        }),
    }
    Ok(())
}

/// Gradients of [`forward`], written to `d_q` (n, h, hd), `d_k` and `d_v` (n, g, hd).
///
/// # Shapes
/// `d_out` (n, h, hd); the other inputs as [`forward`] read and wrote them.
///
/// # Errors
/// When shapes or element types disagree, h is not a multiple of g, or a window is empty.
#[expect(clippy::too_many_arguments, reason = "the tensors and parameters of one formula")]
pub fn backward(
    stream: &Stream,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    out: View<'_>,
    lse: View<'_>,
    d_out: View<'_>,
    lengths: &Lengths,
    mask: Mask,
    scale: f32,
    d_q: ViewMut<'_>,
    d_k: ViewMut<'_>,
    d_v: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "attention::backward";
    let dims = check_inputs(NAME, [q, k, v], lengths, mask)?;
    check::shape(NAME, "out", out.shape(), q.shape())?;
    check::shape(NAME, "lse", lse.shape(), &q.shape()[..2])?;
    check::shape(NAME, "d_out", d_out.shape(), q.shape())?;
    check::shape(NAME, "d_q", d_q.shape(), q.shape())?;
    check::shape(NAME, "d_k", d_k.shape(), k.shape())?;
    check::shape(NAME, "d_v", d_v.shape(), k.shape())?;
    match stream {
        Stream::Host => {
            let inputs = host::Inputs {
                q: q.host_f32(NAME, "q")?,
                k: k.host_f32(NAME, "k")?,
                v: v.host_f32(NAME, "v")?,
                dims,
                mask,
                scale,
            };
            let saved = host::Saved {
                out: out.host_f32(NAME, "out")?,
                lse: lse.host_f32(NAME, "lse")?,
                d_out: d_out.host_f32(NAME, "d_out")?,
            };
            let (d_q, d_k) = (d_q.host_f32_mut(NAME, "d_q")?, d_k.host_f32_mut(NAME, "d_k")?);
            host::backward(&inputs, &saved, lengths, d_q, d_k, d_v.host_f32_mut(NAME, "d_v")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let heads = dims.heads();
            let n = q.shape()[0];
            let mode = call.stream.cuda().attention_mode();
            let tiles = |pass| lengths.places(call, launch::rows(pass, heads.dim));
            let keys = launch::Pass::keys(mode, heads.dim, mask);
            let (key_tiles, query_tiles) = (tiles(keys)?, tiles(launch::Pass::Queries)?);
            let delta = call.workspace(DType::F32, n * heads.query)?;
            let summed = if mode == launch::Mode::Deterministic { 0 } else { q.len() };
            let sums = call.workspace(DType::F32, summed)?;
            let buffers = launch::Backward {
                q: call.at(q, "q", DType::Bf16)?,
                k: call.at(k, "k", DType::Bf16)?,
                v: call.at(v, "v", DType::Bf16)?,
                out: call.at(out, "out", DType::Bf16)?,
                lse: call.f32(lse, "lse")?,
                d_out: call.at(d_out, "d_out", DType::Bf16)?,
                key_places: call.i32(key_tiles.view(), "places")?,
                query_places: call.i32(query_tiles.view(), "places")?,
                delta: call.f32(delta.view(), "delta")?,
                sums: call.f32(sums.view(), "sums")?,
                d_q: call.at(d_q, "d_q", DType::Bf16)?,
                d_k: call.at(d_k, "d_k", DType::Bf16)?,
                d_v: call.at(d_v, "d_v", DType::Bf16)?,
            };
            let tiles = [key_tiles.shape()[0] / 4, query_tiles.shape()[0] / 4];
            call.run(launch::backward(buffers, n, tiles, heads, mask, scale, mode)?)?;
        }),
    }
    Ok(())
}

fn check_inputs(
    operation: &'static str,
    [q, k, v]: [View<'_>; 3],
    lengths: &Lengths,
    mask: Mask,
) -> Result<Dims> {
    let [n, query_heads, head_dim] = check::rank(operation, "q", q.shape())?;
    let [_, kv_heads, _] = check::rank(operation, "k", k.shape())?;
    check::shape(operation, "k", k.shape(), &[n, kv_heads, head_dim])?;
    check::shape(operation, "v", v.shape(), k.shape())?;
    check::shape(operation, "tokens of lengths", &[lengths.tokens()], &[n])?;
    if query_heads == 0 || head_dim == 0 || !query_heads.is_multiple_of(kv_heads) {
        let found = format!("{query_heads} query and {kv_heads} key/value heads of {head_dim}");
        let needed = "the number of query heads must be a positive multiple of the number of \
                      key/value heads, and the head width must be positive";
        return Err(check::value(operation, "heads", found, needed));
    }
    if mask == Mask::Window(0) {
        let needed = "a window must be at least 1, so that a token sees itself";
        return Err(check::value(operation, "window", "0", needed));
    }
    Ok(Dims { query_heads, kv_heads, head_dim })
}
