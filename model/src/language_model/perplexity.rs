//! Perplexity of given continuations of prompts.

use std::ops::Range;

use rayon::prelude::*;
use vljepa_kernels::{KernelError, Lengths, Packed, Result};

use super::generate::{gathered, last_tokens};
use super::{Cache, LanguageModel, Prompts};
use crate::{Context, Parameters};

/// Most numbers of cached rows that one pass over continuations lists, 64 MiB of them: each new
/// token lists all tokens before it.
const LISTED_ROWS: usize = 1 << 24;

impl LanguageModel {
    /// Mean of −log p over the tokens of each continuation after each prompt, (prompts,
    /// continuations). Its exponential is the perplexity.
    ///
    /// Each prompt is read once. Its keys and values are shared by all its continuations.
    ///
    /// # Errors
    /// If a prompt or a continuation is empty, an id is not in the vocabulary, shapes disagree, or
    /// memory runs out.
    pub fn mean_losses(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        prompts: Prompts<'_>,
        continuations: &[Vec<i32>],
    ) -> Result<Vec<Vec<f32>>> {
        let Prompts { x, lengths, memory } = prompts;
        let count = lengths.rows();
        let empty = |what, row: usize| KernelError::Value {
            operation: "language_model::mean_losses",
            what,
            found: format!("empty at {row}"),
            needed: "each needs a token".to_owned(),
        };
        if let Some(row) = (0..count).find(|&row| lengths.range(row).is_empty()) {
            return Err(empty("prompts", row));
        }
        if let Some(row) = continuations.iter().position(Vec::is_empty) {
            return Err(empty("continuations", row));
        }
        let mut cache = self.cache(cx, parameters, count, memory)?;
        let (last, longest) = (last_tokens(&lengths), lengths.max_len());
        let hidden = self.extend(cx, parameters, &mut cache, x, lengths)?;
        let hidden = gathered(cx, &hidden, last)?;
        let mut sums = self.first_losses(cx, parameters, &hidden, continuations)?;
        let prompts = cache.snapshot();
        for range in chunks(continuations, count * longest.max(1)) {
            cache.restore(&prompts);
            self.later_losses(cx, parameters, &mut cache, (continuations, range), &mut sums)?;
        }
        for sums in &mut sums {
            for (sum, tokens) in sums.iter_mut().zip(continuations) {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "texts have far fewer than 2^24 tokens"
                )]
                let n = tokens.len() as f32;
                *sum /= n;
            }
        }
        Ok(sums)
    }

    /// Losses of the first tokens, which follow the `hidden` states (prompts, d) of the prompts.
    fn first_losses(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        hidden: &vljepa_kernels::Tensor,
        continuations: &[Vec<i32>],
    ) -> Result<Vec<Vec<f32>>> {
        let (rows, v) = (self.rows_of_logits(cx), self.table().shape()[0]);
        let first: Vec<usize> = continuations
            .iter()
            .map(|tokens| usize::try_from(tokens[0]).ok().filter(|id| *id < v))
            .collect::<Option<_>>()
            .ok_or_else(|| KernelError::Value {
                operation: "language_model::mean_losses",
                what: "continuations",
                found: "a token outside of the vocabulary".to_owned(),
                needed: format!("ids from 0 to {}", v - 1),
            })?;
        let mut all = Vec::with_capacity(hidden.shape()[0]);
        for start in (0..hidden.shape()[0]).step_by(rows) {
            let end = (start + rows).min(hidden.shape()[0]);
            let logits = self.logits(cx, parameters, hidden.view().rows(start, end))?;
            let logits = logits.to_f32()?;
            all.par_extend(logits.par_chunks_exact(v).map(|logits| {
                let lse = log_sum_exp(logits);
                first.iter().map(|&id| lse - logits[id]).collect()
            }));
        }
        Ok(all)
    }

    /// Adds the losses of all other tokens of some continuations. The sequences of `cache` are the
    /// prompts.
    fn later_losses(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        cache: &mut Cache,
        (continuations, range): (&[Vec<i32>], Range<usize>),
        sums: &mut [Vec<f32>],
    ) -> Result<()> {
        let device = cx.arena.device();
        let (mut parents, mut ids, mut ends) = (Vec::new(), Vec::new(), vec![0]);
        let (mut targets, mut owners) = (Vec::new(), Vec::new());
        for prompt in 0..sums.len() {
            for number in range.clone() {
                let tokens = &continuations[number];
                if tokens.len() == 1 {
                    continue;
                }
                parents.push(prompt);
                ids.extend(&tokens[..tokens.len() - 1]);
                ends.push(ends[ends.len() - 1] + i32::try_from(tokens.len() - 1).unwrap_or(0));
                targets.extend(&tokens[1..]);
                owners.resize(targets.len(), (prompt, number));
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        cache.select(&parents);
        let tokens = Packed::new(device, ids, ends.clone())?;
        let x = self.next_input(cx, parameters, cache, &tokens)?;
        let hidden = self.extend(cx, parameters, cache, x, Lengths::new(device, ends)?)?;
        let losses = self.losses(cx, parameters, hidden.view(), &targets)?;
        for (loss, (prompt, number)) in losses.to_f32()?.iter().zip(owners) {
            sums[prompt][number] += loss;
        }
        Ok(())
    }
}

/// Ranges of continuations of which each lists few enough rows, if every new token lists `before`
/// rows and the new ones before it.
fn chunks(continuations: &[Vec<i32>], before: usize) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut listed) = (Vec::new(), 0, 0);
    for (i, tokens) in continuations.iter().enumerate() {
        let own = tokens.len() * (before + tokens.len());
        if listed + own > LISTED_ROWS && i > start {
            ranges.push(start..i);
            (start, listed) = (i, 0);
        }
        listed += own;
    }
    ranges.push(start..continuations.len());
    ranges
}

/// log Σ exp of logits, with their maximum taken out.
fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "losses are f32")]
    let log = sum.ln() as f32;
    most + log
}

#[cfg(test)]
mod tests {
    use super::{LISTED_ROWS, chunks};

    #[test]
    fn continuations_are_split_where_they_would_list_too_many_rows() {
        let continuations = vec![vec![1; 8]; 5];
        assert_eq!(chunks(&continuations, 100), vec![0..continuations.len()]);
        assert_eq!(chunks(&continuations, LISTED_ROWS / 20), [0..2, 2..4, 4..5]);
        assert_eq!(chunks(&continuations, LISTED_ROWS), [0..1, 1..2, 2..3, 3..4, 4..5]);
    }
}
