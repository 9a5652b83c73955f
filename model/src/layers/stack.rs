//! Blocks one behind the other with a final norm, over packed sequences.

use std::sync::Arc;

use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Lengths, Result, Tensor, Write};

use super::{Block, BlockSaved, Norm, NormSaved};
use crate::{Context, Gradients, Keep, OnReady, Parameters};

/// Where the tokens of a batch stand: which sequence, which position, which rotation.
#[derive(Debug)]
pub struct Sequence {
    /// The packed sequences.
    pub lengths: Lengths,
    /// i32 (n): each token's row of the tables.
    pub positions: Tensor,
    /// Rotations; attention layers name theirs by index.
    pub tables: Vec<Arc<Table>>,
}

impl Sequence {
    /// Sequences whose tokens stand at positions 0, 1, … each.
    ///
    /// # Panics
    /// When a sequence is longer than 2³¹ − 1: [`Lengths`] cannot hold it either.
    ///
    /// # Errors
    /// When the device has no more memory.
    pub fn new(device: Device, lengths: Lengths, tables: Vec<Arc<Table>>) -> Result<Self> {
        let n = lengths.tokens();
        let len = |w: &[i32]| w[1] - w[0];
        let positions = lengths.host().windows(2).flat_map(|w| 0..len(w)).collect();
        Ok(Self { lengths, positions: Tensor::from_i32(positions, &[n]).on(device)?, tables })
    }
}

/// Blocks and the norm behind them.
#[derive(Debug, Clone)]
pub struct Stack {
    /// First to last.
    pub blocks: Vec<Block>,
    /// Behind the last.
    pub norm: Norm,
}

/// What [`Stack::backward`] needs.
#[derive(Debug)]
pub struct StackSaved {
    blocks: Vec<BlockSaved>,
    /// The stream before the final norm.
    last: Tensor,
    norm: NormSaved,
}

impl Stack {
    /// Hidden states (n, d) behind the final norm; x (n, d) is used up.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
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
            let (behind, saved) = block.forward(cx, parameters, x, sequence, keep)?;
            x = behind;
            blocks.extend(saved);
        }
        let (out, norm) = self.norm.forward(cx, parameters, x.view())?;
        Ok((out, keep.any().then_some(StackSaved { blocks, last: x, norm })))
    }

    /// The gradient of the input (n, d) for that of the hidden states, `d_out` (n, d), which is
    /// dropped before the blocks; adds to the gradients of all weights, and says so block by block.
    ///
    /// # Errors
    /// When shapes disagree or memory is short.
    #[expect(clippy::too_many_arguments, reason = "what the formula reads and writes")]
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
        let x = last.view();
        let behind = d_out.view();
        self.norm.backward(
            cx,
            parameters,
            x,
            &norm,
            behind,
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
