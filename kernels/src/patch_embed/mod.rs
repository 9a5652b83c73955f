//! Frames cut into tubelets of patches and normalised, as rows that one linear layer embeds.
//!
//! # On a GPU
//!
//! Bytes in, bf16 out: a thread reads the three colours of eight pixels, 24 bytes, and writes 16
//! bytes to each colour's part of the row.

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

use crate::{DType, Result, Stream, View, ViewMut, check};

/// Mean and standard deviation of each colour, for pixels scaled to 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    /// Mean of each colour, which is subtracted first.
    pub mean: [f32; 3],
    /// Standard deviation of each colour, by which the difference is divided.
    pub std: [f32; 3],
}

impl Normalisation {
    /// `ImageNet`'s mean and standard deviation, as used by V-JEPA 2.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

    /// Normalised value of every byte, (byte/255 − mean)/std, for each colour.
    fn table(&self) -> Vec<[f32; 256]> {
        let value = |byte: u8, c: usize| (f32::from(byte) / 255.0 - self.mean[c]) / self.std[c];
        let row = |c| std::array::from_fn(|i| value(u8::try_from(i).unwrap_or(u8::MAX), c));
        (0..3).map(row).collect()
    }
}

/// Cuts `frames` (b, T, H, W, C) into rows of `out` (b·T/tubelet·H/patch·W/patch,
/// C·tubelet·patch·patch).
///
/// Tokens are ordered by time, then by row, then by column of patches. The elements of a token are
/// ordered by colour, frame, row and column, like the flattened weight of V-JEPA 2's `Conv3d`
/// (kernel = stride), so a linear layer with that weight is the convolution. Frames of bytes have
/// three colours and become `(byte/255 − mean)/std`. f32 frames count as normalised and may have
/// any number of colours. `out` is f32 on the host; a GPU takes frames of bytes only, and `out` may
/// also be bf16.
///
/// Source: V-JEPA 2 (arXiv 2506.09985) §2.1, `VJEPA2PatchEmbeddings3D` of transformers.
///
/// # Errors
/// When shapes or element types disagree, or frames do not divide into whole tubelets.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, patch_embed};
///
/// let normalisation = patch_embed::Normalisation { mean: [0.0; 3], std: [1.0; 3] };
/// // Two pixels, one above the other.
/// let (frames, mut out) = ([0, 51, 255, 255, 0, 51], [f32::NAN; 6]);
/// let frames = View::from_u8(&frames, &[1, 1, 2, 1, 3]);
/// let out_view = ViewMut::from_f32(&mut out, &[2, 3]);
/// patch_embed::unfold(&Stream::Host, frames, normalisation, 1, 1, out_view)?;
/// assert_eq!(out, [0.0, 0.2, 1.0, 1.0, 0.0, 0.2]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn unfold(
    stream: &Stream,
    frames: View<'_>,
    normalisation: Normalisation,
    tubelet: usize,
    patch: usize,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "patch_embed::unfold";
    let [clips, time, height, width, colours] = check::rank(NAME, "frames", frames.shape())?;
    let grid = Grid::new(NAME, [time, height, width, colours], tubelet, patch)?;
    check::shape(NAME, "out", out.shape(), &[clips * grid.tokens(), grid.elements()])?;
    match stream {
        Stream::Host => {
            let dtype = frames.dtype();
            let out = out.host_f32_mut(NAME, "out")?;
            if dtype == DType::U8 {
                let needed = [clips, time, height, width, 3];
                check::shape(NAME, "frames of bytes", frames.shape(), &needed)?;
                let table = normalisation.table();
                let frames = frames.host_u8(NAME, "frames")?;
                host::unfold(grid, frames, out, |c, byte| table[c][usize::from(byte)]);
            } else {
                host::unfold(grid, frames.host_f32(NAME, "frames")?, out, |_, value| value);
            }
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(out.dtype(), "out")?;
            let buffers = [call.at(frames, "frames", DType::U8)?, call.at(out, "out", e)?];
            let shape = [clips, time, height, width];
            call.run(launch::unfold(buffers, shape, normalisation, tubelet, patch, e)?)?;
        }),
    }
    Ok(())
}

/// Division of one clip into tokens.
#[derive(Debug, Clone, Copy)]
struct Grid {
    /// Frames of a clip.
    time: usize,
    /// Patches in a column.
    height: usize,
    /// Patches in a row.
    width: usize,
    colours: usize,
    tubelet: usize,
    patch: usize,
}

impl Grid {
    /// Grid of frames (T, H, W, C). Fails unless they divide into whole tubelets.
    fn new(
        operation: &'static str,
        [time, height, width, colours]: [usize; 4],
        tubelet: usize,
        patch: usize,
    ) -> Result<Self> {
        let fits = |n: usize, part: usize| part > 0 && n.is_multiple_of(part);
        if !(fits(time, tubelet) && fits(height, patch) && fits(width, patch)) {
            let found = format!("{time} frames of {height}×{width}");
            let needed = format!("frames must divide into tubelets of {tubelet}×{patch}×{patch}");
            return Err(check::value(operation, "frames", found, needed));
        }
        Ok(Self { time, height: height / patch, width: width / patch, colours, tubelet, patch })
    }

    /// Tokens of a clip.
    fn tokens(self) -> usize {
        self.time / self.tubelet * self.height * self.width
    }

    /// Elements of a token.
    fn elements(self) -> usize {
        self.colours * self.tubelet * self.patch * self.patch
    }
}
