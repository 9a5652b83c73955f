//! Events: points in a stream that the host and other streams can wait for.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys as cu_sys;

use super::{ASYNC_HINT, driver};
use crate::Result;

/// An event, destroyed when dropped.
#[derive(Debug)]
pub(in super::super) struct Event(cu_sys::CUevent);

// SAFETY: events may be recorded, queried and destroyed from any thread.
unsafe impl Send for Event {}

impl Event {
    fn new(flags: cu_sys::CUevent_flags) -> Result<Self> {
        cu::event::create(flags).map(Self).map_err(driver("cuEventCreate", ASYNC_HINT))
    }

    /// An event that others wait for.
    pub(super) fn plain() -> Result<Self> {
        Self::new(cu_sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that records its time.
    pub(super) fn timed() -> Result<Self> {
        Self::new(cu_sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    pub(super) fn record(&self, stream: cu_sys::CUstream) -> Result<()> {
        // SAFETY: the event is alive, and streams are never destroyed.
        unsafe { cu::event::record(self.0, stream) }.map_err(driver("cuEventRecord", ASYNC_HINT))
    }

    /// Makes `stream` wait for this event before it executes work issued after this call. An event
    /// that was never recorded does not delay the stream.
    pub(super) fn holds_up(&self, stream: cu_sys::CUstream) -> Result<()> {
        let flags = cu_sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the event is alive, and streams are never destroyed.
        unsafe { cu::stream::wait_event(stream, self.0, flags) }
            .map_err(driver("cuStreamWaitEvent", ASYNC_HINT))
    }

    /// Whether the work before the event is complete. Does not wait.
    pub(super) fn happened(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { cu::event::query(self.0) } {
            Ok(()) => Ok(true),
            Err(DriverError(cu_sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(driver("cuEventQuery", ASYNC_HINT)(error)),
        }
    }

    /// Blocks the host until the work before the event is complete. Returns at once if the event
    /// was never recorded.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { cu::event::synchronize(self.0) }.map_err(driver("cuEventSynchronize", ASYNC_HINT))
    }

    /// Milliseconds between two timed events, both complete.
    pub(super) fn since(&self, earlier: &Self) -> Result<f64> {
        // SAFETY: both events are alive.
        unsafe { cu::event::elapsed(earlier.0, self.0) }
            .map(f64::from)
            .map_err(driver("cuEventElapsedTime", ASYNC_HINT))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is destroyed once; the driver waits for work that still uses it. An
        // error here cannot be handled.
        unsafe { cu::event::destroy(self.0) }.ok();
    }
}
