//! Stream of the batches of one stage, read and decoded on threads ahead of the training step.
//!
//! Threads claim rows in the order in which they are needed, at most `prefetch_batches` batches
//! ahead. The thread that finishes the last row of a batch assembles the batch. The contents of a
//! batch depend only on the recipe, the step and the rank, never on the threads.

mod cache;
mod row;
mod rules;
pub mod work;

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::DataWork;
use vljepa_recipes::{RankId, Recipe};

use self::row::{Row, RowMaker};
use crate::batch::{Batch, FrameMemory, Ragged, Vectors};
use crate::catalogue::Catalogues;
use crate::decode::Clip;
use crate::error::DataError;
use crate::storage::{Storage, StorageOptions};
use crate::tokenize::target_hash;

/// Counters of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Number of samples read for the batches that [`BatchStream::next`] returned, including bad
    /// samples.
    pub samples_read: u64,
    /// Number of these samples that could not be used.
    pub bad_samples: u64,
    /// Number of decoded samples in the cache.
    pub cached_samples: u64,
    /// Approximate size of the cached samples, in bytes.
    pub cached_bytes: u64,
    /// Number of samples that were found in the cache.
    pub cache_hits: u64,
    /// Number of batches that are ready. 0 means that the training step waits for data.
    pub ready_batches: usize,
    /// Largest number of batches that are prepared ahead.
    pub prefetch_batches: usize,
}

/// Batches of one rank in one stage, in order.
pub struct BatchStream<M: FrameMemory = Vectors> {
    shared: Arc<Shared<M>>,
    threads: Vec<JoinHandle<()>>,
    samples_read: u64,
    bad_samples: u64,
    failed: bool,
    /// Time of the last call of [`Self::take_work`].
    work_since: Instant,
}

/// State shared by the reader threads and the stream.
struct Shared<M: FrameMemory> {
    maker: RowMaker,
    memory: M,
    steps: u64,
    prefetch: usize,
    global_batch: usize,
    rows: Range<usize>,
    state: Mutex<State<M::Frames>>,
    work: Condvar,
    ready: Condvar,
}

struct State<F> {
    stop: bool,
    /// Step of `slots[0]`, the batch that is returned next.
    first_step: u64,
    /// Next row to be claimed: (step, row on this rank).
    claim: (u64, usize),
    slots: VecDeque<Slot<F>>,
}

/// Progress of one batch.
enum Slot<F> {
    Rows { rows: Vec<Option<Result<Row, DataError>>>, missing: usize },
    Assembling,
    Done(Box<Result<Batch<F>, DataError>>),
}

impl BatchStream {
    /// Like [`Self::open_in`], with frames in vectors and the catalogues opened by this process.
    ///
    /// # Errors
    /// Same as [`Catalogues::of_stage`] and [`Self::open_in`].
    pub fn open(
        recipe: &Recipe,
        stage: usize,
        rank: RankId,
        first_step: u64,
    ) -> Result<Self, DataError> {
        let storage = Storage::new(StorageOptions::of(&recipe.data))?;
        let catalogues = Catalogues::of_stage(&storage, recipe, stage)?;
        Self::open_in(Vectors, recipe, &catalogues, stage, rank, first_step)
    }
}

impl<M: FrameMemory> BatchStream<M> {
    /// Starts threads that read the rows of `rank` in stage number `stage`, from step `first_step`
    /// of the stage. The shards of the stage's sources are those of `catalogues`. If `data.threads`
    /// is 0, there is a thread for each CPU that this process may use. Frames are allocated from
    /// `memory`.
    ///
    /// # Errors
    /// If tokenizers cannot be read, or the recipe does not fit them or the shards.
    pub fn open_in(
        memory: M,
        recipe: &Recipe,
        catalogues: &Catalogues,
        stage: usize,
        rank: RankId,
        first_step: u64,
    ) -> Result<Self, DataError> {
        let maker = RowMaker::new(recipe, stage, catalogues)?;
        let Some(settings) = recipe.stages.get(stage) else {
            return Err(DataError::Ended(format!("there is no stage number {stage}")));
        };
        let wrong = |key: String, reason: String| Err(DataError::Recipe { key, reason });
        let world_size = rank.world_size;
        if rank.rank >= world_size || settings.batch < world_size {
            let reason = format!("has {} rows, too few for {world_size} ranks", settings.batch);
            return wrong(format!("stages.{stage}.batch"), reason);
        }
        if first_step > settings.steps {
            let reason = format!("is {}, but step {first_step} was requested", settings.steps);
            return wrong(format!("stages.{stage}.steps"), reason);
        }
        let shared = Arc::new(Shared {
            maker,
            memory,
            steps: settings.steps,
            prefetch: recipe.data.prefetch_batches.max(1),
            global_batch: settings.batch,
            rows: rank.rows(settings.batch),
            state: Mutex::new(State {
                stop: false,
                first_step,
                claim: (first_step, 0),
                slots: VecDeque::new(),
            }),
            work: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut stream = Self {
            shared,
            threads: Vec::new(),
            samples_read: 0,
            bad_samples: 0,
            failed: false,
            work_since: Instant::now(),
        };
        let threads = match recipe.data.threads {
            0 => available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        for number in 0..threads {
            let shared = Arc::clone(&stream.shared);
            let thread = Builder::new()
                .name(format!("data-{number}"))
                .spawn(move || shared.read_rows())
                .map_err(DataError::Thread)?;
            stream.threads.push(thread);
        }
        Ok(stream)
    }

    /// Returns the next batch; waits until it is ready.
    ///
    /// # Errors
    /// If the batch could not be made: too many consecutive bad samples, a shard that can no longer
    /// be read, or no memory for the frames. [`DataError::Ended`] after the last batch of the stage
    /// and after an error.
    #[expect(
        clippy::should_implement_trait,
        reason = "the end of a stage is an error, because the caller knows the number of steps"
    )]
    pub fn next(&mut self) -> Result<Batch<M::Frames>, DataError> {
        if self.failed {
            return Err(DataError::Ended("an earlier batch has failed".to_owned()));
        }
        let batch = self.shared.take(&self.threads);
        self.account(&batch);
        batch
    }

    /// Returns the next batch if it is ready. Returns `None` if [`Self::next`] would wait, after
    /// the last batch of the stage, and after an error.
    pub fn next_if_ready(&mut self) -> Option<Result<Batch<M::Frames>, DataError>> {
        let batch = if self.failed { None } else { self.shared.lock().pop() }?;
        self.shared.work.notify_all();
        self.account(&batch);
        Some(batch)
    }

    /// Current counters of the stream.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        let (cached_samples, cached_bytes, cache_hits) = self.shared.maker.cache.statistics();
        let state = self.shared.lock();
        let done = |slot: &&Slot<M::Frames>| matches!(slot, Slot::Done(_));
        StreamStats {
            samples_read: self.samples_read,
            bad_samples: self.bad_samples,
            cached_samples,
            cached_bytes,
            cache_hits,
            ready_batches: state.slots.iter().take_while(done).count(),
            prefetch_batches: self.shared.prefetch,
        }
    }

    /// State of the reader threads, and their work since the last call.
    pub fn take_work(&mut self) -> DataWork {
        let StreamStats { ready_batches, prefetch_batches, .. } = self.stats();
        let since = std::mem::replace(&mut self.work_since, Instant::now());
        DataWork {
            seconds: since.elapsed().as_secs_f64(),
            ready_batches,
            prefetch_batches,
            threads: self.threads.len(),
            kinds: self.shared.maker.work.take(),
        }
    }

    /// Adds a batch to the counters. The allowed fraction of bad samples is checked by the caller,
    /// over all ranks.
    fn account(&mut self, batch: &Result<Batch<M::Frames>, DataError>) {
        let Ok(batch) = batch else {
            self.failed = true;
            return;
        };
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.bad_samples += count(batch.skipped.len());
        self.samples_read += count(batch.rows()) + count(batch.skipped.len());
    }
}

impl<M: FrameMemory> Drop for BatchStream<M> {
    /// Stops the threads and waits for them. Each thread finishes its current row.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reader thread panicked while it was not reading a sample");
            }
        }
    }
}

impl<F> State<F> {
    /// Removes and returns the next batch if it is done.
    fn pop(&mut self) -> Option<Result<Batch<F>, DataError>> {
        let slot = self.slots.pop_front_if(|slot| matches!(slot, Slot::Done(_)));
        let Some(Slot::Done(batch)) = slot else { return None };
        self.first_step += 1;
        Some(*batch)
    }
}

impl<M: FrameMemory> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, State<M::Frames>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Main loop of a reader thread: claims rows and makes them, until there are no more.
    fn read_rows(&self) {
        let mut scratch = self.maker.scratch();
        while let Some((step, row)) = self.claim() {
            let in_stage = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            let global_index = step * in_stage(self.global_batch) + in_stage(self.rows.start + row);
            self.finish(step, row, self.maker.make(global_index, &mut scratch));
        }
    }

    /// Claims the next row; waits while enough batches are prepared ahead. Returns `None` if all
    /// rows are claimed or the stream is dropped.
    fn claim(&self) -> Option<(u64, usize)> {
        let mut state = self.lock();
        loop {
            let (step, row) = state.claim;
            if state.stop || step >= self.steps {
                return None;
            }
            let ahead = usize::try_from(step - state.first_step).unwrap_or(usize::MAX);
            if ahead < self.prefetch {
                let count = self.rows.len();
                if row == 0 {
                    let rows = std::iter::repeat_with(|| None).take(count).collect();
                    state.slots.push_back(Slot::Rows { rows, missing: count });
                }
                state.claim = if row + 1 == count { (step + 1, 0) } else { (step, row + 1) };
                return Some((step, row));
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stores a finished row. If it was the last row of its batch, assembles the batch.
    fn finish(&self, step: u64, row: usize, made: Result<Row, DataError>) {
        let mut state = self.lock();
        // A batch is taken only when it is done, so the slot of this batch still exists.
        let index = usize::try_from(step - state.first_step).unwrap_or(usize::MAX);
        let Some(slot) = state.slots.get_mut(index) else { return };
        let Slot::Rows { rows, missing } = slot else { return };
        rows[row] = Some(made);
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let rows = std::mem::take(rows);
        *slot = Slot::Assembling;
        drop(state);
        let batch = catch_unwind(AssertUnwindSafe(|| self.assemble(step, rows)));
        let batch = batch.unwrap_or_else(|_| {
            Err(DataError::Ended(format!("assembling the batch of step {step} panicked")))
        });
        let mut state = self.lock();
        // Earlier batches may have been taken meanwhile, so the index is computed again.
        let index = usize::try_from(step - state.first_step).unwrap_or(usize::MAX);
        if let Some(slot) = state.slots.get_mut(index) {
            *slot = Slot::Done(Box::new(batch));
        }
        self.ready.notify_all();
    }

    fn assemble(
        &self,
        step: u64,
        rows: Vec<Option<Result<Row, DataError>>>,
    ) -> Result<Batch<M::Frames>, DataError> {
        let rows: Vec<Row> = rows.into_iter().flatten().collect::<Result<_, _>>()?;
        let frames_per_row = rows.first().map_or(0, |row| row.decoded.clip.order.len());
        let size = self.maker.image_size();
        let shape = [rows.len(), frames_per_row, size, size, 3];
        let clips = rows.iter().map(|row| row.cropped.as_ref().unwrap_or(&row.decoded.clip));
        let fill = |mut room: &mut [u8]| {
            for frame in clips.flat_map(Clip::frames) {
                room.split_off_mut(..frame.len())
                    .expect("the frames of all rows fit")
                    .copy_from_slice(frame);
            }
            assert!(room.is_empty(), "the frames of step {step} do not fill the batch");
        };
        let frames = self.memory.filled(shape.iter().product(), fill).map_err(DataError::Memory)?;
        let mut batch = Batch {
            stage_step: step,
            first_row: self.rows.start,
            global_batch: self.global_batch,
            frames,
            frames_shape: shape,
            before: self.maker.before(),
            query: Ragged::new(),
            target: Ragged::new(),
            output: Ragged::new(),
            target_hashes: Vec::with_capacity(rows.len()),
            query_texts: Vec::with_capacity(rows.len()),
            target_texts: Vec::with_capacity(rows.len()),
            samples: Vec::with_capacity(rows.len()),
            skipped: Vec::new(),
        };
        for row in rows {
            batch.query.push(&row.query);
            if let Some(target) = &row.target {
                batch.target.push(target);
            }
            if let Some(output) = &row.output {
                batch.output.push(output);
            }
            batch.target_hashes.push(target_hash(&row.target_text));
            batch.query_texts.push(row.query_text);
            batch.target_texts.push(row.target_text);
            batch.samples.push(row.sample);
            batch.skipped.extend(row.skipped);
        }
        Ok(batch)
    }

    /// Waits for the next batch and returns it.
    fn take(&self, threads: &[JoinHandle<()>]) -> Result<Batch<M::Frames>, DataError> {
        let mut state = self.lock();
        loop {
            if state.first_step >= self.steps {
                let last = format!("all {} steps of the stage were taken", self.steps);
                return Err(DataError::Ended(last));
            }
            if let Some(batch) = state.pop() {
                self.work.notify_all();
                return batch;
            }
            // Threads exit only when all rows are made. If all have exited earlier, that is a bug,
            // and waiting would never end.
            if threads.iter().all(JoinHandle::is_finished) {
                return Err(DataError::Ended("all reader threads have exited".to_owned()));
            }
            let waited = self.ready.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests;
