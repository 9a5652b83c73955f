//! Search for the text of one prompt: which tokens continue which of its sequences, and when it is
//! complete. All searches see one prompt only, so a text does not depend on the other prompts of a
//! batch.

use rand_distr::{Distribution, StandardUniform};
use vljepa_kernels::math::exp;

use super::{Options, Search};
use crate::parameters::{RandomStream, random_stream};

/// Continuation of one of a prompt's sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Continuation {
    /// Index of the sequence among those of the prompt.
    pub parent: usize,
    /// Token that follows.
    pub token: i32,
}

/// Tokens that a search may choose after one sequence, from its logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pick {
    /// The most probable tokens, at most so many.
    Best(usize),
    /// A random token.
    Random {
        /// Number in [0, 1) that chooses the token.
        unit: f64,
        /// Divisor of the logits.
        temperature: f32,
    },
}

/// A token and its log-probability.
type Scored = (i32, f32);

/// Tokens that `pick` chooses for the logits (v) of a sequence, the most probable first. Forbidden
/// tokens are never chosen.
pub(super) fn chosen(pick: Pick, logits: &[f32], forbidden: &[i32]) -> Vec<Scored> {
    let tokens = (0..).zip(logits).filter(|(token, _)| !forbidden.contains(token));
    match pick {
        Pick::Best(count) => {
            let max = largest(logits.iter());
            let sum: f64 = logits.iter().map(|z| f64::from(exp(z - max))).sum();
            let lse = max + nearest(sum.ln());
            best(count, tokens.map(|(token, z)| (token, z - lse)))
        }
        Pick::Random { unit, temperature } => {
            let max = largest(tokens.clone().map(|(_, z)| z));
            let weight = |z: f32| f64::from((z - max) / temperature).exp();
            let total: f64 = tokens.clone().map(|(_, z)| weight(*z)).sum();
            let mut left = unit * total;
            let mut last = None;
            for (token, z) in tokens {
                last = Some((token, *z));
                left -= weight(*z);
                if left < 0.0 {
                    break;
                }
            }
            last.into_iter().collect()
        }
    }
}

fn largest<'a>(values: impl Iterator<Item = &'a f32>) -> f32 {
    values.fold(f32::NEG_INFINITY, |max, &z| max.max(z))
}

/// The `count` tokens with the highest scores, the highest first. Of equal scores, the first token
/// comes first.
fn best(count: usize, tokens: impl Iterator<Item = Scored>) -> Vec<Scored> {
    let mut best: Vec<Scored> = Vec::with_capacity(count + 1);
    for (token, score) in tokens {
        if best.len() == count && best.last().is_some_and(|(_, least)| score <= *least) {
            continue;
        }
        let at = best.partition_point(|(_, other)| *other >= score);
        best.insert(at, (token, score));
        best.truncate(count);
    }
    best
}

/// State of the search for the text of one prompt.
#[derive(Debug)]
pub(super) struct Prompt {
    state: State,
    /// Number of tokens that were generated for each running sequence.
    generated: usize,
}

#[derive(Debug)]
enum State {
    Greedy { text: Vec<i32> },
    Sample { text: Vec<i32>, stream: Box<RandomStream>, temperature: f32 },
    Beams(Beams),
}

/// Texts of a beam search.
#[derive(Debug)]
struct Beams {
    width: usize,
    length_penalty: f32,
    /// Texts that are continued, the best first.
    running: Vec<Beam>,
    /// Texts that have ended, the best first, at most `width`.
    finished: Vec<Beam>,
}

/// A text, and the sum of the log-probabilities of its tokens; of a finished text, the sum divided
/// by its length to the power of the length penalty.
#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<i32>,
    score: f32,
}

impl Prompt {
    /// Starts the search for the text of prompt number `index`.
    pub(super) fn new(search: Search, index: usize) -> Self {
        let text = Vec::new();
        let state = match search {
            Search::Greedy => State::Greedy { text },
            Search::Sample { temperature, seed } => {
                let stream = Box::new(random_stream(seed, &format!("text {index}")));
                State::Sample { text, stream, temperature }
            }
            Search::Beam { width, length_penalty } => {
                let running = vec![Beam { tokens: Vec::new(), score: 0.0 }];
                State::Beams(Beams { width, length_penalty, running, finished: Vec::new() })
            }
        };
        Self { state, generated: 0 }
    }

    /// Tokens that the search needs after each of its sequences.
    pub(super) fn pick(&mut self, options: &Options) -> Pick {
        match &mut self.state {
            State::Greedy { .. } => Pick::Best(1),
            State::Sample { stream, temperature, .. } => {
                Pick::Random { unit: StandardUniform.sample(stream), temperature: *temperature }
            }
            State::Beams(beams) => Pick::Best(candidates(beams.width, options)),
        }
    }

    /// Takes the tokens that were chosen for each of the prompt's sequences. Returns the sequences
    /// that continue, or nothing if the text is complete.
    pub(super) fn advance(
        &mut self,
        chosen: &[Vec<Scored>],
        options: &Options,
    ) -> Vec<Continuation> {
        self.generated += 1;
        let full = self.generated >= options.max_tokens;
        match &mut self.state {
            State::Greedy { text } | State::Sample { text, .. } => {
                let first = chosen.first().and_then(|of| of.first());
                let token = first.map(|(token, _)| *token);
                let Some(token) = token.filter(|token| !options.stop.contains(token)) else {
                    return Vec::new();
                };
                text.push(token);
                if full { Vec::new() } else { vec![Continuation { parent: 0, token }] }
            }
            State::Beams(beams) => beams.advance(chosen, options, real(self.generated), full),
        }
    }

    /// The text, without the token that ends it.
    pub(super) fn text(self) -> Vec<i32> {
        match self.state {
            State::Greedy { text } | State::Sample { text, .. } => text,
            State::Beams(Beams { running, finished, .. }) => {
                let best = finished.into_iter().chain(running).next();
                best.map(|beam| beam.tokens).unwrap_or_default()
            }
        }
    }
}

impl Beams {
    /// Like [`Prompt::advance`], for texts that now have `generated` tokens and end if they are
    /// `full`.
    fn advance(
        &mut self,
        chosen: &[Vec<Scored>],
        options: &Options,
        generated: f32,
        full: bool,
    ) -> Vec<Continuation> {
        let Self { width, running, finished, .. } = self;
        let length = generated.powf(self.length_penalty);
        let ranked = ranked(running, chosen, candidates(*width, options));
        let (mut next, mut continuations) = (Vec::new(), Vec::new());
        for (rank, (beam, continuation)) in ranked.into_iter().enumerate() {
            let ends = options.stop.contains(&continuation.token);
            if ends || full {
                // Texts below the first `width` are candidates only to continue.
                if rank < *width {
                    let Beam { mut tokens, score } = beam;
                    tokens.truncate(tokens.len() - usize::from(ends));
                    finished.push(Beam { tokens, score: score / length });
                }
            } else if next.len() < *width {
                next.push(beam);
                continuations.push(continuation);
            }
        }
        // The sort is stable: of equal texts, the earlier one stays.
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(*width);
        *running = next;
        let hopeless = |(best, worst): (&Beam, &Beam)| best.score / length <= worst.score;
        let complete =
            finished.len() == *width && running.first().zip(finished.last()).is_none_or(hopeless);
        if full || complete { Vec::new() } else { continuations }
    }
}

/// Continuations that a beam search compares: enough that `width` of them do not end the text.
fn candidates(width: usize, options: &Options) -> usize {
    width * (1 + options.stop.len()).max(2)
}

/// The `count` best continuations of the running beams, the best first.
fn ranked(running: &[Beam], chosen: &[Vec<Scored>], count: usize) -> Vec<(Beam, Continuation)> {
    let mut all: Vec<(f32, Continuation)> = Vec::new();
    for (parent, (beam, chosen)) in running.iter().zip(chosen).enumerate() {
        let of = |&(token, score)| (beam.score + score, Continuation { parent, token });
        all.extend(chosen.iter().map(of));
    }
    all.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    all.truncate(count);
    all.into_iter()
        .map(|(score, continuation)| {
            let mut tokens = running[continuation.parent].tokens.clone();
            tokens.push(continuation.token);
            (Beam { tokens, score }, continuation)
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn nearest(x: f64) -> f32 {
    x as f32
}

#[expect(clippy::cast_precision_loss, reason = "texts have fewer than 2^24 tokens")]
fn real(n: usize) -> f32 {
    n as f32
}
