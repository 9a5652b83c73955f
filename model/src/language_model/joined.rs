//! Sequences of tokens with vectors between them, such as visual tokens.

use vljepa_kernels::{Device, KernelError, Lengths, Packed, Result, Tensor, View, Write, rows};

use super::LanguageModel;
use crate::{Context, Gradients, ModelError, Parameters};

/// Rows of tokens and vectors in packed sequences: the first tokens of each sequence, its vectors,
/// and its other tokens.
#[derive(Debug)]
pub struct Joined {
    /// Lengths of the sequences.
    pub lengths: Lengths,
    /// Row of each vector, i32 (b·k).
    pub vectors: Tensor,
    /// Row of each token, i32 (tokens).
    pub tokens: Tensor,
}

impl Joined {
    /// Places k vectors behind the first `before` tokens of each of b sequences, whose tokens have
    /// the given lengths.
    ///
    /// # Errors
    /// If a sequence has fewer than `before` tokens, there are 2³¹ rows or more, or the device runs
    /// out of memory.
    pub fn new(device: Device, tokens: &Lengths, before: usize, k: usize) -> Result<Self> {
        let (before, k) = (count(before)?, count(k)?);
        let total = count(tokens.rows())?
            .checked_mul(k)
            .and_then(|n| n.checked_add(tokens.host().last().copied().unwrap_or(0)));
        total.ok_or_else(too_many)?;
        let (mut ends, mut end) = (vec![0], 0);
        let (mut vectors, mut of_tokens) = (Vec::new(), Vec::new());
        for window in tokens.host().windows(2) {
            let (start, len) = (end, window[1] - window[0]);
            if len < before {
                return Err(KernelError::Value {
                    operation: "language_model::joined",
                    what: "tokens",
                    found: format!("a sequence of {len}"),
                    needed: format!("{before} come before the vectors"),
                });
            }
            end = start + len + k;
            of_tokens.extend(start..start + before);
            vectors.extend(start + before..start + before + k);
            of_tokens.extend(start + before + k..end);
            ends.push(end);
        }
        let index = |values: Vec<i32>| {
            let len = values.len();
            Tensor::from_i32(values, &[len]).on(device)
        };
        let lengths = Lengths::new(device, ends)?;
        Ok(Self { lengths, vectors: index(vectors)?, tokens: index(of_tokens)? })
    }
}

impl LanguageModel {
    /// Input (n, d) of the first layer for joined sequences: embeddings of `tokens`, and `vectors`
    /// (b·k, d).
    ///
    /// # Errors
    /// If shapes disagree, an id is not in the vocabulary, or memory runs out.
    pub fn joined_input(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        joined: &Joined,
        tokens: &Packed,
        vectors: View<'_>,
    ) -> Result<Tensor> {
        let mut x = cx.take(&[joined.lengths.tokens(), self.table().shape()[1]])?;
        rows::scatter(cx.stream, vectors, joined.vectors.view(), x.view_mut())?;
        if !tokens.ids().is_empty() {
            let embedded = self.text.embed(cx, parameters, tokens.ids())?;
            rows::scatter(cx.stream, embedded.view(), joined.tokens.view(), x.view_mut())?;
        }
        Ok(x)
    }

    /// Gradient (b·k, d) of the vectors, given `d` (n, d), the gradient of the input of the first
    /// layer. Adds to the gradient of the token table if it is trained; `ids` are those of the
    /// tokens.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn joined_backward(
        &self,
        cx: Context<'_>,
        joined: &Joined,
        ids: &[i32],
        d: View<'_>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let part = |index: &Tensor| {
            let mut part = cx.take(&[index.shape()[0], d.shape()[1]])?;
            rows::gather(cx.stream, d, index.view(), Write::Set, part.view_mut())?;
            Ok::<_, KernelError>(part)
        };
        if self.table().trainable() && !ids.is_empty() {
            let d_tokens = part(&joined.tokens)?;
            self.text.embed_backward(cx, ids, d_tokens.view(), gradients)?;
        }
        part(&joined.vectors)
    }
}

/// Tokens that the model reads, those of each context and then all but the last of its answer, and
/// the target of each row of the joined sequences: the token that follows, if it belongs to the
/// answer, and −1 otherwise. `vectors` is the number of vectors in each sequence, all before its
/// answer.
///
/// # Errors
/// If an answer is empty, or a sequence has nothing before its answer.
pub fn read_and_targets(
    device: Device,
    contexts: &[Vec<i32>],
    answers: &[&[i32]],
    vectors: usize,
) -> Result<(Packed, Vec<i32>), ModelError> {
    let wrong = |what, row: usize, needed: &str| {
        ModelError::Kernel(KernelError::Value {
            operation: "language_model::read_and_targets",
            what,
            found: format!("empty at {row}"),
            needed: needed.to_owned(),
        })
    };
    let (mut ids, mut ends, mut targets) = (Vec::new(), vec![0], Vec::new());
    for (row, (context, answer)) in contexts.iter().zip(answers).enumerate() {
        let Some((_, read)) = answer.split_last() else {
            return Err(wrong("answers", row, "every text needs a token, such as its end"));
        };
        let Some(unpredicted) = (context.len() + vectors).checked_sub(1) else {
            return Err(wrong(
                "contexts",
                row,
                "the first token is predicted from what precedes it",
            ));
        };
        ids.extend(context);
        ids.extend(read);
        ends.push(count(ids.len())?);
        targets.resize(targets.len() + unpredicted, -1);
        targets.extend_from_slice(answer);
    }
    Ok((Packed::new(device, ids, ends)?, targets))
}

fn count(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_many())
}

fn too_many() -> KernelError {
    KernelError::Value {
        operation: "language_model::joined",
        what: "tokens",
        found: "2^31 or more".to_owned(),
        needed: "fewer than 2^31".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use vljepa_kernels::{Device, Lengths, Tensor};

    use super::{Joined, read_and_targets};

    #[test]
    fn vectors_lie_behind_the_first_tokens_and_answers_are_predicted_from_what_precedes_them() {
        let contexts = [vec![1, 2], vec![1, 2, 3]];
        let answers: [&[i32]; 2] = [&[7, 8], &[9]];
        let (read, targets) = read_and_targets(Device::Host, &contexts, &answers, 2).unwrap();
        assert_eq!(read.host_ids()[..], [1, 2, 7, 1, 2, 3]);
        assert_eq!(targets, [-1, -1, -1, 7, 8, -1, -1, -1, -1, 9]);
        let joined = Joined::new(Device::Host, &read.lengths, 1, 2).unwrap();
        // Rows: 1 v v 2 7 | 1 v v 2 3.
        let rows = |index: &Tensor| index.view().host_i32("test", "index").unwrap().to_vec();
        assert_eq!(rows(&joined.vectors), [1, 2, 6, 7]);
        assert_eq!(rows(&joined.tokens), [0, 3, 4, 5, 8, 9]);
        assert_eq!(joined.lengths.host(), [0, 5, 10]);
        let short = Lengths::new(Device::Host, vec![0, 1]).unwrap();
        assert!(Joined::new(Device::Host, &short, 2, 1).is_err());
        assert!(read_and_targets(Device::Host, &[vec![]], &[&[7]], 0).is_err());
        assert!(read_and_targets(Device::Host, &[vec![1]], &[&[]], 0).is_err());
    }
}
