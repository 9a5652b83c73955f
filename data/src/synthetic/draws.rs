//! Random integers of one sample. Each sample has its own random stream, so it depends neither on
//! other samples nor on the order or the threads.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// ChaCha8 stream keyed by (seed, split, index). The integers are made from its words here instead
/// of by a sampling library, whose method may change, because the pixels must not change.
pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    pub(super) fn new(seed: u64, split: &str, index: u64) -> Self {
        let mut key = blake3::Hasher::new();
        key.update(b"vljepa synthetic set");
        key.update(&seed.to_le_bytes());
        key.update(&index.to_le_bytes());
        key.update(split.as_bytes());
        Self(ChaCha8Rng::from_seed(*key.finalize().as_bytes()))
    }

    /// Uniform integer in 0..n (n ≥ 1), up to a bias below n / 2⁶⁴.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the high word of a product with n is below n"
    )]
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform integer in low..=high.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the high word of a product with the width is below the width"
    )]
    pub(super) fn within(&mut self, [low, high]: [i32; 2]) -> i32 {
        let width = u64::from(high.abs_diff(low)) + 1;
        low.wrapping_add_unsigned(
            ((u128::from(self.0.next_u64()) * u128::from(width)) >> 64) as u32,
        )
    }

    /// Random item, or `None` if there are no items.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        items.get(self.below(items.len().max(1))).copied()
    }

    /// Puts the items into random order (Fisher–Yates).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Adds noise with mean 0 and standard deviation 2 to each value: the number of heads in 16
    /// coin flips, minus 8.
    pub(super) fn add_noise(&mut self, pixels: &mut [u8]) {
        for pair in pixels.chunks_mut(2) {
            let word = self.0.next_u32();
            for (pixel, bits) in pair.iter_mut().zip([word & 0xffff, word >> 16]) {
                let ones = u8::try_from(bits.count_ones()).unwrap_or(8);
                *pixel = pixel.saturating_add(ones).saturating_sub(8);
            }
        }
    }
}
