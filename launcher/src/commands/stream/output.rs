//! A thread that prints lines: a reader that does not read must not keep signals from being
//! handled.

use std::io::{ErrorKind, Write as _};

use tokio::sync::mpsc::{Permit, Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::error::LaunchError;

/// Lines that wait for the reader. Then the worker waits too.
const WAITING_LINES: usize = 64;

/// Lines of standard output.
pub(super) struct Output {
    lines: Sender<String>,
    ended: oneshot::Receiver<std::io::Result<()>>,
}

impl Output {
    pub(super) fn start() -> Result<Self, LaunchError> {
        let (lines, received) = channel(WAITING_LINES);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || end.send(print(received)).unwrap_or_default())
            .map_err(|error| failed("starting a thread", &error.to_string()))?;
        Ok(Self { lines, ended })
    }

    /// Waits for room for a line. `None` if nothing more can be printed.
    pub(super) async fn room(&self) -> Option<Permit<'_, String>> {
        self.lines.reserve().await.ok()
    }

    /// Waits until all lines are printed. A closed pipe (`| head`) is not an error.
    pub(super) async fn end(self) -> Result<(), LaunchError> {
        drop(self.lines);
        match self.ended.await {
            Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => {
                Err(failed("writing to standard output", &error.to_string()))
            }
            Ok(Ok(()) | Err(_)) => Ok(()),
            Err(_) => Err(failed("writing to standard output", "its thread has ended")),
        }
    }
}

fn print(mut lines: Receiver<String>) -> std::io::Result<()> {
    while let Some(line) = lines.blocking_recv() {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush())?;
    }
    Ok(())
}

fn failed(what: &str, why: &str) -> LaunchError {
    LaunchError::Start { what: what.to_owned(), why: why.to_owned() }
}
