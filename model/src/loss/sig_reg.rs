//! `SIGReg` over the rows of all ranks: the mean squared distance of each pair, and the distance of
//! both branches from a standard normal distribution.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use vljepa_kernels::distance::{self, Distance};
use vljepa_kernels::sig_reg::{self, KNOTS};
use vljepa_kernels::{Result, Tensor, View, Write, copy, linear};

use super::{EmbeddingGradients, RegularisedShare, gradients_of_distance, reciprocal};
use crate::Context;

/// The loss of `LeJEPA` (arXiv 2511.08544), with the predicted and the target embeddings as the
/// views: (1 − λ) · mean squared distance + λ · mean of `SIGReg` over branches and directions.
#[derive(Debug, Clone, Copy)]
pub struct SigReg {
    /// Weight λ.
    pub weight: f32,
    /// Number of random directions.
    pub directions: usize,
}

/// Projections of this rank's rows, and their sums. The backward pass needs the sums over all
/// ranks' rows, so the caller sums them over ranks first.
#[derive(Debug)]
pub struct Projected {
    /// Sums of cosines and of sines of the predicted and of the target embeddings, f32 (2,
    /// 2·[`KNOTS`], directions).
    pub sums: Tensor,
    directions: Tensor,
    projections: [Tensor; 2],
}

impl SigReg {
    /// Random unit vectors (directions, e), a pure function of `key`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn directions(&self, cx: Context<'_>, key: u64, width: usize) -> Result<Tensor> {
        let shape = [self.directions, width];
        let mut values = vec![0.0; self.directions * width];
        values.par_chunks_mut(width.max(1)).enumerate().for_each(|(i, values)| {
            let mut random = ChaCha8Rng::seed_from_u64(key);
            random.set_stream(i as u64);
            values.fill_with(|| StandardNormal.sample(&mut random));
            let length = values.iter().map(|x| x * x).sum::<f32>().sqrt();
            values.iter_mut().for_each(|x| *x /= length);
        });
        let mut directions = cx.take(&shape)?;
        copy::cast(cx.stream, View::from_f32(&values, &shape), directions.view_mut())?;
        Ok(directions)
    }

    /// Projections of the predicted and of the target `embeddings`, (b, e) each, on `directions`,
    /// and their sums over this rank's rows.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn project(
        &self,
        cx: Context<'_>,
        embeddings: [View<'_>; 2],
        directions: Tensor,
    ) -> Result<Projected> {
        let (b, m) = (embeddings[0].shape()[0], self.directions);
        let mut sums = cx.take_f32(&[2, 2 * KNOTS, m])?;
        sums.view_mut().fill_zero(cx.stream)?;
        let mut projections = [cx.take_f32(&[b, m])?, cx.take_f32(&[b, m])?];
        for (i, (z, projections)) in embeddings.into_iter().zip(&mut projections).enumerate() {
            let (out, weight) = (projections.view_mut(), directions.view());
            linear::forward(cx.stream, z, weight, None, Write::Set, out)?;
            let of_branch = sums.view_mut().part(i * 2 * KNOTS * m, &[2 * KNOTS, m]);
            sig_reg::add_sums(cx.stream, projections.view(), of_branch)?;
        }
        Ok(Projected { sums, directions, projections })
    }

    /// This rank's share of the loss, and the gradients of its embeddings, given the sums over the
    /// `global` rows of all ranks. Overwrites the sums.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        embeddings: [View<'_>; 2],
        projected: &mut Projected,
        global: usize,
    ) -> Result<(RegularisedShare, EmbeddingGradients)> {
        let [predicted, target] = embeddings;
        let (b, m) = (predicted.shape()[0], self.directions);
        let distance = distance::forward(cx.stream, predicted, target, Distance::L2)?;
        let factor = (1.0 - self.weight) * reciprocal(global);
        let mut d = gradients_of_distance(cx, embeddings, Distance::L2, factor)?;
        let each = 0.5 * self.weight * reciprocal(m);
        let (mut d_projections, mut terms) = (cx.take(&[b, m])?, cx.take_f32(&[2, m])?);
        let Projected { sums, directions, projections } = projected;
        for (i, d) in [&mut d.predicted, &mut d.target].into_iter().enumerate() {
            let mut sums = sums.view_mut().part(i * 2 * KNOTS * m, &[2 * KNOTS, m]);
            let of_branch = terms.view_mut().part(i * m, &[m]);
            sig_reg::coefficients(cx.stream, sums.reborrow(), global, each, of_branch)?;
            let (x, out) = (projections[i].view(), d_projections.view_mut());
            sig_reg::gradients(cx.stream, x, sums.as_view(), out)?;
            let (d_x, weight) = (d_projections.view(), directions.view());
            linear::backward_input(cx.stream, d_x, weight, Write::Add, d.view_mut())?;
        }
        Ok((RegularisedShare::new(distance * f64::from(factor), terms, b, global), d))
    }
}

#[cfg(test)]
mod tests {
    use vljepa_kernels::{Arena, Device, Stream};

    use super::SigReg;
    use crate::Context;

    #[test]
    fn directions_have_length_one_and_come_from_their_key_alone() {
        let (stream, arena) = (Stream::Host, Arena::new(Device::Host, usize::MAX));
        let cx = Context { stream: &stream, arena: &arena };
        let draw = |key| {
            let loss = SigReg { weight: 0.05, directions: 24 };
            loss.directions(cx, key, 40).unwrap().to_f32().unwrap().into_owned()
        };
        let directions = draw(7);
        for one in directions.chunks_exact(40) {
            let square: f32 = one.iter().map(|x| x * x).sum();
            // 40 squares and a root in f32.
            assert!((square - 1.0).abs() < 1e-5, "{square}");
        }
        assert!(directions[..40] != directions[40..80]);
        assert_eq!(draw(7), directions);
        assert_ne!(draw(8), directions);
    }
}
