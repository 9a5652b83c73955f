//! The NCCL backend in a build without the feature `cuda`. The type has no value, so code that
//! matches on a backend is the same in both builds.

#![expect(missing_docs, reason = "documented in the backend, `nccl/mod.rs`")]

use vljepa_kernels::{View, ViewMut};

use super::Shares;
use super::record::Ticket;
use crate::error::WorkerError;

#[derive(Debug)]
enum Never {}

#[derive(Debug)]
pub struct Nccl(Never);

type Result<T> = std::result::Result<T, WorkerError>;

impl Nccl {
    pub(super) fn rank(&self) -> usize {
        match self.0 {}
    }

    pub(super) fn world_size(&self) -> usize {
        match self.0 {}
    }

    pub(super) fn all_gather_rows(
        &self,
        _: &Ticket<'_>,
        _: View<'_>,
        _: Shares,
        _: View<'_>,
    ) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn begin_all_reduce_sum(&self, _: &Ticket<'_>, _: View<'_>) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn end(&self) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn reduce_scatter_sum(&self, _: &Ticket<'_>, _: View<'_>) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn all_gather_slots(&self, _: &Ticket<'_>, _: View<'_>) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn broadcast_values(&self, _: &Ticket<'_>, _: ViewMut<'_>) -> Result<()> {
        match self.0 {}
    }

    pub(super) fn all_gather_hashes(&self, _: Ticket<'_>, _: &[u64], _: Shares) -> Vec<u64> {
        match self.0 {}
    }

    pub(super) fn sum<const N: usize>(&self, _: Ticket<'_>, _: [f64; N]) -> [f64; N] {
        match self.0 {}
    }

    pub(super) fn all_gather_bytes(&self, _: Ticket<'_>, _: &[u8]) -> Vec<Vec<u8>> {
        match self.0 {}
    }

    pub(super) fn broadcast(&self, _: Ticket<'_>, _: Vec<u8>) -> Vec<u8> {
        match self.0 {}
    }

    pub(super) fn be_patient(&self, _: bool) -> bool {
        match self.0 {}
    }

    pub(super) fn abort(&self) -> ! {
        match self.0 {}
    }
}
