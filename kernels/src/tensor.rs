//! Tensors own memory on a device, with an element type and a shape; views borrow it for
//! operations.

mod padding;
mod shape;

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;

use crate::device::cuda::{CudaStream, Lane};
use crate::device::{Arena, Device, HostBuffer, HostSlice, HostSliceMut, Storage, StorageMut};
use crate::device::{StorageRef, Stream};
use crate::{KernelError, Result, parallel};

pub use shape::{DType, Shape};

/// Memory on a device with an element type and a shape. The memory of a tensor that was taken from
/// an arena returns there when the tensor is dropped.
#[derive(Debug)]
pub struct Tensor {
    storage: Option<Storage>,
    shape: Shape,
    /// Number of elements after the last one of the shape.
    padding: usize,
    dtype: DType,
    home: Option<Arena>,
}

/// A tensor borrowed for reading; cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    storage: StorageRef<'a>,
    shape: Shape,
}

/// A tensor borrowed for writing.
#[derive(Debug)]
pub struct ViewMut<'a> {
    storage: StorageMut<'a>,
    shape: Shape,
}

macro_rules! host_access {
    ($($variant:ident, $ty:ty, $vec:ident, $read:ident, $write:ident);+) => {
        impl Tensor {
            $(
                #[doc = concat!("A host tensor that owns `values` (", stringify!($ty), ").")]
                ///
                /// # Panics
                /// If the number of values differs from that of the shape.
                #[must_use]
                pub fn $vec(values: Vec<$ty>, shape: &[usize]) -> Self {
                    let shape = Shape::new(shape);
                    assert_eq!(values.len(), shape.len(), "values do not fill shape {shape:?}");
                    let storage = Some(Storage::Host(HostBuffer::$variant(values)));
                    Self { storage, shape, padding: 0, dtype: DType::$variant, home: None }
                }
            )+
        }

        impl<'a> View<'a> {
            $(
                #[doc = concat!("The elements as a slice of ", stringify!($ty), ".")]
                ///
                /// # Errors
                /// If the elements have another type or are on another device.
                pub fn $read(self, operation: &'static str, what: &'static str) -> Result<&'a [$ty]> {
                    match self.storage {
                        StorageRef::Host(HostSlice::$variant(values)) => Ok(values),
                        StorageRef::Host(other) => Err(KernelError::DType {
                            operation, what, found: other.dtype().name(), needed: stringify!($ty),
                        }),
                        _ => Err(KernelError::Device { operation, what }),
                    }
                }
            )+
        }

        impl<'a> ViewMut<'a> {
            $(
                #[doc = concat!("The elements as a mutable slice of ", stringify!($ty), ".")]
                ///
                /// # Errors
                /// If the elements have another type or are on another device.
                pub fn $write(self, operation: &'static str, what: &'static str) -> Result<&'a mut [$ty]> {
                    match self.storage {
                        StorageMut::Host(HostSliceMut::$variant(values)) => Ok(values),
                        StorageMut::Host(other) => Err(KernelError::DType {
                            operation, what, found: other.dtype().name(), needed: stringify!($ty),
                        }),
                        _ => Err(KernelError::Device { operation, what }),
                    }
                }
            )+
        }

        $(
            impl<'a> View<'a> {
                #[doc = concat!("A view of host memory (", stringify!($ty), ").")]
                ///
                /// # Panics
                /// If the number of values differs from that of the shape.
                #[must_use]
                pub fn $vec(values: &'a [$ty], shape: &[usize]) -> Self {
                    let shape = Shape::new(shape);
                    assert_eq!(values.len(), shape.len(), "values do not fill shape {shape:?}");
                    Self { storage: StorageRef::Host(HostSlice::$variant(values)), shape }
                }
            }

            impl<'a> ViewMut<'a> {
                #[doc = concat!("A mutable view of host memory (", stringify!($ty), ").")]
                ///
                /// # Panics
                /// If the number of values differs from that of the shape.
                #[must_use]
                pub fn $vec(values: &'a mut [$ty], shape: &[usize]) -> Self {
                    let shape = Shape::new(shape);
                    assert_eq!(values.len(), shape.len(), "values do not fill shape {shape:?}");
                    Self { storage: StorageMut::Host(HostSliceMut::$variant(values)), shape }
                }
            }
        )+
    };
}

host_access! {
    F32, f32, from_f32, host_f32, host_f32_mut;
    Bf16, half::bf16, from_bf16, host_bf16, host_bf16_mut;
    I32, i32, from_i32, host_i32, host_i32_mut;
    U8, u8, from_u8, host_u8, host_u8_mut;
    U64, u64, from_u64, host_u64, host_u64_mut
}

impl Tensor {
    pub(crate) fn from_arena(storage: Storage, shape: &[usize], home: Arena) -> Self {
        let dtype = storage.dtype();
        let shape = Shape::new(shape);
        Self { storage: Some(storage), shape, padding: 0, dtype, home: Some(home) }
    }

    /// A tensor outside of any arena. Its elements are undefined on a GPU and zeros on the host.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub(crate) fn new(device: Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::new(shape);
        let storage = Some(Storage::new(device, dtype, shape.len())?);
        Ok(Self { storage, shape, padding: 0, dtype, home: None })
    }

    /// A tensor of zeros outside of any arena, for parameters and other memory that lives as long
    /// as the run.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn zeros(device: Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let mut tensor = Self::new(device, dtype, shape)?;
        if device == Device::Host {
            return Ok(tensor);
        }
        tensor.view_mut().fill_zero(&device.compute_stream())?;
        Ok(tensor)
    }

    /// Moves a host tensor to `device`. If `device` is the host, returns the tensor itself. On a
    /// GPU, the copy is ready for operations that are issued to the compute stream.
    ///
    /// # Errors
    /// If the device is out of memory or fails.
    pub fn on(self, device: Device) -> Result<Self> {
        match device {
            Device::Host => Ok(self),
            Device::Cuda(cuda) => {
                let stream = CudaStream::new(cuda, Lane::Compute);
                let mut there = stream.scratch(self.dtype, self.shape.len())?;
                there.shape = self.shape;
                crate::copy::copy(&Stream::Cuda(stream), self.view(), there.view_mut())?;
                Ok(there)
            }
        }
    }

    /// Element type of the tensor.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions of the tensor, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Borrows the tensor for reading.
    ///
    /// # Panics
    /// Never: only `drop` takes the storage away.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        let Some(storage) = &self.storage else { unreachable!("dropped tensor") };
        View { storage: storage.slice(0, self.shape.len()), shape: self.shape }
    }

    /// Borrows the tensor for writing.
    ///
    /// # Panics
    /// Never: only `drop` takes the storage away.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let Some(storage) = &mut self.storage else { unreachable!("dropped tensor") };
        ViewMut { storage: storage.slice_mut(0, self.shape.len()), shape: self.shape }
    }

    /// The same memory under another shape with the same number of elements.
    ///
    /// # Panics
    /// If the number of elements differs.
    #[must_use]
    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        let shape = Shape::new(shape);
        assert_eq!(shape.len(), self.shape.len(), "reshape keeps the number of elements");
        self.shape = shape;
        self
    }

    /// The elements as `f32`; see [`View::to_f32`].
    ///
    /// # Errors
    /// If the elements are neither f32 nor bf16, or the device failed.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        self.view().to_f32()
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let (Some(arena), Some(storage)) = (self.home.take(), self.storage.take()) {
            arena.give_back(storage, self.shape.len());
        }
    }
}

impl<'a> From<ViewMut<'a>> for View<'a> {
    fn from(tensor: ViewMut<'a>) -> Self {
        Self { storage: tensor.storage.into_ref(), shape: tensor.shape }
    }
}

impl<'a> View<'a> {
    /// The elements of an f32 or bf16 tensor as `f32`. Elements in f32 on the host are borrowed.
    /// Elements on a GPU are read back after everything that has been issued to its compute stream.
    ///
    /// # Errors
    /// If the elements are neither f32 nor bf16, or the device failed.
    pub fn to_f32(self) -> Result<Cow<'a, [f32]>> {
        let widened = |values: &[half::bf16]| {
            let mut wide = vec![0.0; values.len()];
            parallel::blocks(values.len(), (&mut wide[..], parallel::BLOCK), |i, wide| {
                values[i * parallel::BLOCK..][..wide.len()].convert_to_f32_slice(wide);
            });
            wide
        };
        match self.storage {
            StorageRef::Host(HostSlice::F32(values)) => Ok(Cow::Borrowed(values)),
            StorageRef::Host(HostSlice::Bf16(values)) => Ok(Cow::Owned(widened(values))),
            StorageRef::Host(_) => {
                let (operation, what) = ("to_f32", "tensor");
                let (found, needed) = (self.dtype().name(), "f32 or bf16");
                Err(KernelError::DType { operation, what, found, needed })
            }
            StorageRef::Cuda(slice) => {
                let mut here = HostBuffer::zeros(self.dtype(), self.len());
                let to = StorageMut::Host(here.slice_mut(0, self.len()));
                let stream = Device::Cuda(slice.cuda()).compute_stream();
                crate::copy::copy(&stream, self, ViewMut { storage: to, shape: self.shape })?;
                let here = View { storage: StorageRef::Host(here.slice(0, self.len())), ..self };
                Ok(Cow::Owned(here.to_f32()?.into_owned()))
            }
        }
    }

    /// The device that holds the elements.
    #[must_use]
    pub fn device(self) -> Device {
        match self.storage {
            StorageRef::Host(_) => Device::Host,
            StorageRef::Cuda(slice) => Device::Cuda(slice.cuda()),
        }
    }

    /// The range of GPU memory that holds the elements, for libraries that read or write it
    /// themselves. `None` in host memory.
    #[must_use]
    pub fn region(self) -> Option<crate::device::cuda::Region> {
        match self.storage {
            StorageRef::Host(_) => None,
            StorageRef::Cuda(slice) => Some(slice.region()),
        }
    }

    pub(crate) fn storage(self) -> StorageRef<'a> {
        self.storage
    }

    /// Dimensions of the view, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of elements of the view.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether the view has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Element type of the view.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// A contiguous part of this view: elements `start..start + shape.len()` under `shape`.
    ///
    /// # Panics
    /// If the range exceeds the view.
    #[must_use]
    pub fn part(self, start: usize, shape: &[usize]) -> View<'a> {
        let shape = Shape::new(shape);
        View { storage: self.storage.range(start, start + shape.len()), shape }
    }

    /// Rows `start..end` of the first dimension.
    ///
    /// # Panics
    /// If the range exceeds the view.
    #[must_use]
    pub fn rows(self, start: usize, end: usize) -> View<'a> {
        let mut dims = self.shape.dims().to_vec();
        let width: usize = dims[1..].iter().product();
        dims[0] = end - start;
        self.part(start * width, &dims)
    }

    /// The same memory under another shape with the same number of elements.
    ///
    /// # Panics
    /// If the number of elements differs.
    #[must_use]
    pub fn reshaped(self, shape: &[usize]) -> View<'a> {
        let shape = Shape::new(shape);
        assert_eq!(shape.len(), self.shape.len(), "reshape keeps the number of elements");
        View { storage: self.storage, shape }
    }
}

impl<'a> ViewMut<'a> {
    /// Replaces all elements of an f32 tensor. `fill` receives host memory of the same length and
    /// must write every element.
    ///
    /// # Errors
    /// If `fill` fails, if the elements have another type, or if the device fails.
    pub fn write_f32<T, E: From<KernelError>>(
        self,
        fill: impl FnOnce(&mut [f32]) -> Result<T, E>,
    ) -> Result<T, E> {
        if let StorageMut::Cuda(slice) = &self.storage {
            let stream = Device::Cuda(slice.as_ref().cuda()).compute_stream();
            let mut values = vec![0.0; self.len()];
            let result = fill(&mut values)?;
            let shape = self.shape;
            crate::copy::copy(&stream, View::from_f32(&values, shape.dims()), self)?;
            return Ok(result);
        }
        fill(self.host_f32_mut("write_f32", "tensor")?)
    }

    pub(crate) fn storage(self) -> StorageMut<'a> {
        self.storage
    }

    /// Dimensions of the view, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of elements of the view.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether the view has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Element type of the view.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.storage.as_ref().dtype()
    }

    /// A mutable view of the same tensor with a shorter lifetime.
    #[must_use]
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { storage: self.storage.reborrow(), shape: self.shape }
    }

    /// A view of the same tensor for reading.
    #[must_use]
    pub fn as_view(&self) -> View<'_> {
        View { storage: self.storage.as_ref(), shape: self.shape }
    }

    /// A contiguous part of this view: elements `start..start + shape.len()` under `shape`.
    ///
    /// # Panics
    /// If the range exceeds the view.
    #[must_use]
    pub fn part(self, start: usize, shape: &[usize]) -> ViewMut<'a> {
        let shape = Shape::new(shape);
        ViewMut { storage: self.storage.range(start, start + shape.len()), shape }
    }

    /// Rows `start..end` of the first dimension.
    ///
    /// # Panics
    /// If the range exceeds the view.
    #[must_use]
    pub fn rows(self, start: usize, end: usize) -> ViewMut<'a> {
        let mut dims = self.shape.dims().to_vec();
        let width: usize = dims[1..].iter().product();
        dims[0] = end - start;
        self.part(start * width, &dims)
    }

    /// The same memory under another shape with the same number of elements.
    ///
    /// # Panics
    /// If the number of elements differs.
    #[must_use]
    pub fn reshaped(self, shape: &[usize]) -> ViewMut<'a> {
        let shape = Shape::new(shape);
        assert_eq!(shape.len(), self.shape.len(), "reshape keeps the number of elements");
        ViewMut { storage: self.storage, shape }
    }

    /// Splits the tensor into the elements before `middle` and the rest, each with one dimension.
    /// Both halves can be written although they share a buffer.
    ///
    /// # Panics
    /// If `middle` exceeds the number of elements.
    #[must_use]
    pub fn split_at(self, middle: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        let len = self.shape.len();
        let (before, after) = self.storage.split_at(middle);
        let view = |storage, len| ViewMut { storage, shape: Shape::new(&[len]) };
        (view(before, middle), view(after, len - middle))
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// If the elements are on another device than `stream`, or the device fails.
    pub fn fill_zero(self, stream: &Stream) -> Result<()> {
        let wrong = KernelError::Device { operation: "fill_zero", what: "tensor" };
        match (stream, self.storage) {
            (Stream::Host, StorageMut::Host(slice)) => match slice {
                HostSliceMut::F32(v) => v.fill(0.0),
                HostSliceMut::Bf16(v) => v.fill(half::bf16::ZERO),
                HostSliceMut::I32(v) => v.fill(0),
                HostSliceMut::U8(v) => v.fill(0),
                HostSliceMut::U64(v) => v.fill(0),
            },
            (Stream::Cuda(stream), StorageMut::Cuda(slice)) => {
                if !std::ptr::eq(slice.as_ref().cuda(), stream.cuda()) {
                    return Err(wrong);
                }
                stream.fill_zero(slice.as_ref().region())?;
            }
            _ => return Err(wrong),
        }
        Ok(())
    }
}
