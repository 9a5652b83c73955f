//! One call of an operation on a GPU: addresses of its tensors, workspaces and launches.

use super::{CudaStream, Region};
use crate::compile::{Element, Launch};
use crate::device::{HostSlice, StorageRef};
use crate::{DType, KernelError, Result, Tensor, View};

/// A stream, and the operation that errors name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) stream: CudaStream,
    pub(crate) operation: &'static str,
}

impl CudaStream {
    /// Starts a call of `operation`, the name that its errors print.
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
    /// Checks that the element type of an activation is f32 or bf16, and returns it.
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

    /// Memory of a tensor, which must be on this GPU and of type `dtype`.
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

    /// Memory of an f32 tensor; see [`Self::at`].
    pub(crate) fn f32<'a>(self, tensor: impl Into<View<'a>>, what: &'static str) -> Result<Region> {
        self.at(tensor, what, DType::F32)
    }

    /// Memory of an i32 tensor; see [`Self::at`].
    pub(crate) fn i32<'a>(self, tensor: impl Into<View<'a>>, what: &'static str) -> Result<Region> {
        self.at(tensor, what, DType::I32)
    }

    /// A workspace of `len` elements with undefined values.
    pub(crate) fn workspace(self, dtype: impl Into<DType>, len: usize) -> Result<Tensor> {
        self.stream.scratch(dtype.into(), len)
    }

    /// A workspace that holds a copy of `values`.
    pub(crate) fn uploaded(self, values: HostSlice<'_>) -> Result<Tensor> {
        let bytes = values.bytes();
        let workspace = self.workspace(values.dtype(), bytes.len() / values.dtype().bytes())?;
        let region = self.at(workspace.view(), "workspace", values.dtype())?;
        self.stream.upload(region, bytes)?;
        Ok(workspace)
    }

    pub(crate) fn run(self, launches: impl IntoIterator<Item = Launch<Region>>) -> Result<()> {
        self.stream.run(launches)
    }
}
