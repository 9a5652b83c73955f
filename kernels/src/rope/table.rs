//! Tables of cosines and sines, and the inverse frequencies from which they are computed.

use std::f64::consts::TAU;

use crate::{Device, Result, Tensor};

/// Pairs of elements of a head that are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pairing {
    /// Elements 2i and 2i + 1 (V-JEPA 2 and 2.1, PE).
    Adjacent,
    /// Elements i and i + hd/2 (Llama, Gemma, Qwen in the layout of their published tensors).
    Half,
}

/// Cosines and sines of every position for every element of a head. Elements that are not rotated
/// have cosine 1 and sine 0.
#[derive(Debug)]
pub struct Table {
    /// Cosines, f32 (positions, head_dim).
    pub cos: Tensor,
    /// Sines, f32 (positions, head_dim).
    pub sin: Tensor,
    /// Pairs of elements that are rotated together.
    pub pairing: Pairing,
}

/// Llama 3's scaling of low frequencies (long wavelengths).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// Divisor of the frequencies of long wavelengths.
    pub factor: f64,
    /// Frequencies whose wavelength is above `original_max_positions / low_freq_factor` are divided
    /// in full.
    pub low_freq_factor: f64,
    /// Frequencies whose wavelength is below `original_max_positions / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Positions with which the model was first trained.
    pub original_max_positions: usize,
}

/// The inverse frequencies theta^(−2i/head_dim), i = 0..head_dim/2.
///
/// Source: `RoFormer` (arXiv 2104.09864) §3.2.2.
#[must_use]
pub fn inv_freq(theta: f64, head_dim: usize) -> Vec<f32> {
    frequencies(theta, head_dim).into_iter().map(to_f32).collect()
}

/// [`inv_freq`] with Llama 3's scaling of each frequency f by its wavelength w = 2π/f. With
/// o = `original_max_positions`, frequencies are kept for w below o / `high_freq_factor` and
/// divided by `factor` for w above o / `low_freq_factor`. In between they become (1 − s)·f/factor +
/// s·f with s = (o/w − low_freq_factor) / (high_freq_factor − low_freq_factor).
///
/// Source: `_compute_llama3_parameters` of transformers.
#[must_use]
pub fn llama3_inv_freq(theta: f64, head_dim: usize, scaling: Llama3Scaling) -> Vec<f32> {
    let Llama3Scaling { factor, low_freq_factor, high_freq_factor, original_max_positions } =
        scaling;
    let original = to_f64(original_max_positions);
    let scale = |f: f64| {
        let wavelength = TAU / f;
        if wavelength < original / high_freq_factor {
            f
        } else if wavelength > original / low_freq_factor {
            f / factor
        } else {
            let s =
                (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - s) * f / factor + s * f
        }
    };
    frequencies(theta, head_dim).into_iter().map(|f| to_f32(scale(f))).collect()
}

impl Table {
    /// The three-axis form of V-JEPA 2 over a grid of `[time, height, width]` tokens, numbered in
    /// that order.
    ///
    /// Each axis rotates a = 2·⌊⌊head_dim/3⌋/2⌋ elements with the frequencies theta^(−2j/a); the
    /// remaining elements of a head are not rotated. The cosines of one axis are *tiled*, [c₀ …
    /// c_(a/2−1), c₀ … c_(a/2−1)], while the rotation pairs adjacent elements, so the two elements
    /// of a pair have different angles. The result is not a rotation, but the published weights
    /// depend on it.
    ///
    /// Source: `rotate_queries_or_keys` of facebookresearch/vjepa2.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn axial_tiled(
        device: Device,
        head_dim: usize,
        grid: [usize; 3],
        theta: f64,
    ) -> Result<Self> {
        let axis = 2 * (head_dim / 3 / 2);
        let inv_freq = inv_freq(theta, axis);
        let [time, height, width] = grid;
        let angles = |token: usize, element: usize| {
            let at = [token / (height * width), token / width % height, token % width];
            let coordinate = at.get(element.checked_div(axis)?)?;
            Some(angle(*coordinate, inv_freq[element % axis % (axis / 2)]))
        };
        Self::fill(device, [time * height * width, head_dim], Pairing::Adjacent, angles)
    }

    /// Rotations of adjacent elements over several axes. Token i is at `coordinates[i]`. In the
    /// order of the axes, each rotates `axis` elements of a head: the pair of elements 2j and
    /// 2j + 1 by its coordinate times theta^(−2j/axis). The remaining elements are not rotated.
    ///
    /// Sources: `rotate_queries_or_keys` in `app/vjepa_2_1` of facebookresearch/vjepa2; `Rope2D` of
    /// facebookresearch/perception_models.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn axial<const AXES: usize>(
        device: Device,
        head_dim: usize,
        axis: usize,
        coordinates: &[[f32; AXES]],
        theta: f64,
    ) -> Result<Self> {
        let inv_freq = inv_freq(theta, axis);
        let angles = |token: usize, element: usize| {
            let coordinate = coordinates[token].get(element.checked_div(axis)?)?;
            Some(f64::from(coordinate * inv_freq[element % axis / 2]))
        };
        Self::fill(device, [coordinates.len(), head_dim], Pairing::Adjacent, angles)
    }

    /// The form of Llama and Gemma for positions 0..`positions`: elements i and i + head_dim/2 are
    /// rotated by p·`inv_freq[i]` at position p.
    ///
    /// # Panics
    /// When `inv_freq` does not hold head_dim/2 frequencies.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn rotate_half(
        device: Device,
        head_dim: usize,
        positions: usize,
        inv_freq: &[f32],
    ) -> Result<Self> {
        assert_eq!(2 * inv_freq.len(), head_dim, "one frequency for each pair of elements");
        let angles = |p: usize, element: usize| Some(angle(p, inv_freq[element % inv_freq.len()]));
        Self::fill(device, [positions, head_dim], Pairing::Half, angles)
    }

    /// Number of positions in the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.shape()[0]
    }

    /// Elements of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.cos.shape()[1]
    }

    fn fill(
        device: Device,
        [positions, head_dim]: [usize; 2],
        pairing: Pairing,
        angles: impl Fn(usize, usize) -> Option<f64>,
    ) -> Result<Self> {
        let table = |of: fn(f64) -> f64, otherwise: f32| {
            let cell = |i| angles(i / head_dim, i % head_dim).map_or(otherwise, |a| to_f32(of(a)));
            let cells = (0..positions * head_dim).map(cell).collect();
            Tensor::from_f32(cells, &[positions, head_dim]).on(device)
        };
        Ok(Self { cos: table(f64::cos, 1.0)?, sin: table(f64::sin, 0.0)?, pairing })
    }
}

fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-to_f64(2 * i) / to_f64(head_dim))).collect()
}

/// Angle of a position. The product is rounded to f32, as in the training of the published models;
/// at position 4,000 this moves the angle by up to 10⁻⁴.
#[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
fn angle(position: usize, inv_freq: f32) -> f64 {
    f64::from(position as f32 * inv_freq)
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
fn to_f32(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::{Llama3Scaling, Pairing, Table, inv_freq, llama3_inv_freq};
    use crate::Device;
    use crate::testing::Comparison;

    /// Inverse frequencies of Llama-3.2-1B as transformers 4.57.6 computes them.
    #[expect(clippy::excessive_precision, reason = "the digits as they were printed")]
    const LLAMA_3_2_1B: [f32; 32] = [
        1.0,
        0.663601238,
        0.440366603,
        0.292227823,
        0.193922745,
        0.128687373,
        0.0853971003,
        0.0566696214,
        0.0376060309,
        0.0249554087,
        0.0165604401,
        0.0109895285,
        0.00729266474,
        0.00483942135,
        0.00321144599,
        0.00129054793,
        0.000429556797,
        9.7082878e-05,
        1.94616382e-05,
        1.29147672e-05,
        8.57025549e-06,
        5.68723215e-06,
        3.77405429e-06,
        2.5044671e-06,
        1.66196747e-06,
        1.10288367e-06,
        7.31874968e-07,
        4.85673134e-07,
        3.22293293e-07,
        2.13874228e-07,
        1.41927203e-07,
        9.41830673e-08,
    ];

    const SCALING: Llama3Scaling = Llama3Scaling {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };

    #[test]
    fn llama_3_2_1b_has_its_published_frequencies() {
        // Ratios instead of differences, because the last frequencies are near 10⁻⁷. The published
        // numbers come from f32 arithmetic on f32 powers: a few units in the last place (6e-8). The
        // blend subtracts near numbers, so ten of them.
        let ratios = |scaling| {
            let got = llama3_inv_freq(500_000.0, 64, scaling);
            got.iter().zip(LLAMA_3_2_1B).map(|(g, w)| g / w).collect::<Vec<_>>()
        };
        let right = Comparison::new(&ratios(SCALING), &[1.0; 32], 6e-7);
        assert!(right.is_close(), "{right}");
        let of_llama_3_1 = Llama3Scaling { factor: 8.0, ..SCALING };
        let wrong = Comparison::new(&ratios(of_llama_3_1), &[1.0; 32], 6e-7);
        assert_eq!(wrong.mismatched, 17, "a factor of 8 changes all but the 15 short wavelengths");
    }

    #[test]
    fn v_jepa_2_rotates_sixty_of_sixty_four_elements_and_tiles_each_axis() {
        let table = Table::axial_tiled(Device::Host, 64, [2, 3, 4], 10_000.0).unwrap();
        assert_eq!((table.positions(), table.head_dim()), (24, 64));
        assert_eq!(table.pairing, Pairing::Adjacent);
        let sin = table.sin.view().host_f32("test", "sin").unwrap();
        let token = &sin[(12 + 2 * 4 + 3) * 64..][..64];
        let freq = inv_freq(10_000.0, 20);
        for (axis, coordinate) in [1.0_f32, 2.0, 3.0].into_iter().enumerate() {
            for j in 0..10 {
                let want = (coordinate * freq[j]).sin();
                assert!((token[axis * 20 + j] - want).abs() < 1e-6);
                assert!((token[axis * 20 + 10 + j] - want).abs() < 1e-6, "tiled, not interleaved");
            }
        }
        assert!(token[60..].iter().all(|&s| s == 0.0), "the last four elements stay");
    }

    #[test]
    fn axes_repeat_the_angle_within_a_pair_and_leave_the_rest_of_a_head() {
        let table = Table::axial(Device::Host, 10, 4, &[[0.0, 0.0], [2.5, 1.0]], 10_000.0).unwrap();
        assert_eq!((table.positions(), table.pairing), (2, Pairing::Adjacent));
        // 10000^(−2/4) = 0.01.
        let angles: [f32; 8] = [2.5, 2.5, 0.025, 0.025, 1.0, 1.0, 0.01, 0.01];
        let sin = table.sin.view().host_f32("test", "sin").unwrap();
        let want: Vec<f32> = [0.0; 10].into_iter().chain(angles.map(f32::sin)).collect();
        let right = Comparison::new(&sin[..18], &want, 1e-6);
        assert!(right.is_close(), "{right}");
        let tiled: Vec<f32> = [2.5, 0.025, 2.5, 0.025_f32].map(f32::sin).to_vec();
        assert!(!Comparison::new(&sin[10..14], &tiled, 1e-6).is_close());
        let cos = table.cos.view().host_f32("test", "cos").unwrap();
        assert_eq!((&sin[18..], &cos[18..]), (&[0.0; 2][..], &[1.0; 2][..]));
    }

    #[test]
    fn small_heads_leave_what_three_axes_do_not_fill() {
        let table = Table::axial_tiled(Device::Host, 4, [1, 2, 2], 10_000.0).unwrap();
        let cos = table.cos.view().host_f32("test", "cos").unwrap();
        assert_eq!(cos, [1.0; 16], "a head of four has no room for three axes");
    }
}
