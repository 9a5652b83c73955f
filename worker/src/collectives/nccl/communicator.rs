//! A communicator whose calls never block for longer than a time-out, and which is ended with whatever it does when they do.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::NcclError;
use super::library::{Buffers, Call, Handle, Id, Library, Progress};

/// Between looks at a call that is not done, after the first moments.
const POLL: Duration = Duration::from_millis(1);
/// Calls are mostly done within this time, in which the look-out does not sleep.
const SOON: Duration = Duration::from_micros(200);
/// How long leaving may take before the communicator is ended by force.
const FAREWELL: Duration = Duration::from_secs(10);
const UNREACHED: &str = "a rank did not come to it, or hosts cannot reach each other: compare the ranks' logs, check firewalls and \
     NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO says more";

/// This rank's end of a communicator.
#[derive(Debug)]
pub(super) struct Communicator {
    library: &'static Library,
    /// None after it was given up.
    handle: Mutex<Option<Handle>>,
    time_out: Duration,
}

impl Communicator {
    /// Meets the other ranks of `id`, at most for `time_out`, which is also how long later calls may take to be issued.
    pub(super) fn init(
        library: &'static Library,
        id: Id,
        [rank, world_size]: [usize; 2],
        time_out: Duration,
    ) -> Result<Self, NcclError> {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let (handle, progress) = library.init(id, number(rank), number(world_size))?;
        let communicator = Self { library, handle: Mutex::new(Some(handle)), time_out };
        match communicator.settle("ncclCommInitRankConfig", progress, time_out) {
            Ok(()) => Ok(communicator),
            Err(error) => {
                communicator.abort();
                Err(error)
            }
        }
    }

    /// Issues collectives together to a stream, in this order.
    pub(super) fn issue(
        &self,
        calls: &[(Call, Buffers)],
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let library = self.library;
        if let [(call, buffers)] = *calls {
            let progress =
                self.with("a collective", |comm| library.issue(call, buffers, comm, stream))?;
            return self.settle("a collective", progress, self.time_out);
        }
        let progress = self.with("a group of collectives", |comm| {
            library.group_start()?;
            for &(call, buffers) in calls {
                library.issue(call, buffers, comm, stream)?;
            }
            library.group_end(comm)
        })?;
        self.settle("ncclGroupEnd", progress, self.time_out)
    }

    /// The error that this rank or a peer ran into since the last call, if any.
    pub(super) fn check(&self) -> Result<(), NcclError> {
        self.with("watching the ranks", |comm| {
            self.library.state("watching the ranks", comm).map(|_| ())
        })
    }

    /// Ends it with whatever it does; other ranks see that this one is gone.
    pub(super) fn abort(&self) {
        let Some(handle) = self.take() else { return };
        if let Err(error) = self.library.abort(handle) {
            tracing::warn!("{error}");
        }
    }

    /// Leaves in peace: the other ranks do so as well.
    fn leave(&self) -> Result<(), NcclError> {
        let progress = self.with("ncclCommFinalize", |comm| self.library.finalize(comm))?;
        self.settle("ncclCommFinalize", progress, FAREWELL)?;
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

    /// Waits until a call is done.
    fn settle(
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
                return Err(NcclError::TimeOut { call, seconds, hint: UNREACHED });
            }
            if waited > SOON {
                std::thread::park_timeout(POLL);
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
        if let Err(error) = self.leave() {
            tracing::warn!("{error}");
            self.abort();
        }
    }
}
