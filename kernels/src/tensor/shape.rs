//! Element types and shapes of tensors.

use std::fmt;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit IEEE floating point.
    F32,
    /// bfloat16, the type of activations and weights on a GPU.
    Bf16,
    /// 32-bit signed integers: token ids, positions, cumulative lengths.
    I32,
    /// 8-bit unsigned integers: pixels.
    U8,
    /// 64-bit unsigned integers: hashes of target texts.
    U64,
}

impl DType {
    /// Size of one element in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
            Self::U64 => 8,
        }
    }

    /// Name of the type in messages, such as `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::U64 => "u64",
        }
    }
}

/// Up to five dimensions of a tensor, row-major and contiguous.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 5],
    rank: usize,
}

impl Shape {
    /// A shape of the given dimensions, outermost first.
    ///
    /// # Panics
    /// If there are more than five dimensions, which no operation has.
    #[must_use]
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= 5, "a tensor has at most five dimensions");
        let mut all = [0; 5];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, rank: dims.len() }
    }

    /// The dimensions, outermost first.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements: the product of the dimensions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether the shape has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}
