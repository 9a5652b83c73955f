//! Events: points in a stream that hosts and other streams wait for.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys as cu_sys;

use super::{LATER, driver};
use crate::Result;

/// An event, destroyed when dropped.
#[derive(Debug)]
pub(in super::super) struct Event(cu_sys::CUevent);

// SAFETY: events may be recorded, queried and destroyed from any thread.
unsafe impl Send for Event {}

impl Event {
    fn new(flags: cu_sys::CUevent_flags) -> Result<Self> {
        cu::event::create(flags).map(Self).map_err(driver("cuEventCreate", LATER))
    }

    /// One that others wait for.
    pub(super) fn plain() -> Result<Self> {
        Self::new(cu_sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows when it happened.
    pub(super) fn timed() -> Result<Self> {
        Self::new(cu_sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    pub(super) fn record(&self, stream: cu_sys::CUstream) -> Result<()> {
        // SAFETY: the event is alive, and streams are never destroyed.
        unsafe { cu::event::record(self.0, stream) }.map_err(driver("cuEventRecord", LATER))
    }

    /// What is issued to `stream` from now on happens after this; after an event that was never
    /// recorded it happens at once.
    pub(super) fn holds_up(&self, stream: cu_sys::CUstream) -> Result<()> {
        let flags = cu_sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the event is alive, and streams are never destroyed.
        unsafe { cu::stream::wait_event(stream, self.0, flags) }
            .map_err(driver("cuStreamWaitEvent", LATER))
    }

    /// Whether it has happened, without waiting for it.
    pub(super) fn happened(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { cu::event::query(self.0) } {
            Ok(()) => Ok(true),
            Err(DriverError(cu_sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(driver("cuEventQuery", LATER)(error)),
        }
    }

    /// Waits on the host; an event that was never recorded has happened.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { cu::event::synchronize(self.0) }.map_err(driver("cuEventSynchronize", LATER))
    }

    /// Milliseconds between two timed events that have happened.
    pub(super) fn since(&self, earlier: &Self) -> Result<f64> {
        // SAFETY: both events are alive.
        unsafe { cu::event::elapsed(earlier.0, self.0) }
            .map(f64::from)
            .map_err(driver("cuEventElapsedTime", LATER))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once; the driver waits for what still uses it. Nothing can be done about an error here.
        unsafe { cu::event::destroy(self.0) }.ok();
    }
}
