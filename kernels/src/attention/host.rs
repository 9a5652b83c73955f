//! Attention on the host: tiles of queries × keys with the online softmax, in buffers that fit the
//! second-level cache.
//!
//! A sequence of up to 128 tokens is one tile of keys, so its softmax is the plain one. Keys are
//! transposed once per tile, which makes scores, probabilities and their gradients rows over the
//! keys; loops over such rows vectorise at every head width.

use std::ops::Range;

use rayon::prelude::*;

use super::product::{Left, multiply, padded};
use super::rows::{Rows, copy_rows, dot, online_softmax, scale_all, softmax_backward, transpose};
use super::{Dims, Mask};
use crate::{Lengths, Write};

/// Queries per tile. One tile of scores, 64 × 128 in f32, takes 32 KiB.
const QUERIES: usize = 64;

/// Keys per tile. A sequence that fits one tile needs no online softmax.
const KEYS: usize = 128;

/// Inputs of both passes: `q` (n, h, hd), `k` and `v` (n, g, hd).
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) dims: Dims,
    pub(super) mask: Mask,
    pub(super) scale: f32,
}

/// Further inputs of the backward pass: `out` and `d_out` (n, h, hd), `lse` (n, h).
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved<'a> {
    pub(super) out: &'a [f32],
    pub(super) lse: &'a [f32],
    pub(super) d_out: &'a [f32],
}

/// Buffers of one rayon task, reused for every tile.
struct Scratch {
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    keys_transposed: Vec<f32>,
    values_transposed: Vec<f32>,
    /// Rows of keys; in the forward pass, rows of values.
    key_rows: Vec<f32>,
    /// Rows of queries or of output gradients.
    query_rows: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl Scratch {
    fn new(dims: Dims) -> Self {
        let of = |len: usize| vec![0.0; len];
        Self {
            scores: of(QUERIES * KEYS),
            d_scores: of(QUERIES * KEYS),
            keys_transposed: of(dims.head_dim * KEYS),
            values_transposed: of(dims.head_dim * KEYS),
            key_rows: of(KEYS * padded(dims.head_dim)),
            query_rows: of(QUERIES * padded(dims.head_dim)),
            max: of(dims.group() * QUERIES),
            sum: of(dims.group() * QUERIES),
        }
    }
}

/// A range of queries of one sequence.
struct Block {
    sequence: Range<usize>,
    queries: Range<usize>,
}

/// Splits `len` elements off the front of `rest`.
fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(len);
    *rest = back;
    front
}

/// Splits `range` into ranges of at most `most` and of nearly equal size.
fn pieces(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let size = range.len().div_ceil(range.len().div_ceil(most).max(1)).max(1);
    range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
}

/// Writes `out` and `lse`, with one task per block of queries.
pub(super) fn forward(
    inputs: &Inputs<'_>,
    lengths: &Lengths,
    mut out: &mut [f32],
    mut lse: &mut [f32],
) {
    let dims = inputs.dims;
    let mut tasks = Vec::with_capacity(lengths.rows());
    for row in 0..lengths.rows() {
        let sequence = lengths.range(row);
        for queries in pieces(0..sequence.len(), QUERIES) {
            let out = take(&mut out, queries.len() * dims.q_width());
            let lse = take(&mut lse, queries.len() * dims.query_heads);
            tasks.push((Block { sequence: sequence.clone(), queries }, out, lse));
        }
    }
    tasks.into_par_iter().for_each_init(
        || Scratch::new(dims),
        |scratch, (block, out, lse)| {
            for kv_head in 0..dims.kv_heads {
                inputs.forward_head(scratch, &block, kv_head, out, lse);
            }
        },
    );
}

/// Writes the gradients, with one task per sequence, or one per key/value head if there are few
/// sequences.
///
/// Both ways give the same numbers, but the results of separate heads have to be copied together.
pub(super) fn backward(
    inputs: &Inputs<'_>,
    saved: &Saved<'_>,
    lengths: &Lengths,
    mut d_q: &mut [f32],
    mut d_k: &mut [f32],
    mut d_v: &mut [f32],
) {
    let dims = inputs.dims;
    let mut tasks: Vec<(Range<usize>, [&mut [f32]; 3])> = Vec::with_capacity(lengths.rows());
    for row in 0..lengths.rows() {
        let sequence = lengths.range(row);
        if sequence.is_empty() {
            continue;
        }
        let parts = [
            take(&mut d_q, sequence.len() * dims.q_width()),
            take(&mut d_k, sequence.len() * dims.kv_width()),
            take(&mut d_v, sequence.len() * dims.kv_width()),
        ];
        tasks.push((sequence, parts));
    }
    if tasks.len() >= 4 * rayon::current_num_threads() {
        let strides = [dims.q_width(), dims.kv_width(), dims.kv_width()];
        tasks.into_par_iter().for_each_init(
            || Scratch::new(dims),
            |scratch, (sequence, [d_q, d_k, d_v])| {
                for head in 0..dims.kv_heads {
                    let [q_at, at, _] = dims.head_widths().map(|width| head * width);
                    let parts = [&mut d_q[q_at..], &mut d_k[at..], &mut d_v[at..]];
                    inputs.backward_head(scratch, saved, &sequence, head, parts, strides);
                }
            },
        );
    } else {
        for (sequence, parts) in tasks {
            backward_by_heads(inputs, saved, &sequence, parts);
        }
    }
}

/// Gradients of one sequence, with its key/value heads in parallel.
fn backward_by_heads(
    inputs: &Inputs<'_>,
    saved: &Saved<'_>,
    sequence: &Range<usize>,
    parts: [&mut [f32]; 3],
) {
    let (dims, widths) = (inputs.dims, inputs.dims.head_widths());
    let of_head = |scratch: &mut Scratch, head| {
        let mut own = widths.map(|width| vec![0.0; sequence.len() * width]);
        let slices = own.each_mut().map(Vec::as_mut_slice);
        inputs.backward_head(scratch, saved, sequence, head, slices, widths);
        own
    };
    let heads = (0..dims.kv_heads).into_par_iter();
    let heads: Vec<_> = heads.map_init(|| Scratch::new(dims), of_head).collect();
    for (part, (all, width)) in parts.into_iter().zip(widths).enumerate() {
        for (token, row) in all.chunks_exact_mut(width * dims.kv_heads).enumerate() {
            for (head, out) in row.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&heads[head][part][token * width..][..width]);
            }
        }
    }
}

impl Inputs<'_> {
    /// Keys of a sequence of `len` tokens that at least one of `queries` sees.
    fn seen(&self, queries: &Range<usize>, len: usize) -> Range<usize> {
        self.mask.keys(queries.start, len).start..self.mask.keys(queries.end - 1, len).end
    }

    /// Columns of a tile of keys that query `i` sees.
    fn columns(&self, i: usize, len: usize, tile: &Range<usize>) -> Range<usize> {
        let seen = self.mask.keys(i, len);
        let start = seen.start.clamp(tile.start, tile.end) - tile.start;
        let end = seen.end.clamp(tile.start, tile.end) - tile.start;
        start.min(end)..end
    }

    /// Rows of k or v at one head, starting at `token`.
    fn at_kv_head<'a>(&self, of: &'a [f32], token: usize, head: usize) -> Rows<'a> {
        let width = self.dims.kv_width();
        (&of[token * width + head * self.dims.head_dim..], width)
    }

    /// Rows of q, out or `d_out` at one head, starting at `token`.
    fn at_head<'a>(&self, of: &'a [f32], token: usize, head: usize) -> Rows<'a> {
        let width = self.dims.q_width();
        (&of[token * width + head * self.dims.head_dim..], width)
    }

    /// Forward pass of one key/value head and its query heads, for one block of queries. `out` and
    /// `lse` begin at the block's first query.
    fn forward_head(
        &self,
        scratch: &mut Scratch,
        block: &Block,
        kv_head: usize,
        out: &mut [f32],
        lse: &mut [f32],
    ) {
        let Scratch { scores, keys_transposed, key_rows, max, sum, .. } = scratch;
        let Dims { query_heads, head_dim: dim, .. } = self.dims;
        let (group, width) = (self.dims.group(), self.dims.q_width());
        let Block { sequence, queries } = block;
        let (len, rows) = (sequence.len(), queries.len());
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        let seen = self.seen(queries, len);
        for tile in pieces(seen.clone(), KEYS) {
            let write = if tile.start == seen.start { Write::Set } else { Write::Add };
            let (keys, stride, first) =
                (tile.len(), padded(tile.len()), sequence.start + tile.start);
            // Load K and V.
            transpose(
                self.at_kv_head(self.k, first, kv_head),
                keys,
                dim,
                self.scale,
                keys_transposed,
            );
            copy_rows(self.at_kv_head(self.v, first, kv_head), keys, dim, key_rows);
            // scores = Q·Kᵀ, online softmax, O += P·V
            for member in 0..group {
                let head = kv_head * group + member;
                let q = self.at_head(self.q, sequence.start + queries.start, head);
                let (left, right) = (Left::Rows(q.0, q.1), (keys_transposed.as_slice(), stride));
                multiply(Write::Set, (scores, stride), [rows, stride, dim], left, right);
                for r in 0..rows {
                    let visible = self.columns(queries.start + r, len, &tile);
                    let (max, sum) =
                        (&mut max[member * QUERIES + r], &mut sum[member * QUERIES + r]);
                    let shrink =
                        online_softmax(&mut scores[r * stride..][..stride], visible, max, sum);
                    if write == Write::Add {
                        scale_all(&mut out[r * width + head * dim..][..dim], shrink);
                    }
                }
                let (left, right) =
                    (Left::Rows(scores, stride), (key_rows.as_slice(), padded(dim)));
                multiply(write, (&mut out[head * dim..], width), [rows, dim, keys], left, right);
            }
        }
        // O /= Σ exp, log-sum-exp
        for member in 0..group {
            let head = kv_head * group + member;
            for r in 0..rows {
                let (max, sum) = (max[member * QUERIES + r], sum[member * QUERIES + r]);
                scale_all(&mut out[r * width + head * dim..][..dim], 1.0 / sum);
                lse[r * query_heads + head] = max + sum.ln();
            }
        }
    }

    /// Gradients of one key/value head and its query heads, over one sequence.
    ///
    /// `parts` are d_q, d_k and d_v, beginning at the sequence's first token and these heads; their
    /// rows are `strides` apart.
    fn backward_head(
        &self,
        scratch: &mut Scratch,
        saved: &Saved<'_>,
        sequence: &Range<usize>,
        kv_head: usize,
        parts: [&mut [f32]; 3],
        strides: [usize; 3],
    ) {
        let Dims { head_dim: dim, .. } = self.dims;
        let [d_q, d_k, d_v] = parts;
        let len = sequence.len();
        for tile in pieces(0..len, KEYS) {
            let (keys, first) = (tile.len(), sequence.start + tile.start);
            let (k, v) =
                (self.at_kv_head(self.k, first, kv_head), self.at_kv_head(self.v, first, kv_head));
            transpose(k, keys, dim, self.scale, &mut scratch.keys_transposed);
            transpose(v, keys, dim, 1.0, &mut scratch.values_transposed);
            copy_rows(k, keys, dim, &mut scratch.key_rows);
            let mut write = Write::Set;
            for member in 0..self.dims.group() {
                let head = kv_head * self.dims.group() + member;
                for queries in pieces(0..len, QUERIES) {
                    let seen = self.seen(&queries, len);
                    if seen.start >= tile.end || seen.end <= tile.start {
                        continue;
                    }
                    let block = Block { sequence: sequence.clone(), queries };
                    self.scores_backward(scratch, saved, &block, &tile, head);
                    let q_at = block.queries.start * strides[0] + member * dim;
                    let (k_at, v_at) = (tile.start * strides[1], tile.start * strides[2]);
                    let first = if seen.start >= tile.start { Write::Set } else { Write::Add };
                    let outputs = [
                        (first, (&mut d_q[q_at..], strides[0])),
                        (write, (&mut d_k[k_at..], strides[1])),
                        (write, (&mut d_v[v_at..], strides[2])),
                    ];
                    self.products_backward(scratch, saved, &block, keys, head, outputs);
                    write = Write::Add;
                }
            }
        }
    }

    /// Writes P and dS of one block of queries and one tile of keys to `scratch.scores` and
    /// `scratch.d_scores`.
    fn scores_backward(
        &self,
        scratch: &mut Scratch,
        saved: &Saved<'_>,
        block: &Block,
        tile: &Range<usize>,
        head: usize,
    ) {
        let Scratch { scores, d_scores, keys_transposed, values_transposed, .. } = scratch;
        let dim = self.dims.head_dim;
        let (rows, stride) = (block.queries.len(), padded(tile.len()));
        let token = block.sequence.start + block.queries.start;
        let (q, d_out) =
            (self.at_head(self.q, token, head), self.at_head(saved.d_out, token, head));
        let out = self.at_head(saved.out, token, head);
        let size = [rows, stride, dim];
        multiply(
            Write::Set,
            (scores, stride),
            size,
            Left::Rows(q.0, q.1),
            (keys_transposed, stride),
        );
        let left = Left::Rows(d_out.0, d_out.1);
        multiply(Write::Set, (d_scores, stride), size, left, (values_transposed, stride));
        for r in 0..rows {
            let delta = dot(&out.0[r * out.1..][..dim], &d_out.0[r * out.1..][..dim]);
            let lse = saved.lse[(token + r) * self.dims.query_heads + head];
            let visible = self.columns(block.queries.start + r, block.sequence.len(), tile);
            let (p, d) =
                (&mut scores[r * stride..][..stride], &mut d_scores[r * stride..][..stride]);
            softmax_backward(p, d, visible, lse, delta, self.scale);
        }
    }

    /// Computes d_q = dS·K, d_k = dSᵀ·Q and d_v = Pᵀ·d_out of one block and tile from P and dS in
    /// `scratch`.
    fn products_backward(
        &self,
        scratch: &mut Scratch,
        saved: &Saved<'_>,
        block: &Block,
        keys: usize,
        head: usize,
        [d_q, d_k, d_v]: [(Write, (&mut [f32], usize)); 3],
    ) {
        let Scratch { scores, d_scores, key_rows, query_rows, .. } = scratch;
        let (dim, rows, stride) = (self.dims.head_dim, block.queries.len(), padded(keys));
        let token = block.sequence.start + block.queries.start;
        let left = Left::Rows(d_scores, stride);
        multiply(d_q.0, d_q.1, [rows, dim, keys], left, (key_rows, padded(dim)));
        copy_rows(self.at_head(self.q, token, head), rows, dim, query_rows);
        let left = Left::Columns(d_scores, stride);
        multiply(d_k.0, d_k.1, [keys, dim, rows], left, (query_rows, padded(dim)));
        copy_rows(self.at_head(saved.d_out, token, head), rows, dim, query_rows);
        let left = Left::Columns(scores, stride);
        multiply(d_v.0, d_v.1, [keys, dim, rows], left, (query_rows, padded(dim)));
    }
}
