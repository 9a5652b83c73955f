//! The functions of libjpeg-turbo that decode a part of a JPEG.
#![expect(unsafe_code, reason = "the crate turbojpeg cannot decode a part of a picture")]

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use turbojpeg_sys as tj;

use crate::decode::Region;

/// Decoder of one JPEG, whose header has been read.
pub(super) struct Decoder<'a> {
    handle: NonNull<std::ffi::c_void>,
    jpeg: &'a [u8],
    /// Length of `jpeg`.
    length: tj::size_t,
    size: (u32, u32),
}

impl<'a> Decoder<'a> {
    /// Reads the header of a JPEG. A progressive JPEG may have at most `scan_limit` scans.
    pub(super) fn new(jpeg: &'a [u8], scan_limit: u16) -> Result<Self, String> {
        // SAFETY: The function takes any number. The result is null if it fails.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS.cast_signed()) };
        let handle = NonNull::new(handle).ok_or("libjpeg-turbo cannot be initialised")?;
        let length = tj::size_t::try_from(jpeg.len()).map_err(|error| error.to_string())?;
        // From here on, dropping `decoder` frees the handle.
        let mut decoder = Self { handle, jpeg, length, size: (0, 0) };
        let limit = tj::TJPARAM_TJPARAM_SCANLIMIT.cast_signed();
        // SAFETY: `handle` is a handle, and the function takes any numbers.
        let set = unsafe { tj::tj3Set(handle.as_ptr(), limit, c_int::from(scan_limit)) };
        decoder.checked(set)?;
        // SAFETY: `handle` is a handle, and the function reads no byte behind the end of `jpeg`.
        let read = unsafe { tj::tj3DecompressHeader(handle.as_ptr(), jpeg.as_ptr(), length) };
        decoder.checked(read)?;
        let size = [tj::TJPARAM_TJPARAM_JPEGWIDTH, tj::TJPARAM_TJPARAM_JPEGHEIGHT];
        let [width, height] = size.map(|side| u32::try_from(decoder.parameter(side)).unwrap_or(0));
        decoder.size = (width, height);
        Ok(decoder)
    }

    /// Width and height of the picture in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Whether the colours are cyan, magenta, yellow and black.
    pub(super) fn is_cmyk(&self) -> bool {
        let space = self.parameter(tj::TJPARAM_TJPARAM_COLORSPACE);
        [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK].map(u32::cast_signed).contains(&space)
    }

    /// Whether the library knows the arrangement of the colours, which decoding a part needs.
    pub(super) fn knows_subsampling(&self) -> bool {
        self.parameter(tj::TJPARAM_TJPARAM_SUBSAMP) != tj::TJSAMP_TJSAMP_UNKNOWN
    }

    /// Decodes a region, or the whole picture if `region` is `None`: the pixels row by row, as
    /// red, green and blue, or as cyan, magenta, yellow and black. A warning of the library is an
    /// error, because it fills damaged or missing parts with grey.
    pub(super) fn decode(&mut self, region: Option<Region>) -> Result<Vec<u8>, String> {
        let number = |value: u32| {
            c_int::try_from(value).map_err(|_| format!("a side of {value} pixels is too long"))
        };
        let (mut width, mut height) = self.size;
        if let Some(region) = region {
            (width, height) = (region.width, region.height);
            let region = tj::tjregion {
                x: number(region.left)?,
                y: number(region.top)?,
                w: number(region.width)?,
                h: number(region.height)?,
            };
            // SAFETY: The handle is valid. The function refuses regions outside of the picture.
            let set = unsafe { tj::tj3SetCroppingRegion(self.handle.as_ptr(), region) };
            self.checked(set)?;
        }
        if width == 0 || height == 0 {
            return Err("a region without pixels cannot be decoded".to_owned());
        }
        let (format, bytes) =
            if self.is_cmyk() { (tj::TJPF_TJPF_CMYK, 4) } else { (tj::TJPF_TJPF_RGB, 3) };
        let pitch = number(width.saturating_mul(bytes))?;
        let length = u64::from(width) * u64::from(height) * u64::from(bytes);
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        let mut pixels = vec![0; length];
        // SAFETY: The handle is valid, and the function reads no byte behind the end of `jpeg`. It
        // writes `height` rows of `pitch` bytes: those of the region, or of the picture whose size
        // the same bytes gave to this handle in `new`. That is the length of `pixels`.
        let decoded = unsafe {
            tj::tj3Decompress8(
                self.handle.as_ptr(),
                self.jpeg.as_ptr(),
                self.length,
                pixels.as_mut_ptr(),
                pitch,
                format,
            )
        };
        self.checked(decoded)?;
        Ok(pixels)
    }

    fn parameter(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: The handle is valid, and the function takes any number.
        unsafe { tj::tj3Get(self.handle.as_ptr(), parameter.cast_signed()) }
    }

    /// The library's message if a function did not return 0.
    fn checked(&self, result: c_int) -> Result<(), String> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: The handle is valid. The result is a NUL-terminated string in the handle, which
        // is copied before the next call.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.handle.as_ptr())) };
        Err(text.to_string_lossy().into_owned())
    }
}

impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: The handle is valid, and nothing uses it after this call.
        unsafe { tj::tj3Destroy(self.handle.as_ptr()) };
    }
}
