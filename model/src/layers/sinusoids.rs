//! Table of fixed positions that grows with the longest sequence.

use std::sync::{Arc, Mutex, PoisonError};

use vljepa_kernels::{Device, Result, Stream, Tensor, copy};

/// Fewest positions of a table, so that short texts never make it grow.
const FEWEST_POSITIONS: usize = 512;

/// Position of the first token. fairseq counts from the row after that of its padding token, 1.
const FIRST_POSITION: usize = 2;

/// Largest wavelength of the sinusoids, over 2π.
const BASE: f64 = 10_000.0;

/// Fixed positions of SONAR: for the frequencies ω_i = 10000^(−i/(d/2 − 1)), the position p of a
/// token is the row [sin(p·ω_0), …, sin(p·ω_(d/2 − 1)), cos(p·ω_0), …]. The first token has p = 2.
///
/// Source: `SinusoidalPositionalEmbedding` of fairseq, and `M2M100SinusoidalPositionalEmbedding` of
/// transformers. They compute the angles in f32, which at position 512 differ from ours by 3e-5.
#[derive(Debug)]
pub struct Sinusoids {
    device: Device,
    width: usize,
    table: Mutex<Option<Arc<Tensor>>>,
}

impl Sinusoids {
    /// Positions of tokens of `width` elements, an even number of at least 4.
    #[must_use]
    pub fn new(device: Device, width: usize) -> Self {
        Self { device, width, table: Mutex::new(None) }
    }

    /// Returns a table (p, d) of the positions of the first p tokens of a text, p ≥ `tokens`, in
    /// the element type of activations. If the current table is too short, a longer one replaces
    /// it, with the number of rows rounded up to a power of two.
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn table(&self, stream: &Stream, tokens: usize) -> Result<Arc<Tensor>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match &*table {
            Some(table) if table.shape()[0] >= tokens => Ok(Arc::clone(table)),
            Some(_) | None => {
                let shape = [tokens.next_power_of_two().max(FEWEST_POSITIONS), self.width];
                let mut grown = Tensor::zeros(self.device, self.device.activations(), &shape)?;
                let values = Tensor::from_f32(rows(shape), &shape);
                copy::cast(stream, values.view(), grown.view_mut())?;
                Ok(Arc::clone(table.insert(Arc::new(grown))))
            }
        }
    }
}

/// Values of a table, row by row.
#[expect(clippy::cast_precision_loss, reason = "positions and widths are below 2^24")]
#[expect(clippy::cast_possible_truncation, reason = "the result is rounded to f32")]
fn rows([tokens, width]: [usize; 2]) -> Vec<f32> {
    let half = width / 2;
    let frequency = |i: usize| BASE.powf(-(i as f64) / (half as f64 - 1.0));
    let row = |token: usize| {
        let angle = move |i| (token + FIRST_POSITION) as f64 * frequency(i);
        (0..half)
            .map(move |i| angle(i).sin() as f32)
            .chain((0..half).map(move |i| angle(i).cos() as f32))
    };
    (0..tokens).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use vljepa_kernels::testing::{assert_close, assert_differs};
    use vljepa_kernels::{Device, Stream};

    use super::Sinusoids;

    #[test]
    fn rows_are_those_of_transformers_from_position_two() {
        // `M2M100SinusoidalPositionalEmbedding.get_embedding(5, 8)`, rows 2 and 3, to six decimals.
        #[rustfmt::skip]
        let want = [
            0.909297, 0.092699, 0.004309, 0.000200, -0.416147, 0.995694, 0.999991, 1.000000,
            0.141120, 0.138798, 0.006463, 0.000300, -0.989992, 0.990321, 0.999979, 1.000000,
        ];
        let sinusoids = Sinusoids::new(Device::Host, 8);
        let table = sinusoids.table(&Stream::Host, 2).unwrap();
        let values = table.to_f32().unwrap();
        assert_close("two rows", &values[..16], &want, 6e-7);
        assert_differs("from position 3", &values[8..24], &want, 6e-7);
        // A longer table begins with the same rows.
        let longer = sinusoids.table(&Stream::Host, 513).unwrap();
        assert_eq!((table.shape(), longer.shape()), (&[512, 8][..], &[1024, 8][..]));
        assert_eq!(values[..], longer.to_f32().unwrap()[..values.len()]);
    }
}
