//! Loads the batches of a stage onto the device. For a GPU, frames are assembled in page-locked
//! memory and copied while the GPU computes the previous step.

use std::sync::{Arc, Mutex, PoisonError};

use vljepa_data::batch::{Batch, FrameMemory};
use vljepa_data::catalogue::Catalogues;
use vljepa_data::error::DataError;
use vljepa_data::stream::BatchStream;
use vljepa_kernels::device::{Upload, UploadBuffer};
use vljepa_kernels::{Device, KernelError, Tensor};
use vljepa_recipes::protocol::DataWork;
use vljepa_recipes::{RankId, Recipe};

/// The batches of one rank in one stage, in order, with their frames on the device.
pub struct Feed {
    batches: BatchStream<Buffers>,
    buffers: Buffers,
    /// Upload of the batch after the one that was returned last.
    ahead: Option<anyhow::Result<Batch<Upload>>>,
}

impl Feed {
    /// Opens the batches of a stage from `first_step` on, see [`BatchStream::open_in`].
    ///
    /// # Errors
    /// Fails in the same cases as [`BatchStream::open_in`].
    pub fn open(
        device: Device,
        recipe: &Recipe,
        catalogues: &Catalogues,
        stage: usize,
        rank: RankId,
        first_step: u64,
    ) -> Result<Self, DataError> {
        let buffers = Buffers { device, idle: Arc::default() };
        let memory = buffers.clone();
        let batches = BatchStream::open_in(memory, recipe, catalogues, stage, rank, first_step)?;
        Ok(Self { batches, buffers, ahead: None })
    }

    /// Waits for the next batch and returns it. If the batch after it has already been read, begins
    /// to upload that one, after all work that the compute stream has been given so far.
    ///
    /// # Errors
    /// Fails in the same cases as [`BatchStream::next`], or if the device fails or is out of
    /// memory.
    #[expect(clippy::should_implement_trait, reason = "the end of a stage is the caller's to know")]
    pub fn next(&mut self) -> anyhow::Result<Batch<Tensor>> {
        let upload = match self.ahead.take() {
            Some(upload) => upload?,
            None => begin(self.batches.next())?,
        };
        let batch = upload.moved(|frames, _| {
            let (tensor, buffer) = frames.arrive()?;
            self.buffers.give_back(buffer);
            Ok::<_, KernelError>(tensor)
        })?;
        self.ahead = self.batches.next_if_ready().map(begin);
        Ok(batch)
    }

    /// State of the reader threads, and their work since the last call. A batch that is being
    /// uploaded is not among the ready ones.
    pub fn take_work(&mut self) -> DataWork {
        self.batches.take_work()
    }
}

fn begin(batch: Result<Batch<UploadBuffer>, DataError>) -> anyhow::Result<Batch<Upload>> {
    Ok(batch?.moved(|frames, shape| Upload::begin(frames, &shape))?)
}

/// Memory for the frames of batches. A buffer is used again after the device has copied from it; of
/// each size there are as many as were in use at once.
#[derive(Debug, Clone)]
struct Buffers {
    device: Device,
    idle: Arc<Mutex<Vec<UploadBuffer>>>,
}

impl Buffers {
    fn give_back(&self, buffer: UploadBuffer) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

impl FrameMemory for Buffers {
    type Frames = UploadBuffer;

    fn filled(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<UploadBuffer, Box<dyn std::error::Error + Send + Sync>> {
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            // Stages that mix sources batch by batch have batches of several sizes.
            let fits = idle.iter().position(|buffer| buffer.len() == bytes);
            fits.map(|at| idle.swap_remove(at))
        };
        let mut buffer = match idle {
            Some(buffer) => buffer,
            None => UploadBuffer::new(self.device, bytes)?,
        };
        fill(buffer.bytes_mut()?);
        Ok(buffer)
    }
}
