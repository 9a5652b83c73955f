//! Uploads of tensors to a device that overlap with its computation.

use super::Device;
use super::cuda::{Lane, PageLocked};
use crate::{DType, Result, Tensor, View, copy};

/// A reusable buffer of host memory from which a device can copy asynchronously.
#[derive(Debug)]
pub struct UploadBuffer {
    device: Device,
    bytes: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Host(Vec<u8>),
    Cuda(PageLocked),
}

impl UploadBuffer {
    /// A buffer of `bytes` bytes for uploads to `device`. For a GPU the memory is page-locked.
    ///
    /// # Errors
    /// If the host cannot lock more memory.
    pub fn new(device: Device, bytes: usize) -> Result<Self> {
        let memory = match device {
            Device::Host => Memory::Host(vec![0; bytes]),
            Device::Cuda(cuda) => Memory::Cuda(PageLocked::new(cuda, bytes)?),
        };
        Ok(Self { device, bytes, memory })
    }

    /// Size of the buffer in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the size is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The memory, to be filled for the next upload. Waits until the last upload from it is
    /// complete.
    ///
    /// # Errors
    /// If the device failed in that upload.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        match &mut self.memory {
            Memory::Host(bytes) => Ok(bytes),
            Memory::Cuda(memory) => memory.bytes_mut(),
        }
    }
}

/// A u8 tensor whose copy to the device overlaps with the device's computation.
#[derive(Debug)]
pub struct Upload {
    // Fields drop in this order: dropping `from` waits for the copy to `tensor`.
    from: UploadBuffer,
    tensor: Tensor,
}

impl Upload {
    /// Allocates a tensor of `shape` and issues its copy from `from`. The copy starts after
    /// everything issued to the compute stream so far, because that work may still use the tensor's
    /// memory. On the host the copy is complete when this function returns.
    ///
    /// # Errors
    /// If the size of `from` differs from that of the tensor, or if the device is out of memory or
    /// fails.
    pub fn begin(mut from: UploadBuffer, shape: &[usize]) -> Result<Self> {
        let mut tensor = Tensor::new(from.device, DType::U8, shape)?;
        match &mut from.memory {
            Memory::Host(bytes) => {
                let stream = from.device.compute_stream();
                copy::copy(&stream, View::from_u8(bytes, &[bytes.len()]), tensor.view_mut())?;
            }
            Memory::Cuda(memory) => {
                let copies = memory.stream(Lane::Copy);
                copies.wait_for(memory.stream(Lane::Compute))?;
                memory.send(copies, tensor.view_mut())?;
            }
        }
        Ok(Self { from, tensor })
    }

    /// Returns the tensor and the buffer. Work issued to the compute stream after this call waits
    /// for the copy.
    ///
    /// # Errors
    /// If the device fails.
    pub fn arrive(self) -> Result<(Tensor, UploadBuffer)> {
        match &self.from.memory {
            Memory::Host(_) => {}
            Memory::Cuda(memory) => memory.hold_up(memory.stream(Lane::Compute))?,
        }
        Ok((self.tensor, self.from))
    }
}

#[cfg(test)]
mod tests {
    use super::{Upload, UploadBuffer};
    #[cfg(feature = "cuda")]
    use crate::attention::launch::Mode;
    #[cfg(feature = "cuda")]
    use crate::device::cuda::{Cuda, Lane, Order};
    use crate::{DType, Device, Tensor, copy};

    fn devices() -> Vec<Device> {
        vec![
            Device::Host,
            #[cfg(feature = "cuda")]
            Device::Cuda(Cuda::for_tests(Mode::Fast)),
        ]
    }

    fn bytes_of(tensor: &Tensor, device: Device) -> Vec<u8> {
        let mut read = Tensor::zeros(Device::Host, DType::U8, tensor.shape()).unwrap();
        copy::copy(&device.compute_stream(), tensor.view(), read.view_mut()).unwrap();
        read.view().host_u8("test", "read").unwrap().to_vec()
    }

    #[test]
    fn two_uploads_from_one_buffer_bring_what_it_held_each_time() {
        for device in devices() {
            let shape = [3, 70_001];
            let mut buffer = UploadBuffer::new(device, 3 * 70_001).unwrap();
            let mut arrived = Vec::new();
            for value in [7, 9] {
                buffer.bytes_mut().unwrap().fill(value);
                let (tensor, from) = Upload::begin(buffer, &shape).unwrap().arrive().unwrap();
                assert_eq!(tensor.shape(), shape);
                arrived.push((value, tensor));
                buffer = from;
            }
            for (value, tensor) in arrived {
                assert_eq!(bytes_of(&tensor, device), vec![value; 3 * 70_001]);
            }
        }
    }

    #[test]
    fn a_batch_of_texts_has_no_frames_to_upload() {
        for device in devices() {
            let mut buffer = UploadBuffer::new(device, 0).unwrap();
            for _ in 0..2 {
                assert_eq!(buffer.bytes_mut().unwrap().len(), 0);
                let (tensor, from) = Upload::begin(buffer, &[3, 0]).unwrap().arrive().unwrap();
                assert_eq!(tensor.shape(), [3, 0]);
                buffer = from;
            }
        }
    }

    #[test]
    fn another_number_of_bytes_is_refused() {
        for device in devices() {
            let buffer = UploadBuffer::new(device, 5).unwrap();
            assert!(Upload::begin(buffer, &[2, 3]).is_err());
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn the_copy_waits_for_what_was_issued_before_and_holds_up_only_what_needs_it() {
        let cuda = Cuda::recording(1 << 30, Mode::Fast);
        let device = Device::Cuda(cuda);
        let buffer = UploadBuffer::new(device, 1000).unwrap();
        let upload = Upload::begin(buffer, &[1000]).unwrap();
        let mut other = Tensor::zeros(device, DType::F32, &[10]).unwrap();
        let values = crate::View::from_f32(&[1.0; 10], &[10]);
        copy::copy(&device.compute_stream(), values, other.view_mut()).unwrap();
        let _arrived = upload.arrive().unwrap();
        let orders = cuda.take_record().unwrap().orders;
        let order = |(lane, order): &(Lane, Order)| match order {
            Order::Wait(other) => Some(format!("{lane:?} waits for {other:?}")),
            Order::Upload(to) => Some(format!("{lane:?} uploads {}", to.bytes)),
            _ => None,
        };
        let issued: Vec<String> = orders.iter().filter_map(order).collect();
        assert_eq!(
            issued,
            [
                "Copy waits for Compute",
                "Copy uploads 1000",
                "Compute uploads 40",
                "Compute waits for Copy",
            ]
        );
    }
}
