//! Record of this rank's last collectives. The log of a run that failed in a collective names their
//! kind, size and progress.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use vljepa_recipes::protocol::CollectiveKind as Kind;
use vljepa_recipes::protocol::Phase;

/// Number of collectives that are kept. 64 cover a few steps without gradient buckets, or the end
/// of one step with buckets.
const KEPT: usize = 64;

/// Progress of a collective on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// This rank has called the collective.
    Begun,
    /// The collective is in the device's queue.
    Issued,
    /// The collective has completed; holds the time since it was begun.
    Done(Duration),
}

/// Record of one collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Number of the collective, counted from 1 in this process. The same collective has the same
    /// number on every rank.
    pub sequence: u64,
    /// Kind of the collective.
    pub kind: Kind,
    /// Size of the result on this rank, in bytes.
    pub bytes: usize,
    /// Progress of the collective on this rank.
    pub state: State,
    /// Time at which this rank called the collective.
    pub begun: Instant,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, kind, bytes, state, begun } = self;
        write!(f, "collective {sequence}, {} of {bytes} bytes: ", kind.name())?;
        match state {
            State::Begun => write!(f, "begun {:.3} s ago", begun.elapsed().as_secs_f64()),
            State::Issued => write!(
                f,
                "issued {:.3} s ago, not finished on the device",
                begun.elapsed().as_secs_f64()
            ),
            State::Done(after) => write!(f, "done after {:.3} ms", after.as_secs_f64() * 1e3),
        }
    }
}

/// The last collectives of a process, and the number of all collectives so far.
#[derive(Debug)]
pub struct Record {
    sequence: AtomicU64,
    work: AtomicU64,
    saved: AtomicU64,
    last: Mutex<VecDeque<Entry>>,
}

/// A process is one rank of one run, so it has one record. Its panic hook and its heartbeats read
/// the record too.
static PROCESS: Record = Record::new();

/// Returns the record of this process.
pub fn of_process() -> &'static Record {
    &PROCESS
}

/// A collective that was begun. If the ticket is dropped before the collective is done, the record
/// keeps the last known progress.
#[derive(Debug)]
#[must_use]
pub struct Ticket<'a> {
    record: &'a Record,
    sequence: u64,
}

impl Record {
    const fn new() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            work: AtomicU64::new(0),
            saved: AtomicU64::new(0),
            last: Mutex::new(VecDeque::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that this rank has begun a collective.
    pub(super) fn begin(&self, kind: Kind, bytes: usize) -> Ticket<'_> {
        let mut last = self.lock();
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(Entry { sequence, kind, bytes, state: State::Begun, begun: Instant::now() });
        Ticket { record: self, sequence }
    }

    fn set(&self, sequence: u64, state: impl FnOnce(&Entry) -> State) {
        if let Some(entry) = self.lock().iter_mut().rev().find(|e| e.sequence == sequence) {
            entry.state = state(entry);
        }
    }

    /// Records that a collective has completed.
    pub(super) fn done(&self, sequence: u64) {
        self.set(sequence, |entry| State::Done(entry.begun.elapsed()));
    }

    /// Returns the number of the last collective that this rank has begun. Heartbeats read it from
    /// another thread.
    #[must_use]
    pub fn sequence(&self) -> &AtomicU64 {
        &self.sequence
    }

    /// Kind of the last collective while it is not complete on this rank.
    #[must_use]
    pub fn inside(&self) -> Option<Kind> {
        let last = self.lock().back().copied();
        last.filter(|entry| !matches!(entry.state, State::Done(_))).map(|entry| entry.kind)
    }

    /// Counts a piece of work outside of steps: a chunk of an evaluation, or a piece of a file. The
    /// supervisor sees that a rank that loads, saves or evaluates goes on.
    pub fn work_done(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a piece of a checkpoint that was written, possibly while the rank does something
    /// else.
    pub fn piece_saved(&self) {
        self.saved.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of pieces of work so far, for the heartbeat of a rank in `phase`. Pieces
    /// of a checkpoint count only while the rank waits for it: a rank that hangs while its
    /// checkpoint is written must not seem to go on.
    #[must_use]
    pub fn work(&self, phase: Phase) -> u64 {
        let saved = self.saved.swap(0, Ordering::Relaxed);
        let saved = if phase == Phase::Checkpoint { saved } else { 0 };
        self.work.fetch_add(saved, Ordering::Relaxed) + saved
    }

    /// Returns the last collectives, oldest first.
    #[must_use]
    pub fn last(&self) -> Vec<Entry> {
        self.lock().iter().copied().collect()
    }

    /// Describes the collectives for the log of a failed rank: the newest ones, and older ones that
    /// have not completed.
    #[must_use]
    pub fn describe(&self) -> String {
        const SHOWN: usize = 8;
        let last = self.last();
        let newest = last.len().saturating_sub(SHOWN);
        let lines: Vec<String> = last
            .iter()
            .enumerate()
            .filter(|(i, entry)| *i >= newest || !matches!(entry.state, State::Done(_)))
            .map(|(_, entry)| entry.to_string())
            .collect();
        if lines.is_empty() {
            return "no collective was begun".to_owned();
        }
        format!("the last collectives of this rank:\n  {}", lines.join("\n  "))
    }
}

impl Ticket<'_> {
    /// Returns the number of the collective.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Records that the collective is in the device's queue.
    #[cfg(feature = "cuda")]
    pub(super) fn issued(&self) {
        self.record.set(self.sequence, |_| State::Issued);
    }

    /// Records that the collective has completed.
    pub(super) fn done(self) {
        self.record.done(self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Kind, Phase, Record, State};

    #[test]
    fn the_last_collectives_are_kept_with_how_far_they_came() {
        let record = Record::new();
        record.begin(Kind::AllGather, 24).done();
        let stuck = record.begin(Kind::AllReduce, 4096);
        assert_eq!(stuck.sequence(), 2);
        drop(stuck);
        record.begin(Kind::Broadcast, 8).done();
        let states: Vec<bool> =
            record.last().iter().map(|e| matches!(e.state, State::Done(_))).collect();
        assert_eq!(states, [true, false, true]);
        let text = record.describe();
        assert!(text.contains("collective 2, all-reduce of 4096 bytes: begun"), "{text}");
        assert!(text.contains("collective 1, all-gather of 24 bytes: done after"), "{text}");
    }

    #[test]
    fn memory_is_bounded_and_an_unfinished_one_is_named_while_it_is_kept() {
        let record = Record::new();
        drop(record.begin(Kind::ReduceScatter, 1));
        for _ in 1..KEPT {
            record.begin(Kind::AllReduce, 1).done();
        }
        assert!(record.describe().contains("collective 1, reduce-scatter"));
        record.begin(Kind::AllReduce, 1).done();
        assert_eq!(record.last().len(), KEPT);
        assert_eq!(record.last()[0].sequence, 2);
        assert!(!record.describe().contains("collective 1,"));
    }

    #[test]
    fn pieces_of_a_checkpoint_are_work_only_of_a_rank_that_waits_for_it() {
        let record = Record::new();
        record.work_done();
        record.piece_saved();
        assert_eq!(record.work(Phase::Evaluation), 1);
        record.piece_saved();
        record.piece_saved();
        assert_eq!((record.work(Phase::Checkpoint), record.work(Phase::Load)), (3, 3));
    }

    #[test]
    fn only_a_collective_in_progress_is_one_that_the_rank_is_inside() {
        let record = Record::new();
        assert_eq!(record.inside(), None);
        let ticket = record.begin(Kind::Broadcast, 1);
        assert_eq!(record.inside(), Some(Kind::Broadcast));
        ticket.done();
        assert_eq!(record.inside(), None);
    }

    #[test]
    fn nothing_begun_is_said() {
        assert_eq!(Record::new().describe(), "no collective was begun");
    }
}
