//! AdamW: one update of a flat range of parameters.

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
use crate::{Result, Stream, View, ViewMut, check};

/// Hyperparameters of one update. They are f64 because 1 − β and β^step would lose digits in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    /// Learning rate of this update.
    pub lr: f64,
    /// β₁, the decay of the first moment.
    pub beta1: f64,
    /// β₂, the decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment in the divisor.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Number of this update, counted from 1.
    pub step: u64,
}

impl Hyper {
    /// 1 − β^step for both moments.
    fn bias_corrections(&self) -> (f64, f64) {
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        (1.0 - self.beta1.powi(step), 1.0 - self.beta2.powi(step))
    }
}

/// Updates `weights` and both moments in place from `gradient`.
///
/// With g = `control[0]` · gradient:
/// w ← w·(1 − lr·weight_decay); m ← m + (1 − β₁)(g − m); v ← β₂·v + (1 − β₂)·g²;
/// w ← w − lr/(1 − β₁^step) · m / (√v/√(1 − β₂^step) + eps). If `control[1]` is 0, nothing changes.
///
/// Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), in the form of `torch.optim.AdamW`. All
/// tensors are f32 and have one shape, except `control` (2), which holds the clip factor and the
/// finite flag of [`global_norm::control`](crate::global_norm::control), and `copy`, which receives
/// the new weights in bf16 and exists only on a GPU.
///
/// # Errors
/// If shapes or element types disagree, if `hyper.step` is 0, or if `copy` is `Some` on the host.
///
/// ```
/// use vljepa_kernels::adamw::{self, Hyper};
/// use vljepa_kernels::{Stream, View, ViewMut};
///
/// let hyper = Hyper { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 0.0, weight_decay: 0.0, step: 1 };
/// let (mut weights, mut m, mut v) = ([1.0], [0.0], [0.0]);
/// adamw::step(
///     &Stream::Host,
///     ViewMut::from_f32(&mut weights, &[1]),
///     ViewMut::from_f32(&mut m, &[1]),
///     ViewMut::from_f32(&mut v, &[1]),
///     View::from_f32(&[-3.0], &[1]),
///     hyper,
///     View::from_f32(&[1.0, 1.0], &[2]),
///     None,
/// )?;
/// // The first step is the learning rate, whatever the gradient.
/// assert!((weights[0] - 1.1).abs() < 1e-6);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
#[expect(clippy::too_many_arguments, reason = "the tensors and parameters of one formula")]
pub fn step(
    stream: &Stream,
    weights: ViewMut<'_>,
    m: ViewMut<'_>,
    v: ViewMut<'_>,
    gradient: View<'_>,
    hyper: Hyper,
    control: View<'_>,
    copy: Option<ViewMut<'_>>,
) -> Result<()> {
    const NAME: &str = "adamw::step";
    check::shape(NAME, "m", m.shape(), weights.shape())?;
    check::shape(NAME, "v", v.shape(), weights.shape())?;
    check::shape(NAME, "gradient", gradient.shape(), weights.shape())?;
    check::shape(NAME, "control", control.shape(), &[2])?;
    if let Some(copy) = &copy {
        check::shape(NAME, "copy", copy.shape(), weights.shape())?;
    }
    if hyper.step == 0 {
        return Err(check::value(NAME, "step", "0", "updates are counted from 1"));
    }
    match stream {
        Stream::Host => {
            let state = State {
                weights: weights.host_f32_mut(NAME, "weights")?,
                m: m.host_f32_mut(NAME, "m")?,
                v: v.host_f32_mut(NAME, "v")?,
            };
            if copy.is_some() {
                let needed = "must be `None`, because the host computes in f32 only";
                return Err(check::value(NAME, "copy", "`Some`", needed));
            }
            let control = control.host_f32(NAME, "control")?;
            let gradient = gradient.host_f32(NAME, "gradient")?;
            if control[1] > 0.0 {
                host::step(state, gradient, hyper, control[0]);
            }
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let buffers = launch::Buffers {
                weights: call.f32(weights.as_view(), "weights")?,
                m: call.f32(m, "m")?,
                v: call.f32(v, "v")?,
                gradient: call.f32(gradient, "gradient")?,
                control: call.f32(control, "control")?,
                copy: copy.map(|copy| call.at(copy, "copy", DType::Bf16)).transpose()?,
            };
            call.run(launch::step(buffers, weights.len(), hyper))?;
        }),
    }
    Ok(())
}

/// The arrays that an update changes, all of one length.
struct State<'a> {
    weights: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}
