//! Keys and values of tokens that a decoder has read, and the new tokens that attend to them.

use vljepa_kernels::{Packed, Result, Tensor, copy, rows};

use super::{Attention, Sequence};
use crate::Context;

/// Keys and values of one layer, each in a row of its own.
#[derive(Debug)]
pub struct Pool {
    /// Keys, normalised and rotated, (p, kv, hd).
    pub(super) keys: Tensor,
    /// Values, (p, kv, hd).
    pub(super) values: Tensor,
}

/// New tokens of sequences whose earlier tokens lie in pools.
#[derive(Debug)]
pub struct Extension {
    /// Lengths and positions of the new tokens.
    pub sequence: Sequence,
    /// Row of the pools for each new token, i32 (n).
    pub rows: Tensor,
    /// Rows of the pools that each new token attends to, its own among them. `None` if no sequence
    /// has earlier tokens: then new tokens attend to each other as the layer's mask says.
    pub seen: Option<Packed>,
}

impl Pool {
    /// Allocates `rows` rows for the keys and values of `attention`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(cx: Context<'_>, attention: &Attention, rows: usize) -> Result<Self> {
        let shape = [rows, attention.heads.key_value, attention.heads.dim];
        Ok(Self { keys: cx.take(&shape)?, values: cx.take(&shape)? })
    }

    /// Copies all rows to a larger pool.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn grow(&mut self, cx: Context<'_>, attention: &Attention, rows: usize) -> Result<()> {
        let held = self.keys.shape()[0];
        let mut grown = Self::new(cx, attention, rows)?;
        for (from, to) in [(&self.keys, &mut grown.keys), (&self.values, &mut grown.values)] {
            copy::copy(cx.stream, from.view(), to.view_mut().rows(0, held))?;
        }
        *self = grown;
        Ok(())
    }

    /// Writes keys and values (n, kv, hd) of new tokens to their rows.
    pub(super) fn store(
        &mut self,
        cx: Context<'_>,
        extension: &Extension,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<()> {
        let width = k.shape()[1] * k.shape()[2];
        let new = [k.shape()[0], width];
        let all = [self.keys.shape()[0], width];
        for (from, to) in [(k, &mut self.keys), (v, &mut self.values)] {
            let (from, to) = (from.view().reshaped(&new), to.view_mut().part(0, &all));
            rows::scatter(cx.stream, from, extension.rows.view(), to)?;
        }
        Ok(())
    }
}
