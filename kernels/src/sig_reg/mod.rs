//! `SIGReg`: the distance of embeddings from a standard normal distribution, along random
//! directions. It keeps embeddings from collapsing without negatives.
//!
//! With the projections x_n = z_n·a of the g rows of the global batch on a unit vector a, the
//! statistic of Epps and Pulley is
//!
//! g·∫ |φ̂(t) − e^(−t²/2)|² e^(−t²/2) dt, φ̂(t) = Σ_n e^(i·t·x_n) / g,
//!
//! computed by the trapezoid rule on 17 points of [−5, 5]. The integrand is even and zero at 0, so
//! the [`KNOTS`] points t_k = 5k/8 above 0 give the same sum. Per direction a rank needs Σ
//! cos(t_k·x_n) and Σ sin(t_k·x_n) over its rows ([`add_sums`]). From the sums of all ranks,
//! [`coefficients`] makes the statistic and the coefficients of its gradient, which [`gradients`]
//! evaluates at each projection. The products with the directions are those of
//! [`linear`](crate::linear).
//!
//! # On a GPU
//!
//! No tensor of rows × directions × points is stored: cos(t_k·x) and sin(t_k·x) are powers of one
//! rotation, so a thread computes one sine and one cosine per projection and keeps 16 sums in
//! registers. See `launch.rs`.
//!
//! Source: Balestriero, `LeCun`, `LeJEPA` (arXiv 2511.08544), Algorithm 1.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

#[cfg(feature = "cuda")]
use crate::DType;
use crate::parallel::round;
use crate::{Result, Stream, View, ViewMut, check};

/// Points of the trapezoid rule above 0.
pub const KNOTS: usize = 8;

/// Distance between two points of the trapezoid rule.
const SPACING: f64 = 5.0 / 8.0;

/// Factor from a projection x to the angle `SPACING`·x in turns.
fn turns() -> f32 {
    round(SPACING / std::f64::consts::TAU)
}

/// `sums` (2·[`KNOTS`], m) += Σ over rows of cos(t_k·x) and, from row [`KNOTS`], of sin(t_k·x),
/// with the `projections` x (b, m) of this rank's rows on m directions. Both are f32.
///
/// # Errors
/// If shapes or element types disagree.
pub fn add_sums(stream: &Stream, projections: View<'_>, sums: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "sig_reg::add_sums";
    let [_, directions] = check::rank(NAME, "projections", projections.shape())?;
    check::shape(NAME, "sums", sums.shape(), &[2 * KNOTS, directions])?;
    match stream {
        Stream::Host => {
            let projections = projections.host_f32(NAME, "projections")?;
            host::add_sums(projections, directions, sums.host_f32_mut(NAME, "sums")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let rows = projections.shape()[0];
            let partial = call.workspace(DType::F32, launch::workspace(rows, directions))?;
            let buffers = [
                call.f32(projections, "projections")?,
                call.f32(partial.view(), "partial")?,
                call.f32(sums, "sums")?,
            ];
            call.run(launch::add_sums(buffers, [rows, directions])?)?;
        }),
    }
    Ok(())
}

/// Replaces `sums` (2·[`KNOTS`], m), over the `global` rows of all ranks, by the coefficients of
/// the gradient, and writes `factor` times the statistic of each direction to `terms` (m). Both are
/// f32.
///
/// # Errors
/// If shapes or element types disagree.
pub fn coefficients(
    stream: &Stream,
    sums: ViewMut<'_>,
    global: usize,
    factor: f32,
    terms: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "sig_reg::coefficients";
    let [directions] = check::rank(NAME, "terms", terms.shape())?;
    check::shape(NAME, "sums", sums.shape(), &[2 * KNOTS, directions])?;
    let global = rows(global);
    match stream {
        Stream::Host => {
            let (sums, terms) =
                (sums.host_f32_mut(NAME, "sums")?, terms.host_f32_mut(NAME, "terms")?);
            host::coefficients(sums, global, factor, terms);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let buffers = [call.f32(sums, "sums")?, call.f32(terms, "terms")?];
            call.run(launch::coefficients(buffers, global, factor, directions)?)?;
        }),
    }
    Ok(())
}

/// Writes the gradient of `factor` · Σ statistics in each projection to `out` (b, m), from the
/// `projections`, f32 (b, m), and the `coefficients`, f32 (2·[`KNOTS`], m). `out` is f32, or on a
/// GPU also bf16.
///
/// # Errors
/// If shapes or element types disagree.
pub fn gradients(
    stream: &Stream,
    projections: View<'_>,
    coefficients: View<'_>,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "sig_reg::gradients";
    let shape @ [_, directions] = check::rank(NAME, "projections", projections.shape())?;
    check::shape(NAME, "coefficients", coefficients.shape(), &[2 * KNOTS, directions])?;
    check::shape(NAME, "out", out.shape(), &shape)?;
    match stream {
        Stream::Host => {
            let projections = projections.host_f32(NAME, "projections")?;
            let coefficients = coefficients.host_f32(NAME, "coefficients")?;
            host::gradients(projections, coefficients, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(out.dtype(), "out")?;
            let buffers = [
                call.f32(projections, "projections")?,
                call.f32(coefficients, "coefficients")?,
                call.at(out, "out", element)?,
            ];
            call.run(launch::gradients(buffers, element, shape)?)?;
        }),
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "batches are below 2^24 rows")]
fn rows(global: usize) -> f32 {
    global.max(1) as f32
}
