//! An NCCL communicator whose calls never block longer than a timeout. When a call exceeds it, the
//! communicator is aborted together with the call.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use vljepa_recipes::RankId;

use super::library::{Buffers, Call, Handle, Id, Library, Progress};
use crate::error::nccl::NcclError;

/// Pause between two looks at a pending call, after [`SPIN`] has passed.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Time in which most calls complete. Until then the waiting thread only yields.
const SPIN: Duration = Duration::from_micros(200);
/// How long finalizing may take before the communicator is aborted.
const FINALIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an abort may take before the process ends without it.
pub(super) const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
const UNREACHED_HINT: &str = "a rank did not make this call, or hosts cannot reach each other: \
     compare the ranks' logs, check firewalls and NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO prints \
     details";

#[derive(Debug)]
pub(super) struct Communicator {
    library: &'static Library,
    /// `None` after the communicator was destroyed or aborted.
    handle: Mutex<Option<Handle>>,
    time_out: Duration,
}

impl Communicator {
    /// Connects to the other ranks that use `id`. `time_out` limits this, and later the issuing of
    /// each call.
    pub(super) fn init(
        library: &'static Library,
        id: Id,
        RankId { rank, world_size }: RankId,
        time_out: Duration,
    ) -> Result<Self, NcclError> {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let (handle, progress) = library.init(id, number(rank), number(world_size))?;
        let communicator = Self { library, handle: Mutex::new(Some(handle)), time_out };
        match communicator.wait("ncclCommInitRankConfig", progress, time_out) {
            Ok(()) => Ok(communicator),
            Err(error) => {
                Arc::new(communicator).abort_within(ABORT_TIMEOUT);
                Err(error)
            }
        }
    }

    /// Enqueues a collective on a stream.
    pub(super) fn issue(
        &self,
        call: Call,
        buffers: Buffers,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let progress =
            self.with("a collective", |comm| self.library.issue(call, buffers, comm, stream))?;
        self.wait("a collective", progress, self.time_out)
    }

    /// Returns the error that this rank or a peer had since the last call, if any.
    pub(super) fn check(&self) -> Result<(), NcclError> {
        self.with("watching the ranks", |comm| {
            self.library.state("watching the ranks", comm).map(|_| ())
        })
    }

    /// Aborts the communicator and its pending calls. The other ranks then see that this rank is
    /// gone.
    pub(super) fn abort(&self) {
        let Some(handle) = self.take() else { return };
        if let Err(error) = self.library.abort(handle) {
            tracing::warn!("{error}");
        }
    }

    /// Aborts the communicator in a thread of its own, and waits at most `limit` for it: NCCL may
    /// hang in an abort too. The caller ends the process, whether the abort succeeded or not.
    pub(super) fn abort_within(self: &Arc<Self>, limit: Duration) {
        let communicator = Arc::clone(self);
        let (done, ended) = mpsc::channel::<()>();
        let giving_up = std::thread::Builder::new().spawn(move || {
            communicator.abort();
            drop(done);
        });
        if giving_up.is_ok() {
            ended.recv_timeout(limit).unwrap_or_default();
        }
    }

    /// Finalizes and destroys the communicator, after the other ranks have done the same.
    fn finalize(&self) -> Result<(), NcclError> {
        let progress = self.with("ncclCommFinalize", |comm| self.library.finalize(comm))?;
        self.wait("ncclCommFinalize", progress, FINALIZE_TIMEOUT)?;
        match self.take() {
            Some(handle) => self.library.destroy(handle),
            None => Ok(()),
        }
    }

    fn take(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn with<T>(
        &self,
        call: &'static str,
        act: impl FnOnce(Handle) -> Result<T, NcclError>,
    ) -> Result<T, NcclError> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        handle.ok_or(NcclError::GivenUp { call }).and_then(act)
    }

    /// Waits until a pending call is done.
    fn wait(
        &self,
        call: &'static str,
        mut progress: Progress,
        time_out: Duration,
    ) -> Result<(), NcclError> {
        let since = Instant::now();
        while progress == Progress::Pending {
            let waited = since.elapsed();
            if waited > time_out {
                let (call, seconds) = (call.to_owned(), waited.as_secs_f64());
                return Err(NcclError::TimeOut { call, seconds, hint: UNREACHED_HINT });
            }
            if waited > SPIN {
                std::thread::park_timeout(POLL_INTERVAL);
            } else {
                std::thread::yield_now();
            }
            progress = self.with(call, |comm| self.library.state(call, comm))?;
        }
        Ok(())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if let Err(error) = self.finalize() {
            tracing::warn!("{error}");
            self.abort();
        }
    }
}
