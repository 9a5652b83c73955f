//! Watches the collectives in the device's queue from a thread of its own, because the thread that
//! issued them may be blocked in a wait for the device.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vljepa_kernels::device::cuda::Mark;

use super::communicator::{ABORT_TIMEOUT, Communicator};
use crate::collectives::record;
use crate::error::nccl::NcclError;

/// Pause between two looks at the queue.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const TIMEOUT_HINT: &str = "a rank did not make this call: compare the last collectives in the \
     ranks' logs; `cluster.collective_timeout_s` sets the limit";

/// Callback of a failing rank before its process ends. It reports the error to the supervisor.
pub type LastWords = Box<dyn Fn(&str) + Send + Sync>;

/// A collective in the device's queue.
#[derive(Debug)]
struct Pending {
    sequence: u64,
    mark: Mark,
    since: Instant,
    /// Whether the supervisor limits the wait for it, and not the timeout.
    patient: bool,
}

/// Thread that watches one communicator.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    communicator: Arc<Communicator>,
    pending: Mutex<VecDeque<Pending>>,
    stopped: AtomicBool,
    patient: AtomicBool,
    time_out: Duration,
    last_words: LastWords,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.pending)
    }
}

impl Watch {
    pub(super) fn start(
        communicator: Arc<Communicator>,
        time_out: Duration,
        last_words: LastWords,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            communicator,
            pending: Mutex::default(),
            stopped: AtomicBool::new(false),
            patient: AtomicBool::new(false),
            time_out,
            last_words,
        });
        let watching = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nccl-watch".to_owned())
            .spawn(move || watching.watch())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds a collective that was issued before `mark`.
    pub(super) fn add(&self, sequence: u64, mark: Mark) {
        let patient = self.shared.patient.load(Ordering::Acquire);
        let pending = Pending { sequence, mark, since: Instant::now(), patient };
        self.shared.pending().push_back(pending);
    }

    /// Sets whether collectives that are added later have no timeout, and returns whether they had
    /// none before.
    pub(super) fn be_patient(&self, patient: bool) -> bool {
        self.shared.patient.swap(patient, Ordering::AcqRel)
    }

    /// Logs and reports the error, then ends this process: nothing can be computed without the
    /// failed collective.
    pub(super) fn fail(&self, error: &str) -> ! {
        self.shared.fail(error)
    }

    /// Ends this process. The other ranks see that it is gone.
    pub(super) fn end(&self) -> ! {
        self.shared.end()
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        while !self.stopped.load(Ordering::Acquire) {
            if let Err(error) = self.poll() {
                self.fail(&format!("{error:#}"));
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
    }

    fn poll(&self) -> anyhow::Result<()> {
        let mut pending = self.pending();
        while let Some(first) = pending.front() {
            if !first.mark.happened()? {
                break;
            }
            record::of_process().done(first.sequence);
            pending.pop_front();
        }
        let oldest = pending.front().filter(|first| !first.patient);
        let oldest = oldest.map(|first| (first.sequence, first.since.elapsed()));
        drop(pending);
        self.communicator.check()?;
        match oldest {
            Some((sequence, waited)) if waited > self.time_out => Err(NcclError::TimeOut {
                call: format!("collective {sequence}"),
                seconds: waited.as_secs_f64(),
                hint: TIMEOUT_HINT,
            }
            .into()),
            Some(_) | None => Ok(()),
        }
    }

    fn fail(&self, error: &str) -> ! {
        tracing::error!("{error}\n{}", record::of_process().describe());
        (self.last_words)(error);
        self.end()
    }

    fn end(&self) -> ! {
        self.communicator.abort_within(ABORT_TIMEOUT);
        std::process::abort()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::warn!("the thread that watches NCCL panicked");
            }
        }
    }
}
