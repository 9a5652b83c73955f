//! What other libraries need to work on our streams: a stream's handle, and a point in a stream to ask about later.

use std::ffi::c_void;

use super::hardware::Event;
use super::{Cuda, CudaStream, Driver};
use crate::Result;

/// A point in a stream, behind everything that had been issued there.
#[derive(Debug)]
pub struct Mark {
    cuda: &'static Cuda,
    /// `None` on an emulated or recording GPU, where everything has happened when its call returns.
    event: Option<Event>,
}

impl Mark {
    /// Whether everything before it has happened. Does not wait.
    ///
    /// # Errors
    /// When the device failed in any of it.
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
    /// The driver's handle (`CUstream`) for libraries that issue work themselves; null without a
    /// real GPU. The device is made current on the calling thread, which such libraries expect.
    ///
    /// # Errors
    /// When the device fails.
    pub fn handle(self) -> Result<*mut c_void> {
        match &self.cuda.driver {
            Driver::Hardware(hardware) => hardware.handle(self.lane),
            Driver::Recording(_) => Ok(std::ptr::null_mut()),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => Ok(std::ptr::null_mut()),
        }
    }

    /// A point behind what was issued here so far.
    ///
    /// # Errors
    /// When the device fails.
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
