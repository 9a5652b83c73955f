//! Cross-entropy of the next tokens. The logits of all tokens are never in memory at once.

use vljepa_kernels::{KernelError, Result, Tensor, View, Write, cross_entropy, linear, rows};

use super::LanguageModel;
use crate::{Context, Gradients, Parameters};

impl LanguageModel {
    /// Losses −log p(target) of the tokens that have a target, f32 (t), in their order.
    ///
    /// `hidden` (n, d) are the hidden states, and `targets` (n) the tokens that follow, or −1 where
    /// no token is predicted. The losses stay on the device.
    ///
    /// # Errors
    /// If shapes disagree, a target is not in the vocabulary, or memory runs out.
    pub fn losses(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        hidden: View<'_>,
        targets: &[i32],
    ) -> Result<Tensor> {
        let trained = self.trained(cx, hidden, targets)?;
        let mut losses = cx.take_f32(&[trained.targets.shape()[0]])?;
        for range in self.chunks(cx, &trained) {
            self.chunk(cx, parameters, &trained, range, &mut losses, None)?;
        }
        Ok(losses)
    }

    /// [`Self::losses`], and the gradient (n, d) of the hidden states for `factor` · Σ losses. Adds
    /// to the gradient of the table if it is trained.
    ///
    /// With `factor` = 1 / targets of the global batch, the sum over ranks and micro-batches is the
    /// gradient of the mean.
    ///
    /// # Errors
    /// Same as [`Self::losses`].
    pub fn losses_with_gradient(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        hidden: View<'_>,
        targets: &[i32],
        factor: f32,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let trained = self.trained(cx, hidden, targets)?;
        let mut losses = cx.take_f32(&[trained.targets.shape()[0]])?;
        let mut d_rows = cx.take(trained.hidden.shape())?;
        for range in self.chunks(cx, &trained) {
            let gradient = Gradient { factor, d_hidden: &mut d_rows, gradients: &mut *gradients };
            self.chunk(cx, parameters, &trained, range, &mut losses, Some(gradient))?;
        }
        let mut d_hidden = cx.take(hidden.shape())?;
        d_hidden.view_mut().fill_zero(cx.stream)?;
        let (from, to) = (d_rows.view(), d_hidden.view_mut());
        rows::scatter(cx.stream, from, trained.index.view(), to)?;
        Ok((losses, d_hidden))
    }

    /// Gathers the tokens that have a target.
    fn trained(&self, cx: Context<'_>, hidden: View<'_>, targets: &[i32]) -> Result<Trained> {
        let [n, d] = [hidden.shape()[0], hidden.shape()[1]];
        let wrong = |what, found: String, needed: String| KernelError::Value {
            operation: "language_model::losses",
            what,
            found,
            needed,
        };
        if targets.len() != n {
            let (found, needed) = (targets.len().to_string(), format!("{n}, one per token"));
            return Err(wrong("number of targets", found, needed));
        }
        let v = self.table().shape()[0];
        let (mut kept, mut index) = (Vec::new(), Vec::new());
        for (at, &target) in (0..).zip(targets) {
            if let Ok(token) = usize::try_from(target) {
                if token >= v {
                    let found = format!("{target} at [{at}]");
                    return Err(wrong("targets", found, format!("must be below {v}")));
                }
                kept.push(target);
                index.push(at);
            }
        }
        let (device, t) = (cx.arena.device(), kept.len());
        let targets = Tensor::from_i32(kept, &[t]).on(device)?;
        let index = Tensor::from_i32(index, &[t]).on(device)?;
        let mut gathered = cx.take(&[t, d])?;
        let to = gathered.view_mut();
        rows::gather(cx.stream, hidden, index.view(), Write::Set, to)?;
        Ok(Trained { index, targets, hidden: gathered })
    }

    /// Ranges of the trained tokens whose logits are computed together.
    fn chunks(&self, cx: Context<'_>, trained: &Trained) -> impl Iterator<Item = [usize; 2]> {
        let (tokens, rows) = (trained.targets.shape()[0], self.rows_of_logits(cx));
        (0..tokens).step_by(rows).map(move |start| [start, (start + rows).min(tokens)])
    }

    /// Writes the losses of a chunk and, if wanted, the gradient of its hidden states.
    fn chunk(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        trained: &Trained,
        [start, end]: [usize; 2],
        losses: &mut Tensor,
        gradient: Option<Gradient<'_>>,
    ) -> Result<()> {
        let (hidden, targets) =
            (trained.hidden.view().rows(start, end), trained.targets.view().rows(start, end));
        let mut logits = self.logits(cx, parameters, hidden)?;
        let mut lse = cx.take_f32(&[end - start])?;
        let losses = losses.view_mut().rows(start, end);
        cross_entropy::forward(cx.stream, logits.view(), targets, losses, lse.view_mut())?;
        let Some(Gradient { factor, d_hidden, gradients }) = gradient else { return Ok(()) };
        cross_entropy::backward(cx.stream, logits.view_mut(), targets, lse.view(), factor)?;
        let (d_logits, table) = (logits.view(), parameters.of(self.table()));
        let to = d_hidden.view_mut().rows(start, end);
        linear::backward_input(cx.stream, d_logits, table, Write::Set, to)?;
        if self.table().trainable() {
            let d_table = gradients.of(self.table());
            linear::backward_weight(cx.stream, hidden, d_logits, d_table, None)?;
        }
        Ok(())
    }
}

/// Tokens that have a target.
struct Trained {
    /// Index of each among all tokens, i32 (t).
    index: Tensor,
    /// Target of each, i32 (t).
    targets: Tensor,
    /// Hidden states, (t, d).
    hidden: Tensor,
}

/// What a chunk writes when gradients are wanted.
struct Gradient<'a> {
    factor: f32,
    /// Gradient of the hidden states of all trained tokens, (t, d).
    d_hidden: &'a mut Tensor,
    gradients: &'a mut Gradients,
}
