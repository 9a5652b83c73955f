//! Saving while training goes on: a snapshot at the step's end, written by a thread of its own.
//!
//! Under a supervisor the parts' completion goes over the control plane, so that no thread ever joins a collective. One rank alone
//! publishes by itself. Several ranks that nobody supervises have no such way and save while everything waits.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;
use vljepa_kernels::Device;
use vljepa_kernels::device::Snapshot;
use vljepa_model::Layout;
use vljepa_recipes::protocol::{CheckpointOrder, FileEntry, FromWorker, Part};

use super::part::write_part;
use super::publish::Draft;
use super::save::could_not;
use super::{Buffers, Place, Saved, State};
use crate::collectives::Collectives;
use crate::control::Control;
use crate::drill::Drills;

/// One rank's saves. There is one at a time: a next one waits for the last.
#[derive(Debug)]
pub struct Saver {
    place: Place,
    control: Control,
    rank: usize,
    world_size: usize,
    keep: usize,
    /// Elements that this rank writes, and room for them; none where ranks save together, or while a writer has it.
    range: Range<usize>,
    room: Option<Room>,
    together: bool,
    pending: Option<Pending>,
}

/// Room for the slices of weights, first and second moment.
type Room = [Snapshot; 3];

#[derive(Debug)]
enum Pending {
    Writing(u64, JoinHandle<(Room, Result<Saved, String>)>),
    Ended(Settled),
}

/// How a save ended.
#[derive(Debug)]
pub struct Settled {
    /// Its step.
    pub step: u64,
    /// What was saved, or why nothing was; then nothing is left of it, and older checkpoints are untouched.
    pub result: anyhow::Result<Saved>,
}

/// What is saved, beside the buffers.
#[derive(Debug, Clone, Copy)]
pub struct Save<'a> {
    /// Names and places of the parameters.
    pub layout: &'a Layout,
    /// BLAKE3 of the frozen parameters' file.
    pub frozen_hash: Option<&'a str>,
    /// Where training stands.
    pub state: State,
    /// When the step that it follows was over.
    pub since: Instant,
    /// Whether the caller waits until it is durable.
    pub awaited: bool,
}

impl Saver {
    /// A saver of buffers like these.
    ///
    /// # Errors
    /// When there is no memory for the snapshot.
    pub fn new(
        place: Place,
        collectives: &Collectives,
        control: &Control,
        buffers: &Buffers<'_>,
        keep: usize,
    ) -> anyhow::Result<Self> {
        let (rank, world_size) = (collectives.rank(), collectives.world_size());
        let together = world_size > 1 && !control.is_supervised();
        let range = buffers.part_of(rank, world_size);
        let room = if together { None } else { Some(room(buffers.device(), range.len())?) };
        let control = control.clone();
        Ok(Self { place, control, rank, world_size, keep, range, room, together, pending: None })
    }

    /// Whether a save is still being written.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        matches!(&self.pending, Some(Pending::Writing(_, thread)) if !thread.is_finished())
    }

    /// The save that has ended since the last call, if one has.
    pub fn poll(&mut self) -> Option<Settled> {
        if self.is_writing() { None } else { self.wait() }
    }

    /// The same, after waiting for the save that is being written.
    pub fn wait(&mut self) -> Option<Settled> {
        match self.pending.take()? {
            Pending::Ended(settled) => Some(settled),
            Pending::Writing(step, thread) => {
                let result = match thread.join() {
                    Ok((room, result)) => {
                        self.room = Some(room);
                        result.map_err(anyhow::Error::msg)
                    }
                    Err(_) => Err(anyhow::anyhow!("the thread that wrote it panicked")),
                };
                let name = Place::name(step);
                Some(Settled { step, result: result.context(could_not(&name)) })
            }
        }
    }

    /// Takes a snapshot of `buffers` and begins to write it. On a GPU the copy is only issued: the next update waits for it. Every rank
    /// calls it at the same step, after the last save was waited for.
    ///
    /// # Panics
    /// When the last save was not waited for: a bug.
    pub fn begin(&mut self, collectives: &Collectives, buffers: &Buffers<'_>, save: Save<'_>) {
        assert!(self.pending.is_none(), "one save at a time");
        let step = save.state.step;
        if self.together {
            let Save { layout, frozen_hash, state, .. } = save;
            let (place, keep) = (&self.place, self.keep);
            let result = super::save(place, collectives, layout, buffers, frozen_hash, state, keep);
            self.pending = Some(Pending::Ended(Settled { step, result }));
            return;
        }
        let sizes = [self.world_size, self.keep];
        let draft = Draft::new(&self.place, save.layout, save.frozen_hash, save.state, sizes);
        // The room is lost only when a writer panicked; then it is made again.
        let taken = self.room.take().map_or_else(|| room(buffers.device(), self.range.len()), Ok);
        let taken = taken.and_then(|mut room| {
            for (snapshot, view) in room.iter_mut().zip(buffers.slices(self.range.clone())) {
                snapshot.take(view)?;
            }
            Ok(room)
        });
        let writer = Writer {
            draft,
            control: self.control.clone(),
            drills: self.place.drills.clone(),
            rank: self.rank,
            alone: self.world_size == 1,
            range: self.range.clone(),
            since: save.since,
            stall_s: (!save.awaited).then(|| save.since.elapsed().as_secs_f64()),
        };
        self.pending = Some(match taken {
            Ok(room) => writer.spawn(room),
            Err(error) => writer.give_up(error.into()),
        });
    }
}

fn room(device: Device, len: usize) -> vljepa_kernels::Result<Room> {
    let one = || Snapshot::new(device, len);
    Ok([one()?, one()?, one()?])
}

/// One save of one rank.
struct Writer {
    draft: Draft,
    control: Control,
    drills: Drills,
    rank: usize,
    /// Whether this is the only rank.
    alone: bool,
    range: Range<usize>,
    since: Instant,
    /// Seconds the step waited; none where it waits until the end.
    stall_s: Option<f64>,
}

impl Writer {
    fn spawn(self, room: Room) -> Pending {
        let writer = Arc::new(self);
        let working = Arc::clone(&writer);
        let work = move || {
            let part = working.write(&room);
            let result = working.settle(part);
            (room, result)
        };
        let thread = std::thread::Builder::new().name("checkpoint-write".to_owned()).spawn(work);
        match thread {
            Ok(thread) => Pending::Writing(writer.draft.step(), thread),
            Err(error) => writer.give_up(anyhow::Error::from(error).context("no thread")),
        }
    }

    /// Ends a save that could not begin: the other ranks wait to hear of it.
    fn give_up(&self, error: anyhow::Error) -> Pending {
        let result = self.settle(Err(error)).map_err(anyhow::Error::msg);
        let result = result.context(could_not(&self.draft.name));
        Pending::Ended(Settled { step: self.draft.step(), result })
    }

    fn write(&self, room: &Room) -> anyhow::Result<FileEntry> {
        self.draft.make_folder()?;
        let [weights, first, second] = room;
        let values = [weights.values()?, first.values()?, second.values()?];
        let file = write_part(&self.draft.temporary, self.rank, self.range.clone(), values)?;
        self.drills.at_write(self.draft.step())?;
        Ok(file)
    }

    /// Sees to it that the parts of all ranks become a checkpoint, or nothing stays of them. The same on every rank.
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
