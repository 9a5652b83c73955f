//! Tables of rotary cosines and sines that grow with the longest sequence.

use std::sync::{Arc, Mutex, PoisonError};

use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Result};

/// Fewest positions of a table, so that short texts never make it grow.
const FIRST_POSITIONS: usize = 512;

/// Rotary embedding that pairs elements i and i + head_dim/2 (Llama, Gemma).
#[derive(Debug)]
pub struct Rotary {
    device: Device,
    head_dim: usize,
    inv_freq: Vec<f32>,
    table: Mutex<Option<Arc<Table>>>,
}

impl Rotary {
    /// Creates a rotary embedding that turns pair i by the angle p·`inv_freq[i]` at position p.
    #[must_use]
    pub fn new(device: Device, head_dim: usize, inv_freq: Vec<f32>) -> Self {
        Self { device, head_dim, inv_freq, table: Mutex::new(None) }
    }

    /// Inverse frequencies, (head_dim/2).
    #[must_use]
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Returns a table of at least `positions` positions. If the current table is too short, a
    /// longer one replaces it, with the number of positions rounded up to a power of two. The
    /// values do not depend on the length of the table.
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn table(&self, positions: usize) -> Result<Arc<Table>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match &*table {
            Some(table) if table.positions() >= positions => Ok(Arc::clone(table)),
            Some(_) | None => {
                let rows = positions.next_power_of_two().max(FIRST_POSITIONS);
                let grown = Table::rotate_half(self.device, self.head_dim, rows, &self.inv_freq)?;
                Ok(Arc::clone(table.insert(Arc::new(grown))))
            }
        }
    }
}
