//! The kernel that unfolds patches, and its launch.
//!
//! Floor: memory. Per value 1 byte is read and 2 are written: 4.7 MB and 9.4 MB for a clip of 8
//! frames of 256×256 and two duplicates. A thread reads the three colours of eight neighbouring
//! pixels, 24 bytes in six words, and writes 16 bytes for each colour. Frames never exist as
//! floating-point numbers in memory. Patches whose width no vector divides take one pixel per
//! thread.

use super::cube::patch_unfold::PatchUnfold;
use super::{Grid, Normalisation};
use crate::compile::{
    self, CompileError, Element, Emit, Launch, Scalar, Source, cubes, emit, offset,
};
use crate::{Result, check};

/// Threads per block of every kernel here.
const THREADS: usize = 256;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// Frames of a token.
    pub tubelet: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Element type of the rows.
    pub element: Element,
}

impl Kernel {
    /// Pixels of a vector.
    fn lanes(self) -> usize {
        self.element.lanes(self.patch)
    }

    pub(crate) fn name(self) -> String {
        format!("patch_unfold_{}x{}_{}", self.tubelet, self.patch, self.element.name())
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        match self.element {
            Element::F32 => self.emit_as::<f32>(name),
            Element::Bf16 => self.emit_as::<half::bf16>(name),
        }
    }

    fn emit_as<F: cubecl::prelude::Float>(self, name: &str) -> Result<Source, CompileError> {
        let e = Emit::new(offset(THREADS));
        emit!(
            e, name, PatchUnfold::<F>: [frames out]
            [scale0 scale1 scale2 shift0 shift1 shift2 count height width],
            self.lanes(), offset(self.tubelet), offset(self.patch), self.lanes(),
        )
    }
}

/// Launch that writes the rows `out` of `frames`, u8 (b, T, H, W, 3); see
/// [`unfold`](super::unfold). The buffer of `frames` must end at a multiple of 4 bytes.
///
/// # Errors
/// When frames do not divide into whole tubelets, or the values are too many for 32-bit offsets.
pub fn unfold<B: Copy>(
    [frames, out]: [B; 2],
    [clips, time, height, width]: [usize; 4],
    normalisation: Normalisation,
    tubelet: usize,
    patch: usize,
    element: Element,
) -> Result<Vec<Launch<B>>> {
    const NAME: &str = "patch_embed::unfold";
    let Grid { height, width, .. } = Grid::new(NAME, [time, height, width, 3], tubelet, patch)?;
    let pixels = (clips * time).saturating_mul(height * patch * width * patch);
    if pixels.saturating_mul(3) >= 1 << 32 {
        let needed = "the values of all frames must stay below 2^32 (32-bit offsets)";
        return Err(check::value(NAME, "clips", clips.to_string(), needed));
    }
    if pixels == 0 {
        return Ok(Vec::new());
    }
    let kernel = Kernel { tubelet, patch, element };
    let count = pixels / kernel.lanes();
    let Normalisation { mean, std } = normalisation;
    let mut scalars: Vec<Scalar> = std.map(|std| Scalar::F32(1.0 / (255.0 * std))).to_vec();
    scalars.extend(mean.iter().zip(std).map(|(mean, std)| Scalar::F32(-mean / std)));
    scalars.extend([count, height, width].map(|x| Scalar::U32(offset(x))));
    Ok(vec![Launch {
        kernel: compile::Kernel::PatchEmbed(kernel),
        cubes: [cubes(count, THREADS), 1, 1],
        buffers: vec![frames, out],
        scalars,
    }])
}
