//! Pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x)). Gemma also normalises
//! the result of each branch.

use vljepa_kernels::{Result, Tensor, View, Write, copy, rows};

use super::{
    Attention, AttentionSaved, Extension, Linear, Mlp, MlpSaved, Norm, NormSaved, Pool, Sequence,
};
use crate::{Context, Gradients, Keep, Parameters, Recompute};

/// Transformer block of V-JEPA 2, Llama or Gemma, depending on its parts.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Norm of the attention branch's input.
    pub attention_norm: Norm,
    /// Self-attention over the packed sequences.
    pub attention: Attention,
    /// Norm of the attention branch's result (Gemma).
    pub post_attention_norm: Option<Norm>,
    /// Norm of the MLP branch's input.
    pub mlp_norm: Norm,
    /// MLP, applied to each token.
    pub mlp: Mlp,
    /// Norm of the MLP branch's result (Gemma).
    pub post_mlp_norm: Option<Norm>,
    /// Offset in the gradient buffer: the gradients before it are complete when this block's
    /// backward pass is done.
    pub gradients_end: usize,
}

/// State that [`Block::backward`] consumes.
#[derive(Debug)]
pub struct BlockSaved(Saved);

#[derive(Debug)]
enum Saved {
    /// Residual stream before the block, (n, d). Everything else is recomputed.
    Input(Tensor),
    Branches(Box<Branches>),
}

#[derive(Debug)]
struct Branches {
    attention: Branch<AttentionSaved>,
    /// If `inner` is `None`, the MLP's activations are recomputed from the normalised stream.
    mlp: Branch<Option<MlpSaved>>,
}

/// State of one branch of the residual stream: x += post_norm(output(inner(norm(x)))).
#[derive(Debug)]
struct Branch<Inner> {
    /// Residual stream before the branch, (n, d).
    x: Tensor,
    /// Normalised stream, (n, d), and the norm's statistics.
    normed: (Tensor, NormSaved),
    /// State saved by attention or the MLP.
    inner: Inner,
    /// Result of the branch before `post_norm`, and the statistics of `post_norm`.
    result: Option<(Tensor, NormSaved)>,
}

/// Residual stream after a branch, and the state kept for backward.
struct BranchOutput {
    out: Tensor,
    before: Option<Tensor>,
    result: Option<(Tensor, NormSaved)>,
}

impl Block {
    /// Residual stream after this block. Consumes x (n, d), the stream before it, and updates it in
    /// place where possible.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: Tensor,
        sequence: &Sequence,
        keep: Keep,
    ) -> Result<(Tensor, Option<BlockSaved>)> {
        if keep == Keep::Needed(Recompute::Block) {
            let mut input = cx.take(x.shape())?;
            copy::copy(cx.stream, x.view(), input.view_mut())?;
            let (out, _) = self.branches(cx, parameters, x, sequence, Keep::Nothing)?;
            return Ok((out, Some(BlockSaved(Saved::Input(input)))));
        }
        let (out, saved) = self.branches(cx, parameters, x, sequence, keep)?;
        Ok((out, saved.map(|saved| BlockSaved(Saved::Branches(Box::new(saved))))))
    }

    fn branches(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: Tensor,
        sequence: &Sequence,
        keep: Keep,
    ) -> Result<(Tensor, Option<Branches>)> {
        let (y, statistics) = self.attention_norm.forward(cx, parameters, x.view())?;
        let inner = self.attention.forward(cx, parameters, y.view(), sequence, keep.any())?;
        let normed = keep.any().then_some((y, statistics));
        let (output, norm) = (&self.attention.output, self.post_attention_norm.as_ref());
        let BranchOutput { out: x, before, result } =
            add_branch(cx, parameters, output, norm, inner.out(), x, keep.any())?;
        let attention = before.zip(normed).map(|(x, normed)| Branch { x, normed, inner, result });

        let (y, statistics) = self.mlp_norm.forward(cx, parameters, x.view())?;
        let inner = self.mlp.forward(cx, parameters, y.view())?;
        let normed = keep.any().then_some((y, statistics));
        let (output, norm) = (&self.mlp.down, self.post_mlp_norm.as_ref());
        let BranchOutput { out, before, result } =
            add_branch(cx, parameters, output, norm, Mlp::activated(&inner), x, keep.any())?;
        let inner = (keep == Keep::EVERYTHING).then_some(inner);
        let mlp = before.zip(normed).map(|(x, normed)| Branch { x, normed, inner, result });

        let saved = attention.zip(mlp).map(|(attention, mlp)| Branches { attention, mlp });
        Ok((out, saved))
    }

    /// Residual stream of new tokens after this block. Consumes x (n, d), the stream before it.
    /// Keys and values of the new tokens are added to the pool. With a `memory`, x += a row of it
    /// between attention and MLP: the rows (m, d), and the row of each token, i32 (n).
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward_cached(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: Tensor,
        extension: &Extension,
        pool: &mut Pool,
        memory: Option<[View<'_>; 2]>,
    ) -> Result<Tensor> {
        let (y, _) = self.attention_norm.forward(cx, parameters, x.view())?;
        let inner = self.attention.forward_cached(cx, parameters, y.view(), extension, pool)?;
        let (output, norm) = (&self.attention.output, self.post_attention_norm.as_ref());
        let branch = add_branch(cx, parameters, output, norm, inner.view(), x, false)?;
        let mut x = branch.out;
        if let Some([of, at]) = memory {
            rows::gather(cx.stream, of, at, Write::Add, x.view_mut())?;
        }
        let (y, _) = self.mlp_norm.forward(cx, parameters, x.view())?;
        let inner = self.mlp.forward(cx, parameters, y.view())?;
        let (output, norm) = (&self.mlp.down, self.post_mlp_norm.as_ref());
        let inner = Mlp::activated(&inner);
        Ok(add_branch(cx, parameters, output, norm, inner, x, false)?.out)
    }

    /// Gradient of the residual stream before this block, given `d` (n, d), the gradient after it.
    /// The result reuses the memory of `d`. Adds to the gradients of all weights.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: BlockSaved,
        mut d: Tensor,
        sequence: &Sequence,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let Branches { attention, mlp } = match saved.0 {
            Saved::Branches(saved) => *saved,
            Saved::Input(x) => {
                let keep = Keep::EVERYTHING;
                let (_, saved) = self.branches(cx, parameters, x, sequence, keep)?;
                let Some(saved) = saved else { unreachable!("branches saves its state") };
                saved
            }
        };
        let Branch { x, normed: (y, statistics), inner, result } = mlp;
        let d_result =
            backward_post_norm(cx, parameters, &self.post_mlp_norm, result, &d, gradients)?;
        let d_out = d_result.as_ref().unwrap_or(&d).view();
        let inner = match inner {
            Some(inner) => inner,
            None => self.mlp.forward(cx, parameters, y.view())?,
        };
        let d_y = self.mlp.backward(cx, parameters, y.view(), inner, d_out, gradients)?;
        drop((y, d_result));
        let (x, d_y) = (x.view(), d_y.view());
        let norm = &self.mlp_norm;
        norm.backward(cx, parameters, x, &statistics, d_y, Write::Add, d.view_mut(), gradients)?;

        let Branch { x, normed: (y, statistics), inner, result } = attention;
        let d_result =
            backward_post_norm(cx, parameters, &self.post_attention_norm, result, &d, gradients)?;
        let d_out = d_result.as_ref().unwrap_or(&d).view();
        let attention = &self.attention;
        let d_y =
            attention.backward(cx, parameters, y.view(), inner, d_out, sequence, gradients)?;
        drop((y, d_result));
        let (x, d_y) = (x.view(), d_y.view());
        let norm = &self.attention_norm;
        norm.backward(cx, parameters, x, &statistics, d_y, Write::Add, d.view_mut(), gradients)?;
        Ok(d)
    }
}

/// x + norm(output(inner)). Updates x in place if there is no norm and `keep` is false.
fn add_branch(
    cx: Context<'_>,
    parameters: &Parameters,
    output: &Linear,
    norm: Option<&Norm>,
    inner: View<'_>,
    mut x: Tensor,
    keep: bool,
) -> Result<BranchOutput> {
    let Some(norm) = norm else {
        if keep {
            let mut out = cx.take(x.shape())?;
            output.forward_onto(cx, parameters, inner, x.view(), out.view_mut())?;
            return Ok(BranchOutput { out, before: Some(x), result: None });
        }
        output.forward(cx, parameters, inner, Write::Add, x.view_mut())?;
        return Ok(BranchOutput { out: x, before: None, result: None });
    };
    let mut result = cx.take(x.shape())?;
    output.forward(cx, parameters, inner, Write::Set, result.view_mut())?;
    let (mut out, statistics) = norm.forward(cx, parameters, result.view())?;
    copy::add(cx.stream, x.view(), out.view_mut())?;
    let result = keep.then_some((result, statistics));
    Ok(BranchOutput { out, before: keep.then_some(x), result })
}

/// Gradient of a branch's result before the branch's `norm`, or `None` if the branch has no such
/// norm.
fn backward_post_norm(
    cx: Context<'_>,
    parameters: &Parameters,
    norm: &Option<Norm>,
    result: Option<(Tensor, NormSaved)>,
    d: &Tensor,
    gradients: &mut Gradients,
) -> Result<Option<Tensor>> {
    let (Some(norm), Some((result, statistics))) = (norm, result) else { return Ok(None) };
    let mut d_result = cx.take(d.shape())?;
    norm.backward(
        cx,
        parameters,
        result.view(),
        &statistics,
        d.view(),
        Write::Set,
        d_result.view_mut(),
        gradients,
    )?;
    Ok(Some(d_result))
}
