//! From hidden states to an embedding: mean over each sequence, linear maps, L2 normalisation.

use vljepa_kernels::{Lengths, Result, Tensor, View, Write, copy, normalize, pooling};

use super::Linear;
use crate::{Context, Gradients, Parameters};

/// torch's `F.normalize`: x / max(‖x‖, eps).
const NORMALIZE_EPS: f32 = 1e-12;

/// Mean pooling, linear maps, normalisation.
#[derive(Debug, Clone)]
pub struct Head {
    /// First to last; the last one leads into the shared embedding.
    pub maps: Vec<Linear>,
    /// Whether embeddings have length one: for losses of cosine similarities.
    pub normalise: bool,
}

/// An embedding of each row, and what its backward pass needs.
#[derive(Debug)]
pub struct Embedded<Saved> {
    /// (b, e).
    pub embedding: Tensor,
    /// None when the forward pass was told to keep nothing.
    pub saved: Option<Saved>,
}

/// What [`Head::backward`] needs.
#[derive(Debug)]
pub struct HeadSaved {
    /// The input of each map, (b, its inputs).
    inputs: Vec<Tensor>,
    /// The normalised embedding (b, e) and the length before (b).
    normalised: Option<(Tensor, Tensor)>,
}

impl Head {
    /// The embedding (b, e) of hidden states (n, d).
    ///
    /// # Errors
    /// When shapes disagree, a sequence is empty, or memory is short.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        hidden: View<'_>,
        lengths: &Lengths,
        keep: bool,
    ) -> Result<(Tensor, Option<HeadSaved>)> {
        let b = lengths.rows();
        let mut x = cx.take(&[b, hidden.shape()[1]])?;
        pooling::forward(cx.stream, hidden, lengths, x.view_mut())?;
        let mut inputs = Vec::new();
        for map in &self.maps {
            let mut out = cx.take(&[b, map.outputs()])?;
            map.forward(cx, parameters, x.view(), Write::Set, out.view_mut())?;
            inputs.extend(keep.then_some(x));
            x = out;
        }
        if !self.normalise {
            return Ok((x, keep.then_some(HeadSaved { inputs, normalised: None })));
        }
        let (mut embedding, mut length) = (cx.take(x.shape())?, cx.take_f32(&[b])?);
        let out = embedding.view_mut();
        normalize::forward(cx.stream, x.view(), NORMALIZE_EPS, out, length.view_mut())?;
        if !keep {
            return Ok((embedding, None));
        }
        copy::copy(cx.stream, embedding.view(), x.view_mut())?;
        Ok((embedding, Some(HeadSaved { inputs, normalised: Some((x, length)) })))
    }

    /// The gradient of the hidden states (n, d) for that of the embedding (b, e); adds to the gradients of the trainable maps.
    /// None without `below`: nothing under the head is trained, and maps before the last frozen one need no gradient.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
    #[expect(clippy::too_many_arguments, reason = "what the formula reads and writes")]
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: HeadSaved,
        d_embedding: View<'_>,
        lengths: &Lengths,
        below: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let HeadSaved { inputs, normalised } = saved;
        let mut d = cx.take(d_embedding.shape())?;
        match normalised {
            None => copy::cast(cx.stream, d_embedding, d.view_mut())?,
            Some((out, length)) => {
                let (out, length) = (out.view(), length.view());
                normalize::backward(cx.stream, out, length, d_embedding, d.view_mut())?;
            }
        }
        for (i, (map, input)) in self.maps.iter().zip(inputs).enumerate().rev() {
            if map.weight.trainable() {
                map.backward_weight(cx, input.view(), d.view(), gradients)?;
            }
            let needed = below || self.maps[..i].iter().any(|m| m.weight.trainable());
            if !needed {
                return Ok(None);
            }
            // The input's own memory takes its gradient.
            let mut d_input = input;
            map.backward_input(cx, parameters, d.view(), Write::Set, d_input.view_mut())?;
            d = d_input;
        }
        if !below {
            return Ok(None);
        }
        let mut d_hidden = cx.take(&[lengths.tokens(), d.shape()[1]])?;
        pooling::backward(cx.stream, d.view(), lengths, d_hidden.view_mut())?;
        Ok(Some(d_hidden))
    }
}
