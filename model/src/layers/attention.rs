//! Self-attention over packed sequences: fused q/k/v projection, optional norms of queries and
//! keys, rotary embedding, attention.
//!
//! Letters in shapes: n packed tokens, d model width, h query heads, kv key/value heads, hd head
//! width.

use vljepa_kernels::attention::{self, Mask};
use vljepa_kernels::rope::{self, Heads, Rotation};
use vljepa_kernels::{Result, Tensor, View, Write, cached_attention};

use super::{Extension, Linear, Norm, NormSaved, Pool, Sequence};
use crate::{Context, Gradients, Parameters};

/// Norms of each query head and key head, applied between projection and rotation
/// (Gemma, Qwen3).
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms {
    /// Norm over the elements of a query head, (hd).
    pub query: Norm,
    /// Norm over the elements of a key head, (hd).
    pub key: Norm,
}

/// Self-attention layer with a fused q/k/v projection.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Fused projection [q | k | v], ((h + 2·kv)·hd, d).
    pub qkv: Linear,
    /// Map of the attended values to the model width, (d, h·hd).
    pub output: Linear,
    /// Number of query heads, number of key/value heads, and head width.
    pub heads: Heads,
    /// Norms of queries and keys, or `None` if the model has none.
    pub norms: Option<HeadNorms>,
    /// Keys that each query attends to.
    pub mask: Mask,
    /// Factor of the scores q·k.
    pub scale: f32,
    /// Index into [`Sequence::tables`] of the rotary table for queries and keys, or `None` if the
    /// model does not rotate them.
    pub table: Option<usize>,
}

/// State that [`Attention::backward`] consumes.
#[derive(Debug)]
pub struct AttentionSaved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Queries and keys before their norms, with the norms' statistics.
    before_norms: Option<[(Tensor, NormSaved); 2]>,
    /// Attended values, (n, h·hd).
    out: Tensor,
    lse: Tensor,
}

impl AttentionSaved {
    /// Attended values (n, h·hd), the input of the `output` map.
    #[must_use]
    pub fn out(&self) -> View<'_> {
        self.out.view()
    }
}

/// Queries (n, h, hd), keys and values (n, kv, hd) of new tokens.
struct Projected {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    before_norms: Option<[(Tensor, NormSaved); 2]>,
}

/// Shape (n, h, hd) seen as one row per head, (n·h, hd).
fn head_rows(shape: &[usize]) -> [usize; 2] {
    [shape[0] * shape[1], shape[2]]
}

impl Attention {
    fn rotation<'a>(&self, sequence: &'a Sequence) -> Option<Rotation<'a>> {
        let table = &sequence.tables[self.table?];
        Some(Rotation { table, positions: sequence.positions.view() })
    }

    /// Attended values for the normalised x (n, d). The caller applies the `output` map.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        sequence: &Sequence,
        keep: bool,
    ) -> Result<AttentionSaved> {
        let (n, Heads { query, dim, .. }) = (x.shape()[0], self.heads);
        let Projected { q, k, v, before_norms } =
            self.project(cx, parameters, x, sequence, keep)?;
        let (mut out, mut lse) = (cx.take(&[n, query, dim])?, cx.take_f32(&[n, query])?);
        attention::forward(
            cx.stream,
            q.view(),
            k.view(),
            v.view(),
            &sequence.lengths,
            self.mask,
            self.scale,
            out.view_mut(),
            lse.view_mut(),
        )?;
        let out = out.reshaped(&[n, query * dim]);
        Ok(AttentionSaved { q, k, v, before_norms, out, lse })
    }

    /// Attended values (n, h·hd) of new tokens, for their normalised x (n, d). Keys and values of
    /// the new tokens are added to the pool.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward_cached(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        extension: &Extension,
        pool: &mut Pool,
    ) -> Result<Tensor> {
        let (n, Heads { query, dim, .. }) = (x.shape()[0], self.heads);
        let Some(seen) = &extension.seen else {
            let saved = self.forward(cx, parameters, x, &extension.sequence, false)?;
            pool.store(cx, extension, &saved.k, &saved.v)?;
            return Ok(saved.out);
        };
        let Projected { q, k, v, .. } =
            self.project(cx, parameters, x, &extension.sequence, false)?;
        pool.store(cx, extension, &k, &v)?;
        let mut out = cx.take(q.shape())?;
        let (keys, values) = (pool.keys.view(), pool.values.view());
        let (q, to) = (q.view(), out.view_mut());
        cached_attention::forward(cx.stream, q, keys, values, seen, self.scale, to)?;
        Ok(out.reshaped(&[n, query * dim]))
    }

    /// Queries, keys and values for the normalised x (n, d): projected, normalised and rotated.
    fn project(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        sequence: &Sequence,
        keep: bool,
    ) -> Result<Projected> {
        let (n, Heads { query, key_value, dim }) = (x.shape()[0], self.heads);
        let mut qkv = cx.take(&[n, self.heads.width()])?;
        self.qkv.forward(cx, parameters, x, Write::Set, qkv.view_mut())?;
        let mut q = cx.take(&[n, query, dim])?;
        let (mut k, mut v) = (cx.take(&[n, key_value, dim])?, cx.take(&[n, key_value, dim])?);
        let rotation = self.rotation(sequence);
        // Without norms of queries and keys, the split rotates them too.
        let fused_rotation = rotation.filter(|_| self.norms.is_none());
        let parts = (q.view_mut(), k.view_mut(), v.view_mut());
        rope::split(cx.stream, qkv.view(), self.heads, fused_rotation, parts.0, parts.1, parts.2)?;
        drop(qkv);
        let mut before_norms = None;
        if let Some(norms) = &self.norms {
            let (mut normed_q, q_saved) = norms.query.forward_by_head(cx, parameters, &q)?;
            let (mut normed_k, k_saved) = norms.key.forward_by_head(cx, parameters, &k)?;
            if let Some(rotation) = rotation {
                rope::rotate(cx.stream, normed_q.view_mut(), rotation)?;
                rope::rotate(cx.stream, normed_k.view_mut(), rotation)?;
            }
            std::mem::swap(&mut q, &mut normed_q);
            std::mem::swap(&mut k, &mut normed_k);
            before_norms = keep.then_some([(normed_q, q_saved), (normed_k, k_saved)]);
        }
        Ok(Projected { q, k, v, before_norms })
    }

    /// Gradient of x (n, d), given `d_out` (n, d), the gradient of the `output` map's result. Adds
    /// to the gradients of all weights.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    #[expect(clippy::too_many_arguments, reason = "one argument per operand of the formula")]
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        saved: AttentionSaved,
        d_out: View<'_>,
        sequence: &Sequence,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.output.backward_weight(cx, saved.out.view(), d_out, gradients)?;
        let d_qkv = {
            let mut d_heads = cx.take(saved.out.shape())?;
            self.output.backward_input(cx, parameters, d_out, Write::Set, d_heads.view_mut())?;
            self.backward_heads(cx, parameters, saved, &d_heads, sequence, gradients)?
        };
        self.qkv.backward_weight(cx, x, d_qkv.view(), gradients)?;
        let mut d_x = cx.take(x.shape())?;
        self.qkv.backward_input(cx, parameters, d_qkv.view(), Write::Set, d_x.view_mut())?;
        Ok(d_x)
    }

    /// Gradient of the fused projection's result, given `d_heads` (n, h·hd), the gradient of the
    /// attended values.
    fn backward_heads(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: AttentionSaved,
        d_heads: &Tensor,
        sequence: &Sequence,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let AttentionSaved { q, k, v, before_norms, out, lse } = saved;
        let (mut d_q, mut d_k) = (cx.take(q.shape())?, cx.take(k.shape())?);
        let mut d_v = cx.take(v.shape())?;
        attention::backward(
            cx.stream,
            q.view(),
            k.view(),
            v.view(),
            out.view().reshaped(q.shape()),
            lse.view(),
            d_heads.view().reshaped(q.shape()),
            &sequence.lengths,
            self.mask,
            self.scale,
            d_q.view_mut(),
            d_k.view_mut(),
            d_v.view_mut(),
        )?;
        let n = q.shape()[0];
        drop((q, k, v, out, lse));
        let rotation = self.rotation(sequence);
        let mut fused_rotation = rotation;
        if let (Some(norms), Some([q, k])) = (&self.norms, before_norms) {
            if let Some(rotation) = rotation {
                rope::rotate_backward(cx.stream, d_q.view_mut(), rotation)?;
                rope::rotate_backward(cx.stream, d_k.view_mut(), rotation)?;
            }
            d_q = norms.query.backward_by_head(cx, parameters, q, &d_q, gradients)?;
            d_k = norms.key.backward_by_head(cx, parameters, k, &d_k, gradients)?;
            fused_rotation = None;
        }
        let mut d_qkv = cx.take(&[n, self.heads.width()])?;
        let (d_q, d_k, d_v) = (d_q.view(), d_k.view(), d_v.view());
        rope::split_backward(
            cx.stream,
            d_q,
            d_k,
            d_v,
            self.heads,
            fused_rotation,
            d_qkv.view_mut(),
        )?;
        Ok(d_qkv)
    }
}

impl Norm {
    /// Normalises each head of x (n, h, hd) by itself.
    fn forward_by_head(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: &Tensor,
    ) -> Result<(Tensor, NormSaved)> {
        let (out, saved) =
            self.forward(cx, parameters, x.view().reshaped(&head_rows(x.shape())))?;
        Ok((out.reshaped(x.shape()), saved))
    }

    /// Gradient of x (n, h, hd), given `d_out`, the gradient of [`Self::forward_by_head`]'s result.
    fn backward_by_head(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        (x, saved): (Tensor, NormSaved),
        d_out: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let rows = head_rows(x.shape());
        let mut d_x = cx.take(x.shape())?;
        self.backward(
            cx,
            parameters,
            x.view().reshaped(&rows),
            &saved,
            d_out.view().reshaped(&rows),
            Write::Set,
            d_x.view_mut().reshaped(&rows),
            gradients,
        )?;
        Ok(d_x)
    }
}
