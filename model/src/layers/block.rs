//! A pre-norm transformer block: x += attention(norm x); x += mlp(norm x). Gemma normalises the branches' results as well.

use vljepa_kernels::{Result, Tensor, View, Write, copy};

use super::{Attention, AttentionSaved, Linear, Mlp, MlpSaved, Norm, NormSaved, Sequence};
use crate::{Context, Gradients, Keep, Parameters, Recompute};

/// A block of V-JEPA 2, Llama or Gemma, as its parts say.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Before attention.
    pub attention_norm: Norm,
    /// Attention over the sequence.
    pub attention: Attention,
    /// Of attention's result (Gemma).
    pub post_attention_norm: Option<Norm>,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// The MLP of each token.
    pub mlp: Mlp,
    /// Of the MLP's result (Gemma).
    pub post_mlp_norm: Option<Norm>,
    /// Gradients before this place of their buffer are complete when this block's backward pass is done.
    pub gradients_end: usize,
}

/// What [`Block::backward`] needs.
#[derive(Debug)]
pub struct BlockSaved(Saved);

#[derive(Debug)]
enum Saved {
    /// The stream before the block, (n, d): the rest is computed again.
    Input(Tensor),
    Branches(Box<Branches>),
}

#[derive(Debug)]
struct Branches {
    attention: Branch<AttentionSaved>,
    /// Where nothing of the MLP's inside is kept, it is computed again from the normalised stream.
    mlp: Branch<Option<MlpSaved>>,
}

/// One branch off the residual stream: x += post(output(inner(norm x))).
#[derive(Debug)]
struct Branch<Inner> {
    /// The stream before the branch, (n, d).
    x: Tensor,
    /// The normalised stream, (n, d), and the norm's statistics.
    normed: (Tensor, NormSaved),
    /// What the branch itself saved.
    inner: Inner,
    /// The branch's result before its own norm.
    result: Option<(Tensor, NormSaved)>,
}

/// The stream behind a branch, and what stood in it before where that is kept.
struct Joined {
    out: Tensor,
    before: Option<Tensor>,
    result: Option<(Tensor, NormSaved)>,
}

impl Block {
    /// The stream behind this block; x (n, d) is used up (updated in place unless kept).
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
        let Joined { out: x, before, result } =
            join(cx, parameters, output, norm, inner.out(), x, keep.any())?;
        let attention = before.zip(normed).map(|(x, normed)| Branch { x, normed, inner, result });

        let (y, statistics) = self.mlp_norm.forward(cx, parameters, x.view())?;
        let inner = self.mlp.forward(cx, parameters, y.view())?;
        let normed = keep.any().then_some((y, statistics));
        let (output, norm) = (&self.mlp.down, self.post_mlp_norm.as_ref());
        let Joined { out, before, result } =
            join(cx, parameters, output, norm, Mlp::activated(&inner), x, keep.any())?;
        let inner = (keep == Keep::EVERYTHING).then_some(inner);
        let mlp = before.zip(normed).map(|(x, normed)| Branch { x, normed, inner, result });

        let saved = attention.zip(mlp).map(|(attention, mlp)| Branches { attention, mlp });
        Ok((out, saved))
    }

    /// The gradient of the stream before this block, in the memory of `d` (n, d), the gradient behind it; adds to the gradients
    /// of all weights.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
                let Some(saved) = saved else { unreachable!("a block keeps what it is told to") };
                saved
            }
        };
        let Branch { x, normed: (y, statistics), inner, result } = mlp;
        let d_result = through(cx, parameters, &self.post_mlp_norm, result, &d, gradients)?;
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
        let d_result = through(cx, parameters, &self.post_attention_norm, result, &d, gradients)?;
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

/// x + norm(output(inner)), in x's own memory unless it is kept.
fn join(
    cx: Context<'_>,
    parameters: &Parameters,
    output: &Linear,
    norm: Option<&Norm>,
    inner: View<'_>,
    mut x: Tensor,
    keep: bool,
) -> Result<Joined> {
    let Some(norm) = norm else {
        if keep {
            let mut out = cx.take(x.shape())?;
            output.forward_onto(cx, parameters, inner, x.view(), out.view_mut())?;
            return Ok(Joined { out, before: Some(x), result: None });
        }
        output.forward(cx, parameters, inner, Write::Add, x.view_mut())?;
        return Ok(Joined { out: x, before: None, result: None });
    };
    let mut result = cx.take(x.shape())?;
    output.forward(cx, parameters, inner, Write::Set, result.view_mut())?;
    let (mut out, statistics) = norm.forward(cx, parameters, result.view())?;
    copy::add(cx.stream, x.view(), out.view_mut())?;
    let result = keep.then_some((result, statistics));
    Ok(Joined { out, before: keep.then_some(x), result })
}

/// The gradient before a branch's own norm, where it has one.
fn through(
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
