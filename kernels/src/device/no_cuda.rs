//! The types of the GPU backend in a build without the feature `cuda`. None of them has a value, so
//! code that matches on a device is the same in both builds, and the compiler removes its GPU part.

#![expect(missing_docs, reason = "documented in the backend, `cuda/mod.rs`")]
#![expect(clippy::missing_errors_doc, reason = "documented in the backend, `cuda/mod.rs`")]
#![expect(clippy::must_use_candidate, reason = "no function can be called")]

use std::marker::PhantomData;

pub use super::gpu_types::{Lane, Region, Span};

use crate::{DType, Result, Tensor, View, ViewMut};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Never {}

#[derive(Debug)]
pub struct Cuda(Never);

impl Cuda {
    pub fn description(&self) -> Result<String> {
        match self.0 {}
    }

    pub fn bus_address(&self) -> Result<String> {
        match self.0 {}
    }

    pub fn keep_algorithms(&self, _: &std::path::Path, _: bool) -> Result<()> {
        match self.0 {}
    }

    pub fn trace(&self) -> Result<()> {
        match self.0 {}
    }

    pub fn traced(&self) -> Result<Vec<Span>> {
        match self.0 {}
    }

    pub fn memory(&self) -> Result<[usize; 2]> {
        match self.0 {}
    }

    pub fn held_bytes(&self) -> usize {
        match self.0 {}
    }

    pub fn trim(&self) -> Result<()> {
        match self.0 {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaStream(Never);

impl CudaStream {
    pub fn new(cuda: &'static Cuda, _: Lane) -> Self {
        match cuda.0 {}
    }

    pub fn cuda(self) -> &'static Cuda {
        match self.0 {}
    }

    pub fn scratch(self, _: DType, _: usize) -> Result<Tensor> {
        match self.0 {}
    }

    pub fn copy(self, _: Region, _: Region) -> Result<()> {
        match self.0 {}
    }

    pub fn upload(self, _: Region, _: &[u8]) -> Result<()> {
        match self.0 {}
    }

    pub fn download(self, _: Region, _: &mut [u8]) -> Result<()> {
        match self.0 {}
    }

    pub fn fill_zero(self, _: Region) -> Result<()> {
        match self.0 {}
    }

    pub fn wait_for(self, _: Self) -> Result<()> {
        match self.0 {}
    }

    pub fn synchronize(self) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn never<T>(self) -> T {
        match self.0 {}
    }
}

#[derive(Debug)]
pub struct CudaBuffer(Never);

impl CudaBuffer {
    pub fn new(cuda: &'static Cuda, _: DType, _: usize) -> Result<Self> {
        match cuda.0 {}
    }

    pub fn dtype(&self) -> DType {
        match self.0 {}
    }

    pub(crate) fn slice(&self, _: usize, _: usize) -> CudaSlice<'_> {
        match self.0 {}
    }

    pub(crate) fn slice_mut(&mut self, _: usize, _: usize) -> CudaSliceMut<'_> {
        match self.0 {}
    }
}

#[derive(Debug, Clone, Copy)]
pub struct CudaSlice<'a>(Never, PhantomData<&'a ()>);

impl CudaSlice<'_> {
    pub fn dtype(&self) -> DType {
        match self.0 {}
    }

    pub(crate) fn cuda(&self) -> &'static Cuda {
        match self.0 {}
    }

    pub(crate) fn region(&self) -> Region {
        match self.0 {}
    }

    pub(crate) fn range(self, _: usize, _: usize) -> Self {
        match self.0 {}
    }
}

#[derive(Debug)]
pub struct CudaSliceMut<'a>(Never, PhantomData<&'a mut ()>);

impl<'a> CudaSliceMut<'a> {
    pub(crate) fn as_ref(&self) -> CudaSlice<'_> {
        match self.0 {}
    }

    pub(crate) fn into_ref(self) -> CudaSlice<'a> {
        match self.0 {}
    }

    pub(crate) fn reborrow(&mut self) -> CudaSliceMut<'_> {
        match self.0 {}
    }

    pub(crate) fn range(self, _: usize, _: usize) -> Self {
        match self.0 {}
    }

    pub(crate) fn split_at(self, _: usize) -> (Self, Self) {
        match self.0 {}
    }
}

#[derive(Debug)]
pub struct PageLocked(Never);

impl PageLocked {
    pub fn new(cuda: &'static Cuda, _: usize) -> Result<Self> {
        match cuda.0 {}
    }

    pub(crate) fn stream(&self, _: Lane) -> CudaStream {
        match self.0 {}
    }

    pub fn fill(&mut self, _: CudaStream, _: View<'_>) -> Result<()> {
        match self.0 {}
    }

    pub fn send(&mut self, _: CudaStream, _: ViewMut<'_>) -> Result<()> {
        match self.0 {}
    }

    pub fn hold_up(&self, _: CudaStream) -> Result<()> {
        match self.0 {}
    }

    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        match self.0 {}
    }

    pub fn bytes(&self) -> Result<&[u8]> {
        match self.0 {}
    }
}
