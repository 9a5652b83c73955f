//! Lets threads that want the same block at the same time share one request.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes of a block.
pub(super) type Bytes = Arc<[u8]>;

/// Name of a block: the file's identity and the number of the block.
pub(super) type BlockName = (Arc<str>, u64);

/// Outcome of a request, which several threads receive.
type Outcome = Result<Bytes, (io::ErrorKind, String)>;

/// Requests in progress.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_name: Mutex<BTreeMap<BlockName, Arc<Flight>>>,
}

#[derive(Debug, Default)]
struct Flight {
    outcome: Mutex<Option<Outcome>>,
    landed: Condvar,
}

/// Ends a request when it is dropped, also if the thread that made it panics.
struct Landing<'a> {
    flights: &'a Flights,
    name: &'a BlockName,
    flight: Arc<Flight>,
    outcome: Outcome,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.by_name.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
        let outcome = Some(self.outcome.clone());
        *self.flight.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        self.flight.landed.notify_all();
    }
}

impl Flights {
    /// Result of `fetch`, or of the same request of another thread that is in progress.
    pub(super) fn share(
        &self,
        name: &BlockName,
        fetch: impl FnOnce() -> io::Result<Bytes>,
    ) -> io::Result<Bytes> {
        let (flight, is_first) = {
            let mut flights = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(name) {
                Some(flight) => (Arc::clone(flight), false),
                None => {
                    let flight = Arc::<Flight>::default();
                    flights.insert(name.clone(), Arc::clone(&flight));
                    (flight, true)
                }
            }
        };
        if is_first {
            let failed = (io::ErrorKind::Other, "a thread that read the file failed".to_owned());
            let mut landing = Landing { flights: self, name, flight, outcome: Err(failed) };
            landing.outcome = fetch().map_err(|error| (error.kind(), error.to_string()));
            return as_result(landing.outcome.clone());
        }
        let mut outcome = flight.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = outcome.clone() {
                return as_result(outcome);
            }
            outcome = flight.landed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn as_result(outcome: Outcome) -> io::Result<Bytes> {
    outcome.map_err(|(kind, text)| io::Error::new(kind, text))
}
