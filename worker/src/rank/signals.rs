//! Forwards signals that ask the run to save itself. A scheduler sends them to all processes of a
//! job step, and possibly not to the supervisor. A worker therefore reports them to the supervisor,
//! which asks all ranks to stop at the same step boundary.

use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use vljepa_recipes::protocol::FromWorker;

use crate::rank::control::Control;

/// Starts to report TERM, USR1 and USR2 to the supervisor. From then on they do not end this
/// process; the supervisor ends it when necessary.
///
/// # Errors
/// Fails if the handlers or the thread cannot be set up.
pub(crate) fn forward(control: &Control) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGUSR1, SIGUSR2])?;
    let control = control.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for number in signals.forever() {
            tracing::info!("received signal {number}, which asks the run to save itself and stop");
            control.report(FromWorker::Signalled { number });
        }
    })?;
    Ok(())
}
