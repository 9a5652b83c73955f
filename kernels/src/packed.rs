//! Packed rows: sequences of different lengths, one after the other in one tensor, without padding.

use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

#[cfg(feature = "cuda")]
use crate::device::{HostSlice, cuda::Call};
use crate::{DType, Device, Result, Tensor, View};

/// Token ids of packed sequences. Row `i` owns tokens `cu_seqlens[i]..cu_seqlens[i + 1]`; a row may
/// be empty.
#[derive(Debug)]
pub struct Packed {
    /// Token ids of all sequences, `i32 (tokens)`.
    pub tokens: Tensor,
    host_ids: Arc<[i32]>,
    /// Boundaries between the sequences.
    pub lengths: Lengths,
}

/// Cumulative lengths of packed sequences, on the device and (for planning) on the host.
#[derive(Debug)]
pub struct Lengths {
    device: Tensor,
    host: Vec<i32>,
    max_len: usize,
    /// Tile tables of attention by the rows of a tile, each uploaded to the device on first use.
    #[cfg(feature = "cuda")]
    places: Mutex<BTreeMap<usize, Arc<Tensor>>>,
}

impl Lengths {
    /// Uploads cumulative lengths `[0, …, tokens]`, which have b + 1 entries.
    ///
    /// # Panics
    /// If the lengths do not start at zero or if they decrease.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(device: Device, cu_seqlens: Vec<i32>) -> Result<Self> {
        assert!(cu_seqlens.first() == Some(&0), "cumulative lengths start at zero");
        assert!(cu_seqlens.is_sorted(), "cumulative lengths never decrease");
        let max_len =
            cu_seqlens.windows(2).map(|w| w[1].abs_diff(w[0])).max().unwrap_or(0) as usize;
        let rows = cu_seqlens.len();
        let there = Tensor::from_i32(cu_seqlens.clone(), &[rows]).on(device)?;
        Ok(Self {
            device: there,
            host: cu_seqlens,
            max_len,
            #[cfg(feature = "cuda")]
            places: Mutex::default(),
        })
    }

    /// Lengths of `rows` sequences of `len` tokens each.
    ///
    /// # Panics
    /// If the number of tokens exceeds 2³¹ − 1.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn uniform(device: Device, rows: usize, len: usize) -> Result<Self> {
        let end = |i: usize| i32::try_from(i * len).expect("fewer than 2^31 tokens");
        Self::new(device, (0..=rows).map(end).collect())
    }

    /// The tile table ([`places`](crate::attention::launch::places)) for tiles of `rows` rows,
    /// `i32` on the device.
    #[cfg(feature = "cuda")]
    pub(crate) fn places(&self, call: Call, rows: usize) -> Result<Arc<Tensor>> {
        let mut known = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = known.get(&rows) {
            return Ok(Arc::clone(places));
        }
        let places = crate::attention::launch::places(self, rows);
        let places = call.uploaded(HostSlice::I32(bytemuck::cast_slice(&places)))?;
        Ok(Arc::clone(known.entry(rows).or_insert(Arc::new(places))))
    }

    /// Number of sequences (b).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.host.len() - 1
    }

    /// Number of tokens in all sequences together.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.host.last().map_or(0, |&n| n.unsigned_abs() as usize)
    }

    /// Number of tokens of the longest sequence.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Cumulative lengths on the device, `i32 (rows + 1)`.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.device.view()
    }

    /// Cumulative lengths on the host, `rows + 1` numbers.
    #[must_use]
    pub fn host(&self) -> &[i32] {
        &self.host
    }

    /// Token range of sequence `row`.
    #[must_use]
    pub fn range(&self, row: usize) -> std::ops::Range<usize> {
        self.host[row].unsigned_abs() as usize..self.host[row + 1].unsigned_abs() as usize
    }
}

impl Packed {
    /// Uploads token ids and the cumulative lengths of the sequences they form.
    ///
    /// # Panics
    /// If the last cumulative length differs from the number of ids.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(device: Device, ids: Vec<i32>, cu_seqlens: Vec<i32>) -> Result<Self> {
        let lengths = Lengths::new(device, cu_seqlens)?;
        assert_eq!(lengths.tokens(), ids.len(), "lengths end where the ids end");
        let (count, host_ids) = (ids.len(), Arc::from(&ids[..]));
        Ok(Self { tokens: Tensor::from_i32(ids, &[count]).on(device)?, host_ids, lengths })
    }

    /// Token ids on the device, `i32 (tokens)`.
    #[must_use]
    pub fn ids(&self) -> View<'_> {
        debug_assert_eq!(self.tokens.dtype(), DType::I32);
        self.tokens.view()
    }

    /// Token ids on the host.
    #[must_use]
    pub fn host_ids(&self) -> &Arc<[i32]> {
        &self.host_ids
    }
}
