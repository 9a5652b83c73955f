//! The kernels of layer and root-mean-square normalisation, and their launches.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit.
//!
//! Floor: memory. Forward reads x and writes out; backward reads x and d_out and writes d_x: 2 and
//! 3 passes over n·d elements. Weights, statistics and the partial sums of d_weight are small in
//! comparison.
//!
//! Tiling: a warp per row, eight rows per block at a time. A row stays in registers between its
//! statistics and its output, so each byte moves once and the variance is the exact two-pass one.
//! In the backward pass the rows are dealt to all warps in turn, and each warp adds up its share of
//! d_weight and d_bias in registers. The warps of a block then add their shares in shared memory,
//! one after the other, and a second launch adds the blocks' sums to the gradient. No atomics:
//! every run gives the same bits.
//!
//! Considered: one block per row (more barriers than a row of 1,024 or 2,048 pays for); Welford's
//! update (saves a pass over registers, which is free, and adds divisions, which are not).

use super::cube::norm_backward::NormBackward;
use super::cube::norm_forward::NormForward;
use crate::column_sums::launch as column_sums;
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, Write, check};

pub use super::cube::Form;

/// Warps of a block, which is also the number of rows that it normalises at a time.
const WARPS: usize = 8;
/// Blocks that share the rows of a backward pass: two for each of 132 multiprocessors.
const BLOCKS: usize = 264;
/// Elements of the widest row that a warp's registers hold.
pub const MAX_WIDTH: usize = 4096;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// The kernel of this operation.
    pub pass: Pass,
    /// Element type of activations and weights.
    pub element: Element,
    /// Elements of a row.
    pub width: usize,
}

/// The kernels of this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// The forward pass: out from x.
    Forward {
        /// Kind of the normalisation.
        form: Form,
    },
    /// The backward pass: d_x, and partial sums of the parameters' gradients.
    Backward {
        /// Kind of the normalisation.
        form: Form,
        /// Whether the kernel adds to d_x instead of overwriting it.
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
        let e = Emit::new(offset(WARPS * 32));
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
                lanes, form, width, lanes, add, offset(WARPS),
            ),
        }
    }
}

/// Buffers of one call of [`forward`].
#[derive(Debug, Clone, Copy)]
pub struct Forward<B> {
    /// Input rows, (n, d).
    pub x: B,
    /// Weight of each column, (d).
    pub weight: B,
    /// Bias of each column, (d); `None` for root-mean-square normalisation.
    pub bias: Option<B>,
    /// Written: normalised rows, (n, d).
    pub out: B,
    /// Written: mean of each row, f32 (n); `None` for root-mean-square normalisation.
    pub mean: Option<B>,
    /// Written: 1 / √(…) of each row, f32 (n).
    pub rstd: B,
}

/// Launches that normalise `n` rows of `width` elements.
///
/// # Errors
/// When a row is too wide for a warp's registers, or there are too many rows for 32-bit offsets.
pub fn forward<B: Copy>(
    buffers: Forward<B>,
    form: Form,
    element: Element,
    n: usize,
    width: usize,
    eps: f32,
) -> Result<Vec<Launch<B>>> {
    check_size("norm::forward", n, width, element)?;
    if n == 0 || width == 0 {
        return Ok(Vec::new());
    }
    let Forward { x, weight, bias, out, mean, rstd } = buffers;
    let pass = Pass::Forward { form };
    Ok(vec![Launch {
        kernel: compile::Kernel::LayerNorm(Kernel { pass, element, width }),
        cubes: [cubes(n, WARPS), 1, 1],
        buffers: vec![x, weight, bias.unwrap_or(weight), out, mean.unwrap_or(rstd), rstd],
        scalars: vec![Scalar::F32(eps), Scalar::F32(1.0 / width as f32), Scalar::U32(offset(n))],
    }])
}

/// Buffers of one call of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// Input rows of the forward pass, (n, d).
    pub x: B,
    /// Weight of each column, (d).
    pub weight: B,
    /// Mean of each row, f32 (n); `None` for root-mean-square normalisation.
    pub mean: Option<B>,
    /// 1 / √(…) of each row, f32 (n).
    pub rstd: B,
    /// Gradient of the normalised rows, (n, d).
    pub d_out: B,
    /// Written or added to: gradient of the input rows, (n, d).
    pub d_x: B,
    /// Workspaces of [`workspace`] f32 numbers each, for d_weight and d_bias. Root-mean-square
    /// normalisation does not use the second.
    pub partials: [B; 2],
    /// Added to: gradient of the weight, f32 (d).
    pub d_weight: B,
    /// Added to: gradient of the bias, f32 (d); `None` for root-mean-square normalisation.
    pub d_bias: Option<B>,
}

/// f32 numbers in each workspace of [`backward`].
#[must_use]
pub fn workspace(n: usize, width: usize) -> usize {
    n.div_ceil(WARPS).min(BLOCKS) * width
}

/// Launches for the gradients of [`forward`].
///
/// # Errors
/// Same as [`forward`].
pub fn backward<B: Copy>(
    buffers: Backward<B>,
    form: Form,
    element: Element,
    n: usize,
    width: usize,
    write: Write,
) -> Result<Vec<Launch<B>>> {
    check_size("norm::backward", n, width, element)?;
    if n == 0 || width == 0 {
        return Ok(Vec::new());
    }
    let Backward { x, weight, mean, rstd, d_out, d_x, partials: [first, second], d_weight, d_bias } =
        buffers;
    let parts = n.div_ceil(WARPS).min(BLOCKS);
    let kernel = |pass| compile::Kernel::LayerNorm(Kernel { pass, element, width });
    let add = |partial, gradient| column_sums::total(partial, gradient, parts, width);
    let mut launches = vec![Launch {
        kernel: kernel(Pass::Backward { form, add: write == Write::Add }),
        cubes: [offset(parts), 1, 1],
        buffers: vec![x, weight, mean.unwrap_or(rstd), rstd, d_out, d_x, first, second],
        scalars: vec![
            Scalar::F32(1.0 / width as f32),
            Scalar::U32(offset(n)),
            Scalar::U32(offset(parts * WARPS)),
        ],
    }];
    launches.push(add(first, d_weight));
    launches.extend(d_bias.map(|d_bias| add(second, d_bias)));
    Ok(launches)
}

fn check_size(operation: &'static str, n: usize, width: usize, element: Element) -> Result<()> {
    if width > MAX_WIDTH {
        let needed = "rows may be at most 4096 elements wide: a warp keeps a row in its registers";
        return Err(check::value(operation, "width", width.to_string(), needed));
    }
    check::numbered(operation, "rows", n, width / element.lanes(width))
}
