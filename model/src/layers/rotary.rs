//! Tables of rotary cosines and sines that grow with the longest sequence seen.

use std::sync::{Arc, Mutex, PoisonError};

use vljepa_kernels::rope::Table;
use vljepa_kernels::{Device, Result};

/// Positions of the first table: the sequences of short texts.
const FIRST_POSITIONS: usize = 512;

/// One kind of rotation, pairing elements i and i + head_dim/2 (Llama, Gemma).
#[derive(Debug)]
pub struct Rotary {
    device: Device,
    head_dim: usize,
    inv_freq: Vec<f32>,
    table: Mutex<Option<Arc<Table>>>,
}

impl Rotary {
    /// Rotations by p·`inv_freq[i]` at position p.
    #[must_use]
    pub fn new(device: Device, head_dim: usize, inv_freq: Vec<f32>) -> Self {
        Self { device, head_dim, inv_freq, table: Mutex::new(None) }
    }

    /// The inverse frequencies, (head_dim/2).
    #[must_use]
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// A table of at least `positions` positions. Doubled when outgrown; its values do not depend on its length.
    ///
    /// # Errors
    /// When the device has no more memory.
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
