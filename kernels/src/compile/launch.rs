//! One call of one kernel.

use super::Kernel;

/// A kernel with what one call gives it. `B` is how a buffer is named: a device address on a GPU, a number in tests.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<B> {
    /// What runs.
    pub kernel: Kernel,
    /// How many cubes (blocks) in x, y and z.
    pub cubes: [u32; 3],
    /// Buffers in the order of the kernel's arguments.
    pub buffers: Vec<B>,
    /// Scalars in the order of the kernel's arguments.
    pub scalars: Vec<Scalar>,
}

/// A scalar argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    /// `f32`.
    F32(f32),
    /// `u32`.
    U32(u32),
}

/// The structure behind the buffers as bytes: f32 scalars, u32 scalars, then one length per buffer, each group filled up to
/// 8 bytes. Kernels never read the lengths: they are zero here.
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

/// A number of elements, rows or vectors as kernels count them.
///
/// # Panics
/// At 2³² and above; operations refuse such sizes before they make launches.
pub(crate) fn offset(count: usize) -> u32 {
    u32::try_from(count).expect("sizes are checked against 32-bit offsets")
}

/// Cubes that cover `count` things, `each` per cube.
pub(crate) fn cubes(count: usize, each: usize) -> u32 {
    offset(count.div_ceil(each))
}
