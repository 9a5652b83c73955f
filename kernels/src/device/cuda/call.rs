//! What one call of an operation does on a GPU: its tensors' addresses, its workspaces, its launches.

use super::{CudaStream, Region};
use crate::compile::{Element, Launch};
use crate::device::{HostSlice, StorageRef};
use crate::{DType, KernelError, Result, Tensor, View};

/// One call of one operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) stream: CudaStream,
    pub(crate) operation: &'static str,
}

impl CudaStream {
    /// A call of `operation`, the name that its errors print.
    pub(crate) fn call(self, operation: &'static str) -> Call {
        Call { stream: self, operation }
    }
}

impl From<Element> for DType {
    fn from(element: Element) -> Self {
        match element {
            Element::F32 => Self::F32,
            Element::Bf16 => Self::Bf16,
        }
    }
}

impl Call {
    /// The element type of an activation: f32 or bf16.
    pub(crate) fn element(self, dtype: DType, what: &'static str) -> Result<Element> {
        match dtype {
            DType::F32 => Ok(Element::F32),
            DType::Bf16 => Ok(Element::Bf16),
            DType::I32 | DType::U8 | DType::U64 => {
                let (operation, found, needed) = (self.operation, dtype.name(), "f32 or bf16");
                Err(KernelError::DType { operation, what, found, needed })
            }
        }
    }

    /// Where the elements of a tensor of this GPU are, which must be of type `dtype`.
    pub(crate) fn at<'a>(
        self,
        tensor: impl Into<View<'a>>,
        what: &'static str,
        dtype: impl Into<DType>,
    ) -> Result<Region> {
        let (tensor, dtype, operation) = (tensor.into(), dtype.into(), self.operation);
        let found = tensor.dtype();
        if found != dtype {
            let (found, needed) = (found.name(), dtype.name());
            return Err(KernelError::DType { operation, what, found, needed });
        }
        match tensor.storage() {
            StorageRef::Cuda(slice) if std::ptr::eq(slice.cuda(), self.stream.cuda()) => {
                Ok(slice.region())
            }
            StorageRef::Cuda(_) | StorageRef::Host(_) => {
                Err(KernelError::Device { operation, what })
            }
        }
    }

    /// As [`Self::at`] for f32.
    pub(crate) fn f32<'a>(self, tensor: impl Into<View<'a>>, what: &'static str) -> Result<Region> {
        self.at(tensor, what, DType::F32)
    }

    /// As [`Self::at`] for i32.
    pub(crate) fn i32<'a>(self, tensor: impl Into<View<'a>>, what: &'static str) -> Result<Region> {
        self.at(tensor, what, DType::I32)
    }

    /// A workspace of `len` elements.
    pub(crate) fn workspace(self, dtype: impl Into<DType>, len: usize) -> Result<Tensor> {
        self.stream.scratch(dtype.into(), len)
    }

    /// A workspace with the values of host memory.
    pub(crate) fn uploaded(self, values: HostSlice<'_>) -> Result<Tensor> {
        let bytes = values.bytes();
        let workspace = self.workspace(values.dtype(), bytes.len() / values.dtype().bytes())?;
        let region = self.at(workspace.view(), "workspace", values.dtype())?;
        self.stream.upload(region, bytes)?;
        Ok(workspace)
    }

    /// Issues launches.
    pub(crate) fn run(self, launches: impl IntoIterator<Item = Launch<Region>>) -> Result<()> {
        self.stream.run(launches)
    }
}
