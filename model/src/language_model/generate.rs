//! Writes the texts that follow prompts.

use rayon::prelude::*;
use vljepa_kernels::{KernelError, Lengths, Packed, Result, Tensor, View, Write, rows};
use vljepa_recipes::schema;

use super::search::{Pick, Prompt, chosen};
use super::{Cache, LanguageModel};
use crate::{Context, Parameters};

/// How a text is chosen among all texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Search {
    /// The most probable token at each position.
    Greedy,
    /// Beam search as transformers 4.57.6 defines it, with its default `early_stopping: false`: the
    /// `width` most probable texts are continued, and texts that end compete by the sum of their
    /// log-probabilities over length^`length_penalty`. The length counts the tokens of the text and
    /// the one that ends it. The search ends when no running text is better than the worst of
    /// `width` ended ones.
    Beam {
        /// Number of texts that are continued, at least 1.
        width: usize,
        /// Exponent of the length.
        length_penalty: f32,
    },
    /// A random token by its probability. The draws of a text depend on `seed` and on the number of
    /// its prompt only.
    Sample {
        /// Divisor of the logits, above 0.
        temperature: f32,
        /// Seed of the draws.
        seed: u64,
    },
}

impl Search {
    /// The search of a recipe. `seed` is that of random tokens.
    #[must_use]
    pub fn new(recipe: schema::Search, seed: u64) -> Self {
        match recipe {
            schema::Search::Greedy => Self::Greedy,
            schema::Search::Beam { width, length_penalty } => Self::Beam { width, length_penalty },
            schema::Search::Sample { temperature } => Self::Sample { temperature, seed },
        }
    }
}

/// Rules for texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How a text is chosen.
    pub search: Search,
    /// Most tokens of a text, with the token that ends it.
    pub max_tokens: usize,
    /// Tokens that end a text. They are no part of it.
    pub stop: Vec<i32>,
    /// Tokens that no text may contain.
    pub forbidden: Vec<i32>,
}

/// Prompts as vectors, which may stand for tokens or for anything else.
#[derive(Debug)]
pub struct Prompts<'a> {
    /// Input of the first layer, (n, d).
    pub x: Tensor,
    /// Lengths of the prompts, of which none is empty.
    pub lengths: Lengths,
    /// Memory of each prompt, (prompts, d), for models whose layers attend to one.
    pub memory: Option<View<'a>>,
}

impl LanguageModel {
    /// Writes the text that follows each prompt: its tokens, without the one that ends it.
    ///
    /// A text does not depend on the other prompts, except that products of other sizes round
    /// differently.
    ///
    /// # Errors
    /// If a prompt is empty, shapes disagree, or memory runs out.
    pub fn generate(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        prompts: Prompts<'_>,
        options: &Options,
    ) -> Result<Vec<Vec<i32>>> {
        let Prompts { x, lengths, memory } = prompts;
        let count = lengths.rows();
        if let Some(row) = (0..count).find(|&row| lengths.range(row).is_empty()) {
            return Err(KernelError::Value {
                operation: "language_model::generate",
                what: "prompts",
                found: format!("empty at {row}"),
                needed: "every prompt needs a token".to_owned(),
            });
        }
        let mut searches: Vec<_> = (0..count).map(|i| Prompt::new(options.search, i)).collect();
        if options.max_tokens > 0 && count > 0 {
            let mut cache = self.cache(cx, parameters, count, memory)?;
            let last = last_tokens(&lengths);
            let hidden = self.extend(cx, parameters, &mut cache, x, lengths)?;
            let hidden = gathered(cx, &hidden, last)?;
            self.search(cx, parameters, &mut cache, hidden, &mut searches, options)?;
        }
        Ok(searches.into_iter().map(Prompt::text).collect())
    }

    /// Continues the sequences of the cache, one per search, until all texts are complete. `hidden`
    /// (prompts, d) are the hidden states of their last tokens.
    fn search(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        cache: &mut Cache,
        mut hidden: Tensor,
        searches: &mut [Prompt],
        options: &Options,
    ) -> Result<()> {
        let device = cx.arena.device();
        // Searches that are not complete, each with the number of its sequences in the cache.
        let mut live: Vec<(usize, usize)> = (0..searches.len()).map(|i| (i, 1)).collect();
        loop {
            let mut picks = Vec::with_capacity(cache.sequences());
            for &(i, sequences) in &live {
                picks.resize(picks.len() + sequences, searches[i].pick(options));
            }
            let all = self.choose(cx, parameters, &hidden, &picks, options)?;
            let (mut start, mut still_live) = (0, Vec::with_capacity(live.len()));
            let (mut parents, mut tokens) = (Vec::new(), Vec::new());
            for (i, sequences) in live {
                let own = &all[start..start + sequences];
                let continuations = searches[i].advance(own, options);
                parents.extend(continuations.iter().map(|next| start + next.parent));
                tokens.extend(continuations.iter().map(|next| next.token));
                if !continuations.is_empty() {
                    still_live.push((i, continuations.len()));
                }
                start += sequences;
            }
            live = still_live;
            if live.is_empty() {
                return Ok(());
            }
            cache.select(&parents);
            let ends = Lengths::uniform(device, tokens.len(), 1)?;
            let tokens = Packed::new(device, tokens, ends.host().to_vec())?;
            let x = self.next_input(cx, parameters, cache, &tokens)?;
            hidden = self.extend(cx, parameters, cache, x, ends)?;
        }
    }

    /// Tokens that each pick chooses after the sequence whose last hidden state is the same row of
    /// `hidden` (sequences, d), with their log-probabilities.
    fn choose(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        hidden: &Tensor,
        picks: &[Pick],
        options: &Options,
    ) -> Result<Vec<Vec<(i32, f32)>>> {
        let (rows, v) = (self.rows_of_logits(cx), self.table().shape()[0]);
        let mut all = Vec::with_capacity(picks.len());
        for (chunk, picks) in picks.chunks(rows).enumerate() {
            let start = chunk * rows;
            let hidden = hidden.view().rows(start, start + picks.len());
            let logits = self.logits(cx, parameters, hidden)?;
            let logits = logits.to_f32()?;
            let each = logits.par_chunks_exact(v).zip(picks);
            all.par_extend(each.map(|(logits, pick)| chosen(*pick, logits, &options.forbidden)));
        }
        Ok(all)
    }
}

/// Index of the last token of each sequence.
pub(super) fn last_tokens(lengths: &Lengths) -> Vec<i32> {
    lengths.host()[1..].iter().map(|end| end - 1).collect()
}

/// Rows of x (n, d) that `index` names.
pub(super) fn gathered(cx: Context<'_>, x: &Tensor, index: Vec<i32>) -> Result<Tensor> {
    let count = index.len();
    let index = Tensor::from_i32(index, &[count]).on(cx.arena.device())?;
    let mut out = cx.take(&[count, x.shape()[1]])?;
    rows::gather(cx.stream, x.view(), index.view(), Write::Set, out.view_mut())?;
    Ok(out)
}
