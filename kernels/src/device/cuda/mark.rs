//! Access to our streams for other libraries: the handle of a stream, and marks that tell whether
//! earlier work is complete.

use std::ffi::c_void;

use super::hardware::Event;
use super::{Cuda, CudaStream, Driver};
use crate::Result;

/// A point in a stream, after everything issued to it so far.
#[derive(Debug)]
pub struct Mark {
    cuda: &'static Cuda,
    /// `None` on an emulated or recording GPU, where work is complete when its call returns.
    event: Option<Event>,
}

impl Mark {
    /// Whether everything before the mark is complete. Does not wait.
    ///
    /// # Errors
    /// If the device failed in that work.
    pub fn happened(&self) -> Result<bool> {
        match (&self.cuda.driver, &self.event) {
            (Driver::Hardware(hardware), Some(event)) => hardware.happened(event),
            (_, None) => Ok(true),
            (Driver::Recording(_), Some(_)) => unreachable!("a recording GPU has no events"),
            #[cfg(any(test, feature = "emulator"))]
            (Driver::Emulated(_), Some(_)) => unreachable!("an emulated GPU has no events"),
        }
    }
}

impl CudaStream {
    /// Handle of the stream (`CUstream`) for libraries that issue work themselves. Null on an
    /// emulated or recording GPU. The call makes the device current on the calling thread, as such
    /// libraries expect.
    ///
    /// # Errors
    /// If the device fails.
    pub fn handle(self) -> Result<*mut c_void> {
        match &self.cuda.driver {
            Driver::Hardware(hardware) => hardware.handle(self.lane),
            Driver::Recording(_) => Ok(std::ptr::null_mut()),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => Ok(std::ptr::null_mut()),
        }
    }

    /// Marks the point after everything issued to this stream so far.
    ///
    /// # Errors
    /// If the device fails.
    pub fn mark(self) -> Result<Mark> {
        let event = match &self.cuda.driver {
            Driver::Hardware(hardware) => Some(hardware.mark(self.lane)?),
            Driver::Recording(_) => None,
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => None,
        };
        Ok(Mark { cuda: self.cuda, event })
    }
}

#[cfg(test)]
mod tests {
    use crate::attention::launch::Mode;
    use crate::device::cuda::{Cuda, CudaStream, Lane};

    #[test]
    fn a_mark_has_happened_after_its_stream_was_waited_for() {
        let stream = CudaStream::new(Cuda::for_tests(Mode::Fast), Lane::Communicate);
        let mark = stream.mark().unwrap();
        stream.synchronize().unwrap();
        assert!(mark.happened().unwrap());
    }
}
