//! `VICReg` over the rows of all ranks: the mean squared distance of each pair, and variance and
//! covariance terms for both branches.

use vljepa_kernels::distance::{self, Distance};
use vljepa_kernels::vic_reg::{self, Factors};
use vljepa_kernels::{Result, Tensor, View, Write, column_sums, linear};

use super::{EmbeddingGradients, RegularisedShare, gradients_of_distance, reciprocal};
use crate::Context;

/// `VICReg` (arXiv 2105.04906), with the predicted and the target embeddings as the two branches.
#[derive(Debug, Clone, Copy)]
pub struct VicReg {
    /// Factor of the mean squared distance.
    pub invariance: f32,
    /// Factor of the variance term, the mean of both branches.
    pub variance: f32,
    /// Factor of the covariance term, the sum of both branches.
    pub covariance: f32,
}

/// Centred rows of this rank, and their products. The backward pass needs the products of all
/// ranks' rows, so the caller sums them over ranks first.
#[derive(Debug)]
pub struct Moments {
    /// (z − m)ᵀ(z − m) of the predicted and of the target embeddings, f32 (2, e, e).
    pub products: Tensor,
    centred: [Tensor; 2],
}

impl VicReg {
    /// Sums of the predicted and of the target `embeddings`, (b, e) each, over this rank's rows:
    /// f32 (2, e).
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn sums(&self, cx: Context<'_>, embeddings: [View<'_>; 2]) -> Result<Tensor> {
        let e = embeddings[0].shape()[1];
        let mut sums = cx.take_f32(&[2, e])?;
        sums.view_mut().fill_zero(cx.stream)?;
        for (i, z) in embeddings.into_iter().enumerate() {
            column_sums::add(cx.stream, z, sums.view_mut().part(i * e, &[e]))?;
        }
        Ok(sums)
    }

    /// Moments of this rank's rows, given the `sums` (2, e) over the `global` rows of all ranks.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn moments(
        &self,
        cx: Context<'_>,
        embeddings: [View<'_>; 2],
        sums: View<'_>,
        global: usize,
    ) -> Result<Moments> {
        let shape @ [_, e] = [embeddings[0].shape()[0], embeddings[0].shape()[1]];
        let mut products = cx.take_f32(&[2, e, e])?;
        products.view_mut().fill_zero(cx.stream)?;
        let mut centred = [cx.take(&shape)?, cx.take(&shape)?];
        for (i, (z, centred)) in embeddings.into_iter().zip(&mut centred).enumerate() {
            vic_reg::centre(cx.stream, z, sums.part(i * e, &[e]), global, centred.view_mut())?;
            let out = products.view_mut().part(i * e * e, &[e, e]);
            linear::backward_weight(cx.stream, centred.view(), centred.view(), out, None)?;
        }
        Ok(Moments { products, centred })
    }

    /// This rank's share of the loss, and the gradients of its embeddings, given the products
    /// over the `global` rows of all ranks.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        embeddings: [View<'_>; 2],
        moments: &Moments,
        global: usize,
    ) -> Result<(RegularisedShare, EmbeddingGradients)> {
        let [predicted, target] = embeddings;
        let [b, e] = [predicted.shape()[0], predicted.shape()[1]];
        let distance = distance::forward(cx.stream, predicted, target, Distance::L2)?;
        let factor = self.invariance * reciprocal(global);
        let mut d = gradients_of_distance(cx, embeddings, Distance::L2, factor)?;
        // The variance term is the mean of both branches, the covariance term their sum.
        let each = reciprocal(e);
        let factors =
            Factors { variance: 0.5 * self.variance * each, covariance: self.covariance * each };
        let (mut weights, mut terms) = (cx.take(&[e, e])?, cx.take_f32(&[2, e])?);
        for (i, d) in [&mut d.predicted, &mut d.target].into_iter().enumerate() {
            let products = moments.products.view().part(i * e * e, &[e, e]);
            let of_branch = terms.view_mut().part(i * e, &[e]);
            vic_reg::weights(cx.stream, products, global, factors, weights.view_mut(), of_branch)?;
            let centred = moments.centred[i].view();
            linear::backward_input(cx.stream, centred, weights.view(), Write::Add, d.view_mut())?;
        }
        Ok((RegularisedShare::new(distance * f64::from(factor), terms, b, global), d))
    }
}
