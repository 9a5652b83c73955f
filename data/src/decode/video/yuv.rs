//! Converts eight-bit YUV planes to red, green and blue.

use ffmpeg_next::color::Space;

use super::to_usize;
use crate::decode::Region;

/// Y, U and V planes of a frame.
pub(super) struct Planes<'a> {
    /// Bytes of the Y, U and V planes.
    pub(super) data: [&'a [u8]; 3],
    /// Distance from one line to the next in each plane, in bytes.
    pub(super) strides: [usize; 3],
    /// Base-2 logarithms of the horizontal and the vertical chroma subsampling factors.
    pub(super) shift: (u32, u32),
}

/// YUV to RGB conversion in 16.16 fixed point: R = y·(Y − black) + rv·(V − 128), and likewise for G
/// and B.
pub(super) struct Matrix {
    black: i32,
    y: i32,
    rv: i32,
    gu: i32,
    gv: i32,
    bu: i32,
}

const ONE: f64 = 65_536.0;

impl Matrix {
    /// Conversion for a colour space, from the luma weights of red and blue (ITU-R BT.709, BT.2020,
    /// SMPTE 240M). Every other or unspecified space is treated as BT.601, as players do. In video
    /// range (`full_range` is false), luma is 16–235 and chroma 16–240.
    #[expect(clippy::cast_possible_truncation, reason = "below 3 · 2¹⁶")]
    pub(super) fn of(space: Space, full_range: bool) -> Self {
        let (red, blue) = match space {
            Space::BT709 => (0.2126, 0.0722),
            Space::BT2020NCL | Space::BT2020CL => (0.2627, 0.0593),
            Space::SMPTE240M => (0.212, 0.087),
            _ => (0.299, 0.114),
        };
        let green = 1.0 - red - blue;
        let (luma, chroma) = if full_range { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |value: f64| (value * ONE).round() as i32;
        Self {
            black: if full_range { 0 } else { 16 },
            y: fixed(luma),
            rv: fixed(2.0 * (1.0 - red) * chroma),
            gu: fixed(-2.0 * blue * (1.0 - blue) / green * chroma),
            gv: fixed(-2.0 * red * (1.0 - red) / green * chroma),
            bu: fixed(2.0 * (1.0 - blue) * chroma),
        }
    }

    /// What chroma adds to red, green and blue, in 16.16 fixed point.
    fn chroma(&self, u: u8, v: u8) -> [i32; 3] {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        [self.rv * v, self.gu * u + self.gv * v, self.bu * u]
    }

    /// Red, green and blue.
    fn pixel(&self, luma: u8, chroma: [i32; 3]) -> [u8; 3] {
        // Adding half of 2¹⁶ makes the shift round to the nearest integer.
        let luma = (i32::from(luma) - self.black) * self.y + (1 << 15);
        chroma.map(|chroma| {
            #[expect(clippy::cast_sign_loss, reason = "clamped")]
            let byte = ((luma + chroma) >> 16).clamp(0, 255) as u8;
            byte
        })
    }

    /// Converts a line, in which `BLOCK` pixels share one chroma value. The constant lets the
    /// compiler unroll the inner loop.
    fn line<const BLOCK: usize>(&self, luma: &[u8], u: &[u8], v: &[u8], out: &mut [[u8; 3]]) {
        let convert = |luma: &[u8], chroma: [i32; 3], out: &mut [[u8; 3]]| {
            for (out, &luma) in out.iter_mut().zip(luma) {
                *out = self.pixel(luma, chroma);
            }
        };
        let (blocks, last) = luma.as_chunks::<BLOCK>();
        let (out_blocks, out_last) = out.as_chunks_mut::<BLOCK>();
        for ((out, luma), (&u, &v)) in out_blocks.iter_mut().zip(blocks).zip(u.iter().zip(v)) {
            convert(luma, self.chroma(u, v), out);
        }
        // An incomplete block at the end of a line.
        if let (Some(&u), Some(&v)) = (u.get(blocks.len()), v.get(blocks.len())) {
            convert(last, self.chroma(u, v), out_last);
        }
    }
}

/// Converts a region of a frame to pixels, (height, width, 3). With subsampled chroma, a block of
/// pixels shares one chroma value. The region must begin at a block.
pub(super) fn to_rgb(planes: &Planes<'_>, region: Region, matrix: &Matrix) -> Vec<u8> {
    let (across, down) = planes.shift;
    let [left, top, width, height] =
        [region.left, region.top, region.width, region.height].map(to_usize);
    let chroma_width = width.div_ceil(1 << across);
    let line = |plane: usize, row: usize, first: usize, length: usize| {
        &planes.data[plane][row * planes.strides[plane] + first..][..length]
    };
    let mut pixels = vec![0; 3 * width * height];
    for (row, out) in pixels.chunks_exact_mut(3 * width).enumerate().map(|(i, out)| (top + i, out))
    {
        let luma = line(0, row, left, width);
        let u = line(1, row >> down, left >> across, chroma_width);
        let v = line(2, row >> down, left >> across, chroma_width);
        let out = out.as_chunks_mut().0;
        match across {
            0 => matrix.line::<1>(luma, u, v, out),
            1 => matrix.line::<2>(luma, u, v, out),
            _ => matrix.line::<4>(luma, u, v, out),
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::{Matrix, Planes, Region, Space, to_rgb};

    /// YUV codes of the primaries as the standards give them, for eight bits and video range.
    #[test]
    fn standard_codes_give_the_primaries() {
        let near = |space, yuv: [u8; 3], rgb: [u8; 3]| {
            let [y, u, v] = yuv;
            let matrix = Matrix::of(space, false);
            let ours = matrix.pixel(y, matrix.chroma(u, v));
            // The codes are rounded to integers. An error of half a code changes a level by up to
            // 0.5 · 255/219 + 0.5 · 1.86 · 255/224.
            ours.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= 2)
        };
        assert!(near(Space::BT709, [63, 102, 240], [255, 0, 0]));
        assert!(near(Space::BT709, [173, 42, 26], [0, 255, 0]));
        assert!(near(Space::BT709, [32, 240, 118], [0, 0, 255]));
        assert!(near(Space::Unspecified, [81, 90, 240], [255, 0, 0]));
        assert!(near(Space::Unspecified, [235, 128, 128], [255, 255, 255]));
        assert!(!near(Space::Unspecified, [63, 102, 240], [255, 0, 0]), "the wrong matrix shows");
        let full = Matrix::of(Space::BT709, true);
        assert_eq!(full.pixel(200, full.chroma(128, 128)), [200; 3]);
    }

    #[test]
    fn subsampled_chroma_covers_its_pixels_on_odd_sides_too() {
        let planes = Planes {
            data: [&[100, 100, 100, 0, 100, 100, 100, 0, 100, 100, 100], &[128, 200], &[128, 128]],
            strides: [4, 1, 1],
            shift: (2, 1),
        };
        let pixels = to_rgb(&planes, Region::whole(3, 3), &Matrix::of(Space::BT709, true));
        let blue: Vec<u8> = pixels.chunks(3).map(|pixel| pixel[2]).collect();
        // Blue of the last row: 100 + 1.8556 · (200 − 128) = 233.6.
        assert_eq!(blue, [100, 100, 100, 100, 100, 100, 234, 234, 234]);
    }
}
