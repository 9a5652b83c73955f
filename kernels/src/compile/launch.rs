//! The launch of a kernel: one call with its arguments.

use super::Kernel;

/// A kernel and the arguments of one call. `B` identifies a buffer: a device address on a GPU, a
/// number in tests.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<B> {
    /// The kernel to run.
    pub kernel: Kernel,
    /// Number of blocks of the grid in x, y and z (CubeCL calls a block a cube).
    pub cubes: [u32; 3],
    /// Buffers in the order of the kernel's arguments.
    pub buffers: Vec<B>,
    /// Scalars in the order of the kernel's arguments.
    pub scalars: Vec<Scalar>,
}

/// A scalar argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    /// An argument of type `f32`.
    F32(f32),
    /// An argument of type `u32`.
    U32(u32),
}

/// Bytes of the structure that follows the buffers: f32 scalars, u32 scalars, then one length per
/// buffer, each group padded to a multiple of 8 bytes. Kernels never read the lengths, so they are
/// zero here.
#[must_use]
pub fn pack(buffers: usize, scalars: &[Scalar]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut group = |values: Vec<[u8; 4]>| {
        bytes.extend(values.into_iter().flatten());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    let floats = scalars.iter().filter_map(|s| match s {
        Scalar::F32(x) => Some(x.to_le_bytes()),
        Scalar::U32(_) => None,
    });
    let integers = scalars.iter().filter_map(|s| match s {
        Scalar::U32(x) => Some(x.to_le_bytes()),
        Scalar::F32(_) => None,
    });
    group(floats.collect());
    group(integers.collect());
    group(vec![[0; 4]; buffers]);
    bytes
}

/// Converts a number of elements, rows or vectors to the type in which kernels count.
///
/// # Panics
/// If `count` is 2³² or more. Operations refuse such sizes before they make launches.
pub(crate) fn offset(count: usize) -> u32 {
    u32::try_from(count).expect("sizes are checked against 32-bit offsets")
}

/// Number of blocks that cover `count` items with `each` items per block.
pub(crate) fn cubes(count: usize, each: usize) -> u32 {
    offset(count.div_ceil(each))
}
