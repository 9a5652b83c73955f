//! Stack of transformer blocks with a final norm, over packed sequences.

use std::sync::Arc;

use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Lengths, Result, Tensor, Write};

use super::{Block, BlockSaved, Norm, NormSaved};
use crate::{Context, Gradients, Keep, OnReady, Parameters};

/// Layout of the packed tokens of a batch: sequence lengths, positions and rotary tables.
#[derive(Debug)]
pub struct Sequence {
    /// Position of each token in its sequence, (n).
    pub host_positions: Vec<i32>,
    /// Lengths of the packed sequences.
    pub lengths: Lengths,
    /// The same on the device, i32 (n): row of the rotary tables for each token.
    pub positions: Tensor,
    /// Rotary tables. Attention layers refer to them by index.
    pub tables: Vec<Arc<Table>>,
}

impl Sequence {
    /// Creates a layout in which the tokens of each sequence have positions 0, 1, …
    ///
    /// # Panics
    /// If a sequence is longer than 2³¹ − 1 tokens, which [`Lengths`] cannot hold either.
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn new(device: Device, lengths: Lengths, tables: Vec<Arc<Table>>) -> Result<Self> {
        let starts = vec![0; lengths.rows()];
        Self::continued(device, lengths, &starts, tables)
    }

    /// Creates a layout in which the tokens of sequence i have positions `starts[i]`,
    /// `starts[i]` + 1, …
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn continued(
        device: Device,
        lengths: Lengths,
        starts: &[i32],
        tables: Vec<Arc<Table>>,
    ) -> Result<Self> {
        let ends = lengths.host().windows(2);
        let host_positions: Vec<i32> =
            ends.zip(starts).flat_map(|(w, start)| *start..start + w[1] - w[0]).collect();
        let n = lengths.tokens();
        let positions = Tensor::from_i32(host_positions.clone(), &[n]).on(device)?;
        Ok(Self { host_positions, lengths, positions, tables })
    }

    /// Number of positions that tables of this layout need: the largest position plus one.
    #[must_use]
    pub fn positions_end(&self) -> usize {
        self.host_positions.iter().max().map_or(0, |last| last.unsigned_abs() as usize + 1)
    }
}

/// Transformer blocks and the final norm.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Blocks in the order of application.
    pub blocks: Vec<Block>,
    /// Norm after the last block.
    pub norm: Norm,
}

/// State that [`Stack::backward`] consumes.
#[derive(Debug)]
pub struct StackSaved {
    blocks: Vec<BlockSaved>,
    /// Residual stream before the final norm, (n, d).
    last: Tensor,
    norm: NormSaved,
}

impl Stack {
    /// Hidden states (n, d) after the final norm. Consumes the input x (n, d).
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        mut x: Tensor,
        sequence: &Sequence,
        keep: Keep,
    ) -> Result<(Tensor, Option<StackSaved>)> {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (after, saved) = block.forward(cx, parameters, x, sequence, keep)?;
            x = after;
            blocks.extend(saved);
        }
        let (out, norm) = self.norm.forward(cx, parameters, x.view())?;
        Ok((out, keep.any().then_some(StackSaved { blocks, last: x, norm })))
    }

    /// Hidden states (n, d) before the final norm. Keeps no state for a backward pass.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward_blocks(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        mut x: Tensor,
        sequence: &Sequence,
    ) -> Result<Tensor> {
        for block in &self.blocks {
            x = block.forward(cx, parameters, x, sequence, Keep::Nothing)?.0;
        }
        Ok(x)
    }

    /// Gradient of the input (n, d), given `d_out` (n, d), the gradient of the hidden states, which
    /// is dropped before the blocks run backward. Adds to the gradients of all weights, and calls
    /// `on_ready` after each block.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    #[expect(clippy::too_many_arguments, reason = "one argument per operand of the formula")]
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: StackSaved,
        d_out: Tensor,
        sequence: &Sequence,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<Tensor> {
        let StackSaved { blocks, last, norm } = saved;
        let mut d = cx.take(d_out.shape())?;
        let (x, d_hidden) = (last.view(), d_out.view());
        self.norm.backward(
            cx,
            parameters,
            x,
            &norm,
            d_hidden,
            Write::Set,
            d.view_mut(),
            gradients,
        )?;
        drop((last, d_out));
        for (block, saved) in self.blocks.iter().zip(blocks).rev() {
            d = block.backward(cx, parameters, saved, d, sequence, gradients)?;
            on_ready(gradients, block.gradients_end);
        }
        Ok(d)
    }
}
