//! Tensors with memory behind their last element, for collectives that divide a buffer among ranks
//! in equal parts.

use super::{DType, Shape, Tensor, View, ViewMut};
use crate::Result;
use crate::device::Device;

impl Tensor {
    /// A tensor like [`Self::zeros`] whose memory holds `room` elements: its own and more zeros
    /// behind them. Collectives that divide a tensor among ranks in equal parts use them.
    ///
    /// # Errors
    /// If the device is out of memory.
    ///
    /// # Panics
    /// If `room` is smaller than the tensor.
    ///
    /// ```
    /// use vljepa_kernels::{DType, Device, Tensor};
    ///
    /// let tensor = Tensor::padded(Device::Host, DType::F32, &[5], 8)?;
    /// assert_eq!((tensor.view().len(), tensor.with_padding().len()), (5, 8));
    /// # Ok::<(), vljepa_kernels::KernelError>(())
    /// ```
    pub fn padded(device: Device, dtype: DType, shape: &[usize], room: usize) -> Result<Self> {
        let mut tensor = Self::zeros(device, dtype, &[room])?;
        let shape = Shape::new(shape);
        assert!(shape.len() <= room, "room for shape {shape:?}");
        (tensor.shape, tensor.padding) = (shape, room - shape.len());
        Ok(tensor)
    }

    /// Borrows all elements of the tensor's memory for reading, those of its padding too; see
    /// [`Self::padded`].
    ///
    /// # Panics
    /// Never: only `drop` takes the storage away.
    #[must_use]
    pub fn with_padding(&self) -> View<'_> {
        let Some(storage) = &self.storage else { unreachable!("dropped tensor") };
        let len = self.shape.len() + self.padding;
        View { storage: storage.slice(0, len), shape: Shape::new(&[len]) }
    }

    /// Borrows all elements of the tensor's memory for writing, those of its padding too; see
    /// [`Self::padded`].
    ///
    /// # Panics
    /// Never: only `drop` takes the storage away.
    #[must_use]
    pub fn with_padding_mut(&mut self) -> ViewMut<'_> {
        let Some(storage) = &mut self.storage else { unreachable!("dropped tensor") };
        let len = self.shape.len() + self.padding;
        ViewMut { storage: storage.slice_mut(0, len), shape: Shape::new(&[len]) }
    }
}
