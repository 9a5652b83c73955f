//! Attention of new tokens over keys and values that lie anywhere in a pool: decoding with a cache.
//!
//! out_i = Σ_j softmax_j(scale · q_i·k_j) v_j, where j runs over the rows of the pool that the list
//! of query i names. Sequences that begin with the same tokens share their rows through the lists,
//! so beams never copy a cache. A list also says which tokens a query sees, so there is no mask.
//!
//! Shapes: n queries, h query heads, g key/value heads (a divisor of h), heads of width hd, and a
//! pool of p rows. Query heads j·h/g .. (j + 1)·h/g share key/value head j.
//!
//! # On a GPU
//!
//! Memory-bound: each key and value of a list is read once per key/value head, for all query heads
//! that share it.
//!
//! Source: paged attention, vLLM (arXiv 2309.06180) §4.1, with blocks of one token.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

#[cfg(feature = "cuda")]
use crate::{DType, attention::launch::Heads};
use crate::{Packed, Result, Stream, View, ViewMut, check};

/// Numbers of heads and their width.
#[derive(Debug, Clone, Copy)]
struct Dims {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Dims {
    /// Query heads that share one key/value head.
    fn group(self) -> usize {
        self.query_heads / self.kv_heads
    }
}

/// Computes attention of each query over the rows of the pool in its list.
///
/// # Shapes
/// `q` (n, h, hd), pools `k` and `v` (p, g, hd), `lists` with one list of rows per query; writes
/// `out` (n, h, hd). Tensors are f32 on the host and bf16 on a GPU; sums are f32.
///
/// # Errors
/// If shapes or element types disagree, h is not a multiple of g, a list is empty, or a row is not
/// below p.
///
/// ```
/// use vljepa_kernels::{Device, Packed, Stream, View, ViewMut, cached_attention};
///
/// // Two queries of one head of width 1. Equal keys have equal weights.
/// let lists = Packed::new(Device::Host, vec![2, 0, 1], vec![0, 2, 3])?;
/// let (q, k, v) = ([1.0, 1.0], [0.5; 3], [10.0, 20.0, 30.0]);
/// let pool = |x| View::from_f32(x, &[3, 1, 1]);
/// let mut out = [f32::NAN; 2];
/// cached_attention::forward(
///     &Stream::Host,
///     View::from_f32(&q, &[2, 1, 1]),
///     pool(&k),
///     pool(&v),
///     &lists,
///     1.0,
///     ViewMut::from_f32(&mut out, &[2, 1, 1]),
/// )?;
/// assert_eq!(out, [20.0, 20.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    lists: &Packed,
    scale: f32,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "cached_attention::forward";
    let dims = check_inputs(NAME, [q, k, v], lists)?;
    check::shape(NAME, "out", out.shape(), q.shape())?;
    match stream {
        Stream::Host => {
            let inputs = host::Inputs {
                q: q.host_f32(NAME, "q")?,
                k: k.host_f32(NAME, "k")?,
                v: v.host_f32(NAME, "v")?,
                lists,
                dims,
                scale,
            };
            host::forward(&inputs, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let buffers = launch::Forward {
                q: call.at(q, "q", DType::Bf16)?,
                k: call.at(k, "k", DType::Bf16)?,
                v: call.at(v, "v", DType::Bf16)?,
                rows: call.i32(lists.ids(), "lists")?,
                ends: call.i32(lists.lengths.view(), "lists")?,
                out: call.at(out, "out", DType::Bf16)?,
            };
            let heads =
                Heads { query: dims.query_heads, key_value: dims.kv_heads, dim: dims.head_dim };
            let [n, p] = [q.shape()[0], k.shape()[0]];
            call.run(launch::forward(buffers, [n, p], heads, scale)?)?;
        }),
    }
    Ok(())
}

fn check_inputs(operation: &'static str, [q, k, v]: [View<'_>; 3], lists: &Packed) -> Result<Dims> {
    let [n, query_heads, head_dim] = check::rank(operation, "q", q.shape())?;
    let [p, kv_heads, _] = check::rank(operation, "k", k.shape())?;
    check::shape(operation, "k", k.shape(), &[p, kv_heads, head_dim])?;
    check::shape(operation, "v", v.shape(), k.shape())?;
    check::shape(operation, "lists", &[lists.lengths.rows()], &[n])?;
    check::indices(operation, "lists", lists.host_ids(), p)?;
    if query_heads == 0 || head_dim == 0 || !query_heads.is_multiple_of(kv_heads) {
        let found = format!("{query_heads} query and {kv_heads} key/value heads of {head_dim}");
        let needed = "the number of query heads must be a positive multiple of the number of \
                      key/value heads, and the head width must be positive";
        return Err(check::value(operation, "heads", found, needed));
    }
    if let Some(query) = (0..n).find(|&query| lists.lengths.range(query).is_empty()) {
        let found = format!("empty at query {query}");
        return Err(check::value(operation, "lists", found, "every query needs a row"));
    }
    Ok(Dims { query_heads, kv_heads, head_dim })
}
