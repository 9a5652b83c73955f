//! The steps of `VICReg` around its products by their definition. The host also runs this code,
//! because the products take far longer.

use super::{EPSILON, Factors};
use crate::parallel::{self, round};

/// `x` (b, e) − `sums` (e) · `inverse`, written to `out`.
pub(super) fn centre(x: &[f32], sums: &[f32], inverse: f32, out: &mut [f32]) {
    let width = sums.len();
    parallel::blocks(x.len(), (out, width), |row, out| {
        let x = &x[row * width..][..width];
        for (out, (&x, &sum)) in out.iter_mut().zip(x.iter().zip(sums)) {
            *out = x - sum * inverse;
        }
    });
}

/// Weights (e, e) and terms (e) of a branch, from its products (e, e) and `inverse` = 1 / (g − 1).
pub(super) fn weights(
    products: &[f32],
    inverse: f32,
    factors: Factors,
    weights: &mut [f32],
    terms: &mut [f32],
) {
    let width = terms.len();
    let Factors { variance, covariance } = factors;
    parallel::blocks2(products.len(), (weights, width), (terms, 1), |i, weights, term| {
        let products = &products[i * width..][..width];
        let mut squares = 0.0;
        for (j, (weight, &product)) in weights.iter_mut().zip(products).enumerate() {
            let c = product * inverse;
            if i != j {
                squares += f64::from(c) * f64::from(c);
                *weight = 4.0 * covariance * inverse * c;
            }
        }
        let deviation = (f64::from(products[i] * inverse) + EPSILON).sqrt();
        // A NaN is not at least 1, and must stay.
        let (hinge, weight) = if deviation >= 1.0 {
            (0.0, 0.0)
        } else {
            (1.0 - deviation, -f64::from(variance * inverse) / deviation)
        };
        weights[i] = round(weight);
        term[0] = round(f64::from(variance) * hinge + f64::from(covariance) * squares);
    });
}
