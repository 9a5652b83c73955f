//! Head that maps hidden states to an embedding: pooling of each sequence, linear maps, L2
//! normalisation.

use vljepa_kernels::{
    KernelError, Lengths, Result, Tensor, View, Write, copy, normalize, pooling, rows,
};

use super::Linear;
use crate::{Context, Gradients, Parameters};

/// Lower bound of the length in x / max(‖x‖, eps), the default of torch's `F.normalize`.
const NORMALIZE_EPS: f32 = 1e-12;

/// Reduction of the hidden states of a sequence to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over all tokens.
    Mean,
    /// Hidden state of the last token.
    Last,
}

/// Pooling, linear maps and optional L2 normalisation.
#[derive(Debug, Clone)]
pub struct Head {
    /// Reduction of each sequence to one vector.
    pub pooling: Pooling,
    /// Linear maps in the order of application. The result of the last one is the shared embedding.
    pub maps: Vec<Linear>,
    /// Whether embeddings are scaled to length one, as losses of cosine similarities need.
    pub normalise: bool,
}

/// Embedding of each row, and the state for the backward pass.
#[derive(Debug)]
pub struct Embedded<Saved> {
    /// One embedding per row, (b, e).
    pub embedding: Tensor,
    /// `None` if the forward pass was told to keep nothing.
    pub saved: Option<Saved>,
}

/// State that [`Head::backward`] consumes.
#[derive(Debug)]
pub struct HeadSaved {
    /// Input of each map, (b, inputs of the map).
    inputs: Vec<Tensor>,
    /// Normalised embedding (b, e), and its length before normalisation (b).
    normalised: Option<(Tensor, Tensor)>,
}

impl Head {
    /// Embedding (b, e) of each sequence of the hidden states (n, d).
    ///
    /// # Errors
    /// If shapes disagree, a sequence is empty, or memory runs out.
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
        match self.pooling {
            Pooling::Mean => pooling::forward(cx.stream, hidden, lengths, x.view_mut())?,
            Pooling::Last => {
                let last = last_rows(cx, lengths)?;
                rows::gather(cx.stream, hidden, last.view(), Write::Set, x.view_mut())?;
            }
        }
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

    /// Gradient of the hidden states (n, d), given `d_embedding` (b, e), the gradient of the
    /// embedding. Adds to the gradients of the trainable maps.
    ///
    /// `below` says whether anything below the head is trained. If it is false, the pass stops at
    /// the first trainable map and returns `None`.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    #[expect(clippy::too_many_arguments, reason = "one argument per operand of the formula")]
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
            // The gradient of the input overwrites the input, whose value has been used.
            let mut d_input = input;
            map.backward_input(cx, parameters, d.view(), Write::Set, d_input.view_mut())?;
            d = d_input;
        }
        if !below {
            return Ok(None);
        }
        let mut d_hidden = cx.take(&[lengths.tokens(), d.shape()[1]])?;
        match self.pooling {
            Pooling::Mean => {
                pooling::backward(cx.stream, d.view(), lengths, d_hidden.view_mut())?;
            }
            Pooling::Last => {
                let last = last_rows(cx, lengths)?;
                d_hidden.view_mut().fill_zero(cx.stream)?;
                rows::scatter(cx.stream, d.view(), last.view(), d_hidden.view_mut())?;
            }
        }
        Ok(Some(d_hidden))
    }
}

/// Row of each sequence's last token in the packed sequences, i32 (b).
fn last_rows(cx: Context<'_>, lengths: &Lengths) -> Result<Tensor> {
    let ends = lengths.host();
    if let Some(row) = ends.windows(2).position(|ends| ends[0] == ends[1]) {
        return Err(KernelError::Value {
            operation: "head::forward",
            what: "sequence",
            found: format!("sequence {row} without tokens"),
            needed: "at least one token".to_owned(),
        });
    }
    let last: Vec<i32> = ends.iter().skip(1).map(|end| end - 1).collect();
    let count = last.len();
    Tensor::from_i32(last, &[count]).on(cx.arena.device())
}
