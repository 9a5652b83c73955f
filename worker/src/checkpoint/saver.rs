//! Saving while training goes on: a snapshot is taken at the end of the step, and a thread writes
//! it.
//!
//! Under a supervisor, ranks report their parts over the control connection, so the writing thread
//! never joins a collective. A single rank publishes by itself. Several ranks without a supervisor
//! save while training waits.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;
use vljepa_kernels::Device;
use vljepa_kernels::device::Snapshot;
use vljepa_recipes::protocol::{CheckpointOrder, FileEntry, FromWorker, Part};

use super::part::write_part;
use super::publish::Draft;
use super::save::write_failed;
use super::{Buffers, CheckpointFolder, Contents, Retention, Saved, checkpoint_name};
use crate::collectives::Collectives;
use crate::rank::control::Control;
use crate::rank::drill::Drills;

/// Saves the checkpoints of one rank, one at a time: the next save waits for the previous one.
#[derive(Debug)]
pub struct Saver {
    checkpoints: CheckpointFolder,
    control: Control,
    rank: usize,
    world_size: usize,
    retention: Retention,
    /// Elements that this rank writes.
    range: Range<usize>,
    /// Memory for a snapshot of these elements. `None` if ranks save together, or while a writing
    /// thread uses it.
    snapshots: Option<Snapshots>,
    /// Whether the ranks save together while training waits.
    together: bool,
    pending: Option<Pending>,
}

/// Memory for the slices of weights, first and second moment.
type Snapshots = [Snapshot; 3];

#[derive(Debug)]
enum Pending {
    Writing(u64, JoinHandle<(Snapshots, Result<Saved, String>)>),
    Ended(Settled),
}

/// Result of a save that has ended.
#[derive(Debug)]
pub struct Settled {
    /// Step that was saved.
    pub step: u64,
    /// The published checkpoint, or the reason why saving failed. After a failure all files of this
    /// checkpoint are deleted and older checkpoints are untouched.
    pub result: anyhow::Result<Saved>,
}

/// Content of a checkpoint besides the buffers.
#[derive(Debug, Clone, Copy)]
pub struct Save<'a> {
    /// What is saved besides the buffers.
    pub contents: Contents<'a>,
    /// End of the step that is saved.
    pub since: Instant,
    /// Whether the caller waits until the checkpoint is durable.
    pub awaited: bool,
}

impl Saver {
    /// Creates a saver for buffers of the size and device of `buffers`.
    ///
    /// # Errors
    /// Fails if there is not enough memory for the snapshot.
    pub fn new(
        checkpoints: CheckpointFolder,
        collectives: &Collectives,
        control: &Control,
        buffers: &Buffers<'_>,
        retention: Retention,
    ) -> anyhow::Result<Self> {
        let (rank, world_size) = (collectives.rank(), collectives.world_size());
        let together = world_size > 1 && !control.is_supervised();
        let range = buffers.part_of(collectives.rank_id());
        let snapshots =
            if together { None } else { Some(snapshots(buffers.device(), range.len())?) };
        let control = control.clone();
        Ok(Self {
            checkpoints,
            control,
            rank,
            world_size,
            retention,
            range,
            snapshots,
            together,
            pending: None,
        })
    }

    /// Returns whether a save is still being written.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        matches!(&self.pending, Some(Pending::Writing(_, thread)) if !thread.is_finished())
    }

    /// Returns the result of a save that has ended since the last call, or `None`.
    pub fn poll(&mut self) -> Option<Settled> {
        if self.is_writing() { None } else { self.wait() }
    }

    /// Waits for the save in progress, if any, and returns its result. Returns `None` if there is
    /// no save or [`Self::poll`] has already returned its result.
    pub fn wait(&mut self) -> Option<Settled> {
        match self.pending.take()? {
            Pending::Ended(settled) => Some(settled),
            Pending::Writing(step, thread) => {
                let result = match thread.join() {
                    Ok((snapshots, result)) => {
                        self.snapshots = Some(snapshots);
                        result.map_err(anyhow::Error::msg)
                    }
                    Err(_) => Err(anyhow::anyhow!("the thread that wrote it panicked")),
                };
                let name = checkpoint_name(step);
                Some(Settled { step, result: result.context(write_failed(&name)) })
            }
        }
    }

    /// Deletes the checkpoints that the recipe no longer keeps after the score of the last `step`
    /// became known. Call it on rank 0.
    ///
    /// # Errors
    /// Fails if a folder cannot be deleted.
    ///
    /// # Panics
    /// Panics if the previous save was not waited for: a bug.
    pub fn retain(&self, step: u64) -> anyhow::Result<()> {
        assert!(self.pending.is_none(), "a save in progress retains by itself");
        self.checkpoints.generation.check()?;
        self.retention.apply(&self.checkpoints.folder, step)
    }

    /// Takes a snapshot of `buffers` and starts writing it. On a GPU the copy is only enqueued, and
    /// the next optimizer update waits for it. Every rank must call this at the same step, after it
    /// has waited for the previous save.
    ///
    /// # Panics
    /// Panics if the previous save was not waited for: a bug.
    pub fn begin(&mut self, collectives: &Collectives, buffers: &Buffers<'_>, save: Save<'_>) {
        assert!(self.pending.is_none(), "one save at a time");
        let step = save.contents.state.step;
        if self.together {
            let (checkpoints, retention) = (&self.checkpoints, &self.retention);
            let result = super::save(checkpoints, collectives, save.contents, buffers, retention);
            self.pending = Some(Pending::Ended(Settled { step, result }));
            return;
        }
        let draft = Draft::new(&self.checkpoints, save.contents, self.world_size, &self.retention);
        // The snapshots are missing only after a writing thread has panicked. Allocate them again.
        let taken =
            self.snapshots.take().map_or_else(|| snapshots(buffers.device(), self.range.len()), Ok);
        let taken = taken.and_then(|mut snapshots| {
            for (snapshot, view) in snapshots.iter_mut().zip(buffers.slices(self.range.clone())) {
                snapshot.take(view)?;
            }
            Ok(snapshots)
        });
        let writer = Writer {
            draft,
            control: self.control.clone(),
            drills: self.checkpoints.drills.clone(),
            rank: self.rank,
            alone: self.world_size == 1,
            range: self.range.clone(),
            since: save.since,
            stall_s: (!save.awaited).then(|| save.since.elapsed().as_secs_f64()),
        };
        self.pending = Some(match taken {
            Ok(snapshots) => writer.spawn(snapshots),
            Err(error) => writer.give_up(error.into()),
        });
    }
}

fn snapshots(device: Device, len: usize) -> vljepa_kernels::Result<Snapshots> {
    let one = || Snapshot::new(device, len);
    Ok([one()?, one()?, one()?])
}

struct Writer {
    draft: Draft,
    control: Control,
    drills: Drills,
    rank: usize,
    /// Whether this is the only rank.
    alone: bool,
    range: Range<usize>,
    since: Instant,
    /// Seconds for which the step waited; `None` if it waits until the save is durable.
    stall_s: Option<f64>,
}

impl Writer {
    fn spawn(self, snapshots: Snapshots) -> Pending {
        let writer = Arc::new(self);
        let working = Arc::clone(&writer);
        let work = move || {
            let part = working.write(&snapshots);
            let result = working.settle(part);
            (snapshots, result)
        };
        let thread = std::thread::Builder::new().name("checkpoint-write".to_owned()).spawn(work);
        match thread {
            Ok(thread) => Pending::Writing(writer.draft.step(), thread),
            Err(error) => writer.give_up(anyhow::Error::from(error).context("no thread")),
        }
    }

    /// Reports that a save could not begin, because the other ranks wait for this rank's part.
    fn give_up(&self, error: anyhow::Error) -> Pending {
        let result = self.settle(Err(error)).map_err(anyhow::Error::msg);
        let result = result.context(write_failed(&self.draft.name));
        Pending::Ended(Settled { step: self.draft.step(), result })
    }

    fn write(&self, snapshots: &Snapshots) -> anyhow::Result<FileEntry> {
        self.draft.make_folder()?;
        let [weights, first, second] = snapshots;
        let values = [weights.values()?, first.values()?, second.values()?];
        let file = write_part(&self.draft.temporary, self.rank, self.range.clone(), values)?;
        self.drills.at_write(self.draft.step())?;
        Ok(file)
    }

    /// Turns the parts of all ranks into a checkpoint, or deletes them. Returns the same result on
    /// every rank.
    fn settle(&self, part: anyhow::Result<FileEntry>) -> Result<Saved, String> {
        let step = self.draft.step();
        let part = match part {
            Ok(file) => Part::Written { file },
            Err(error) => Part::Failed { error: format!("rank {}: {error:#}", self.rank) },
        };
        let order = if self.alone {
            match part {
                Part::Written { file } => CheckpointOrder::Publish { step, files: vec![file] },
                Part::Failed { error } => CheckpointOrder::Drop { step, error },
            }
        } else {
            self.control.report(FromWorker::Part { step, part });
            self.control.checkpoint_order(step)?
        };
        let result = match order {
            CheckpointOrder::Settled { error, .. } => {
                error.map_or(Ok(()), Err)?;
                return Ok(self.saved());
            }
            CheckpointOrder::Publish { files, .. } => {
                self.draft.publish(files).map_err(|error| format!("rank 0: {error:#}"))
            }
            CheckpointOrder::Drop { error, .. } => {
                self.draft.discard();
                Err(error)
            }
        };
        match result {
            Ok(()) => {
                let saved = self.saved();
                let Saved { name, stall_s, durable_s } = saved.clone();
                self.control.report(FromWorker::Saved { step, name, stall_s, durable_s });
                Ok(saved)
            }
            Err(error) => {
                self.control.report(FromWorker::NotSaved { step, error: error.clone() });
                Err(error)
            }
        }
    }

    fn saved(&self) -> Saved {
        let durable_s = self.since.elapsed().as_secs_f64();
        let stall_s = self.stall_s.unwrap_or(durable_s);
        Saved { name: self.draft.name.clone(), stall_s, durable_s }
    }
}
