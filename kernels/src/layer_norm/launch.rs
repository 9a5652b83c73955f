//! The kernels of both normalisations and how they are launched.
//!
//! Floor: memory. Forward reads x and writes out; backward reads x and d_out and writes d_x: 2 and 3
//! passes over n·d elements; weights, statistics and the partial sums of d_weight are small beside them.
//!
//! Tiling: one plane per row, eight rows per cube at a time; a row stays in registers between its statistics and its output, so each
//! byte moves once and the variance is the exact two-pass one. Planes walk over rows `planes` apart and add up their share of
//! d_weight and d_bias in registers; the planes of a cube then add theirs in shared memory, one after the other, and a second launch adds the
//! cubes' sums to the gradient. No atomics: the same bits in every run.
//!
//! Considered: one cube per row (more barriers than a row of 1,024 or 2,048 pays for), Welford's update (one pass less over
//! registers, which are free, for divisions, which are not).

use super::cube::norm_backward::NormBackward;
use super::cube::norm_forward::NormForward;
use crate::column_sums::launch as column_sums;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, Write, check};

pub use super::cube::Form;

/// Planes of a cube, and so rows that it normalises at a time.
const PLANES: usize = 8;
/// Cubes that share the rows of a backward pass: two for each of 132 multiprocessors.
const CUBES: usize = 264;
/// The widest row that registers hold.
const MAX_WIDTH: usize = 4096;

/// What decides a kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Which kernel.
    pub pass: Pass,
    /// Element type of activations and weights.
    pub element: Element,
    /// Elements of a row.
    pub width: usize,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// out of x.
    Forward {
        /// Which normalisation.
        form: Form,
    },
    /// d_x and partial sums of the weights' gradients.
    Backward {
        /// Which normalisation.
        form: Form,
        /// Whether d_x is added to.
        add: bool,
    },
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer_norm",
            Self::Rms => "rms_norm",
            Self::RmsOnePlus => "rms_norm_one_plus",
        }
    }
}

impl Kernel {
    pub(crate) fn name(self) -> String {
        let (element, width) = (self.element.name(), self.width);
        match self.pass {
            Pass::Forward { form } => format!("{}_forward_d{width}_{element}", form.name()),
            Pass::Backward { form, add } => {
                format!(
                    "{}_backward{}_d{width}_{element}",
                    form.name(),
                    if add { "_add" } else { "" }
                )
            }
        }
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    /// Elements of a vector.
    fn lanes(self) -> usize {
        self.element.lanes(self.width)
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(PLANES * 32));
        match self.element {
            Element::F32 => self.emit_as::<f32>(e, name),
            Element::Bf16 => self.emit_as::<half::bf16>(e, name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(
        self,
        e: Emit,
        name: &str,
    ) -> Result<Source, CompileError> {
        let (lanes, width) = (self.lanes(), self.width);
        match self.pass {
            Pass::Forward { form } => emit!(
                e, name, NormForward::<F>: [x weight bias out mean rstd] [eps inverse_width rows],
                lanes, form, width, lanes,
            ),
            Pass::Backward { form, add } => emit!(
                e, name, NormBackward::<F>: [x weight mean rstd d_out d_x partial_weight partial_bias]
                [inverse_width rows planes],
                lanes, form, width, lanes, add, offset(PLANES),
            ),
        }
    }
}

/// Buffers of [`forward`].
#[derive(Debug, Clone, Copy)]
pub struct Forward<B> {
    /// (n, d).
    pub x: B,
    /// (d).
    pub weight: B,
    /// (d), of a layer norm.
    pub bias: Option<B>,
    /// Written: (n, d).
    pub out: B,
    /// Written: f32 (n), of a layer norm.
    pub mean: Option<B>,
    /// Written: f32 (n).
    pub rstd: B,
}

/// Normalises `n` rows of `width` elements.
///
/// # Errors
/// When rows are wider than registers hold, or there are too many for 32-bit offsets.
pub fn forward<B: Copy>(
    buffers: Forward<B>,
    form: Form,
    element: Element,
    n: usize,
    width: usize,
    eps: f32,
) -> Result<Vec<Launch<B>>> {
    check_size("norm::forward", n, width)?;
    if n == 0 || width == 0 {
        return Ok(Vec::new());
    }
    let Forward { x, weight, bias, out, mean, rstd } = buffers;
    let pass = Pass::Forward { form };
    Ok(vec![Launch {
        kernel: compile::Kernel::LayerNorm(Kernel { pass, element, width }),
        cubes: [cubes(n, PLANES), 1, 1],
        buffers: vec![x, weight, bias.unwrap_or(weight), out, mean.unwrap_or(rstd), rstd],
        scalars: vec![Scalar::F32(eps), Scalar::F32(1.0 / width as f32), Scalar::U32(offset(n))],
    }])
}

/// Buffers of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// (n, d): what was normalised.
    pub x: B,
    /// (d).
    pub weight: B,
    /// f32 (n), of a layer norm.
    pub mean: Option<B>,
    /// f32 (n).
    pub rstd: B,
    /// (n, d).
    pub d_out: B,
    /// Written or added to: (n, d).
    pub d_x: B,
    /// Workspaces, each f32 ([`workspace`]): the second one of a layer norm.
    pub partials: [B; 2],
    /// Added to: f32 (d).
    pub d_weight: B,
    /// Added to: f32 (d), of a layer norm.
    pub d_bias: Option<B>,
}

/// Numbers in each workspace of [`backward`].
#[must_use]
pub fn workspace(n: usize, width: usize) -> usize {
    n.div_ceil(PLANES).min(CUBES) * width
}

/// Gradients of [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward<B: Copy>(
    buffers: Backward<B>,
    form: Form,
    element: Element,
    n: usize,
    width: usize,
    write: Write,
) -> Result<Vec<Launch<B>>> {
    check_size("norm::backward", n, width)?;
    if n == 0 || width == 0 {
        return Ok(Vec::new());
    }
    let Backward { x, weight, mean, rstd, d_out, d_x, partials: [first, second], d_weight, d_bias } =
        buffers;
    let parts = n.div_ceil(PLANES).min(CUBES);
    let kernel = |pass| compile::Kernel::LayerNorm(Kernel { pass, element, width });
    let add = |partial, gradient| column_sums::total(partial, gradient, parts, width);
    let mut launches = vec![Launch {
        kernel: kernel(Pass::Backward { form, add: write == Write::Add }),
        cubes: [offset(parts), 1, 1],
        buffers: vec![x, weight, mean.unwrap_or(rstd), rstd, d_out, d_x, first, second],
        scalars: vec![
            Scalar::F32(1.0 / width as f32),
            Scalar::U32(offset(n)),
            Scalar::U32(offset(parts * PLANES)),
        ],
    }];
    launches.push(add(first, d_weight));
    launches.extend(d_bias.map(|d_bias| add(second, d_bias)));
    Ok(launches)
}

fn check_size(operation: &'static str, n: usize, width: usize) -> Result<()> {
    if width > MAX_WIDTH {
        let needed = "rows are at most 4096 wide: one stays in a plane's registers";
        return Err(check::value(operation, "width", width.to_string(), needed));
    }
    if n.saturating_mul(width) >= 1 << 32 {
        let needed = "rows times width stay below 2^32 (32-bit offsets)";
        return Err(check::value(operation, "rows", n.to_string(), needed));
    }
    Ok(())
}
