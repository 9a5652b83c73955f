//! Host memory: vectors of one element type, and slices of them.

use crate::{DType, KernelError, Result};

macro_rules! host_types {
    ($($variant:ident, $ty:ty, $doc:literal);+) => {
        /// Owned host memory with one element type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum HostBuffer { $(#[doc = $doc] $variant(Vec<$ty>)),+ }

        /// A borrowed range of host memory, for reading.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum HostSlice<'a> { $(#[doc = $doc] $variant(&'a [$ty])),+ }

        /// A borrowed range of host memory, for writing.
        #[derive(Debug, PartialEq)]
        pub enum HostSliceMut<'a> { $(#[doc = $doc] $variant(&'a mut [$ty])),+ }

        impl HostBuffer {
            /// Zeroed memory for `len` elements.
            #[must_use]
            pub fn zeros(dtype: DType, len: usize) -> Self {
                match dtype { $(DType::$variant => Self::$variant(vec![<$ty>::default(); len])),+ }
            }

            /// Asks the operating system for memory for `len` elements, without keeping it.
            ///
            /// # Errors
            /// If it refuses. [`Self::zeros`] would end the process then.
            pub fn reserve(dtype: DType, len: usize) -> Result<()> {
                match dtype {
                    $(DType::$variant => Vec::<$ty>::new().try_reserve_exact(len)),+
                }
                .map_err(|_| KernelError::HostMemory { wanted: len.saturating_mul(dtype.bytes()) })
            }

            /// Element type of the memory.
            #[must_use]
            pub fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),+ }
            }

            /// Borrows the elements `start..end` for reading.
            #[must_use]
            pub fn slice(&self, start: usize, end: usize) -> HostSlice<'_> {
                match self { $(Self::$variant(v) => HostSlice::$variant(&v[start..end])),+ }
            }

            /// Borrows the elements `start..end` for writing.
            #[must_use]
            pub fn slice_mut(&mut self, start: usize, end: usize) -> HostSliceMut<'_> {
                match self { $(Self::$variant(v) => HostSliceMut::$variant(&mut v[start..end])),+ }
            }
        }

        impl<'a> HostSlice<'a> {
            /// Element type of the slice.
            #[must_use]
            pub fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),+ }
            }

            /// The elements as bytes, in native byte order.
            #[must_use]
            pub fn bytes(self) -> &'a [u8] {
                match self { $(Self::$variant(v) => bytemuck::cast_slice(v)),+ }
            }

            /// Elements `start..end` of this slice.
            #[must_use]
            pub fn range(self, start: usize, end: usize) -> HostSlice<'a> {
                match self { $(Self::$variant(v) => Self::$variant(&v[start..end])),+ }
            }
        }

        impl<'a> HostSliceMut<'a> {
            /// Element type of the slice.
            #[must_use]
            pub fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),+ }
            }

            /// Elements `start..end` of this slice.
            #[must_use]
            pub fn range(self, start: usize, end: usize) -> HostSliceMut<'a> {
                match self { $(Self::$variant(v) => Self::$variant(&mut v[start..end])),+ }
            }

            /// The elements as mutable bytes, in native byte order.
            #[must_use]
            pub fn bytes(self) -> &'a mut [u8] {
                match self { $(Self::$variant(v) => bytemuck::cast_slice_mut(v)),+ }
            }

            /// Copies the elements of `from`, which must have the same type and length.
            ///
            /// # Panics
            /// If the type or the length differs.
            pub fn copy_from(self, from: HostSlice<'_>) {
                match (self, from) {
                    $((Self::$variant(to), HostSlice::$variant(from)) => to.copy_from_slice(from),)+
                    _ => panic!("copies are between elements of one type"),
                }
            }

            /// Splits the slice into the elements before `middle` and the rest.
            #[must_use]
            pub fn split_at(self, middle: usize) -> (HostSliceMut<'a>, HostSliceMut<'a>) {
                match self {
                    $(Self::$variant(v) => {
                        let (before, after) = v.split_at_mut(middle);
                        (Self::$variant(before), Self::$variant(after))
                    })+
                }
            }

            /// Borrows the same memory for writing, with a shorter lifetime.
            #[must_use]
            pub fn reborrow(&mut self) -> HostSliceMut<'_> {
                match self { $(Self::$variant(v) => HostSliceMut::$variant(v)),+ }
            }

            /// Converts the borrow into one for reading, with the same lifetime.
            #[must_use]
            pub fn into_ref(self) -> HostSlice<'a> {
                match self { $(Self::$variant(v) => HostSlice::$variant(v)),+ }
            }

            /// Borrows the same memory for reading.
            #[must_use]
            pub fn as_ref(&self) -> HostSlice<'_> {
                match self { $(Self::$variant(v) => HostSlice::$variant(v)),+ }
            }
        }
    };
}

host_types! {
    F32, f32, "32-bit IEEE floating point.";
    Bf16, half::bf16, "bfloat16, a 16-bit float.";
    I32, i32, "32-bit signed integers.";
    U8, u8, "Bytes, such as pixels.";
    U64, u64, "64-bit unsigned integers, such as hashes of texts."
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device, KernelError, Tensor};

    #[test]
    fn a_tensor_that_no_machine_has_memory_for_is_an_error() {
        // 2^60 bytes: more than any address space has.
        let refused = Tensor::zeros(Device::Host, DType::F32, &[1 << 58]).unwrap_err();
        assert!(matches!(refused, KernelError::HostMemory { wanted } if wanted == 1 << 60));
        assert!(Tensor::zeros(Device::Host, DType::F32, &[1 << 10]).is_ok());
    }
}
