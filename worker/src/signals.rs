//! Signals that ask the run to save itself. A scheduler sends them to every process of a job's step, the supervisor may not get any: so a
//! worker passes them on, and the supervisor asks all ranks to stop at one step boundary.

use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use vljepa_recipes::protocol::FromWorker;

use crate::control::Control;

/// From here on TERM, USR1 and USR2 no longer end this process: they are reported to the supervisor, which ends it by other means.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn pass_on(control: &Control) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGUSR1, SIGUSR2])?;
    let control = control.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for number in signals.forever() {
            tracing::info!("signal {number}: the run is asked to save itself");
            control.report(FromWorker::Signalled { number });
        }
    })?;
    Ok(())
}
