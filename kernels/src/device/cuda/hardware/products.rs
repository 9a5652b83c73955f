//! Products through cuBLASLt, and the choice of their algorithms.

use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use cudarc::driver::result as cu;

use super::{ASYNC_HINT, Hardware, driver};
use crate::Result;
use crate::device::cuda::algorithms::{Algorithms, Shape, fastest};
use crate::device::cuda::cublaslt::Matmul;
use crate::device::cuda::{Lane, Product};

/// Number of algorithms that are timed for a shape.
const CANDIDATES: usize = 6;
/// Runs of an algorithm that are timed at once.
const RUNS: u32 = 4;

impl Hardware {
    pub(in super::super) fn multiply(&self, lane: Lane, product: Product) -> Result<()> {
        self.bind()?;
        let (matmul, shape) = (Matmul::new(&self.blas, &product)?, Shape::of(&product));
        let algorithm = self.algorithms().find(
            shape,
            |known| matmul.supports(known),
            |[rows, columns, inner]| {
                let sized = Product { rows, columns, inner, ..product };
                self.choose(lane, &Matmul::new(&self.blas, &sized)?)
            },
        )?;
        let name = || {
            let [rows, columns, inner] = shape.sizes;
            let form = if shape.f32_out { "gradient" } else { "product" };
            format!("{form}_{rows}x{columns}x{inner}")
        };
        let workspace = self.queue(lane).workspace;
        let run = |algorithm: &_| {
            self.issue(lane, name, |stream| matmul.run(algorithm, 1.0, workspace, stream.cast()))
        };
        run(&algorithm).or_else(|error| {
            // cuBLASLt's check of an algorithm does not promise that it runs.
            let Ok(candidates) = matmul.candidates(CANDIDATES) else { return Err(error) };
            if !self.algorithms().replace(shape, &candidates, run) {
                return Err(error);
            }
            tracing::warn!("another algorithm computes products of {shape:?}: {error}");
            Ok(())
        })
    }

    /// The fastest algorithm that cuBLASLt offers for a product. Without timing, this is cuBLASLt's
    /// first answer, which is the same in every run.
    ///
    /// Timing computes into the product's own output and therefore needs no memory; see
    /// [`Matmul::timed`].
    fn choose(&self, lane: Lane, matmul: &Matmul<'_>) -> Result<[u64; 8]> {
        let candidates = matmul.candidates(if self.timed { CANDIDATES } else { 1 })?;
        if let [only] = candidates[..] {
            return Ok(only);
        }
        let (timed, scale) = matmul.timed(self.zeros)?;
        let (stream, workspace) = (self.queue(lane).stream, self.queue(lane).workspace);
        fastest(candidates, |candidate| {
            let run = || timed.run(candidate, scale, workspace, stream.cast());
            // The first run may load code.
            run()?;
            self.time(lane, || (0..RUNS).try_for_each(|_| run()))
        })
    }

    fn algorithms(&self) -> MutexGuard<'_, Algorithms> {
        self.algorithms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads stored choices, and appends later choices to the file if `write` is true.
    pub(in super::super) fn keep_algorithms(&self, file: &Path, write: bool) -> Result<()> {
        let name =
            cu::device::get_name(self.device).map_err(driver("cuDeviceGetName", ASYNC_HINT))?;
        let machine = format!("{name}, cuBLASLt {}", self.blas.version());
        self.algorithms().keep(file, &machine, write)
    }
}
