//! A worker that prints events until it ends.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::task::JoinHandle;

use super::{Programs, WorkerArguments, last};
use crate::error::LaunchError;
use crate::process::ending;
use crate::terminal;

/// Bytes that are kept of what a worker says, for the error with which it ends.
const KEPT_BYTES: usize = 64 << 10;

/// A running job whose standard input is that of this program.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
    said: JoinHandle<String>,
}

impl Running {
    /// Starts a job in the working directory `folder`.
    pub(crate) fn start(
        programs: &Programs,
        arguments: &WorkerArguments,
        folder: &Path,
    ) -> Result<Self, LaunchError> {
        let mut child = super::start(programs, arguments, folder, Stdio::inherit())?;
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        let said = tokio::spawn(messages(child.stderr.take()));
        Ok(Self { child, lines, said })
    }

    /// Next line of standard output, or `None` at its end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        // A pipe that cannot be read has ended.
        self.lines.as_mut()?.next_line().await.ok()?
    }

    /// Asks the worker to end.
    pub(crate) fn stop(&self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id {
            // A worker that has just ended cannot be asked, and need not.
            kill(Pid::from_raw(id), Signal::SIGTERM).ok();
        }
    }

    /// Waits for the end of the worker.
    pub(crate) async fn end(mut self) -> Result<(), LaunchError> {
        // The worker must not wait for a reader.
        self.lines = None;
        let status = self.child.wait().await.map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        // A signal of the user that the worker had no handler for yet.
        let exit_code = match status.signal() {
            Some(1) => Some(129),
            Some(2) => Some(130),
            Some(15) => Some(143),
            Some(_) | None => None,
        };
        if let Some(exit_code) = exit_code {
            return Err(LaunchError::Interrupted { exit_code });
        }
        let said = self.said.await.unwrap_or_default();
        let error = last(&said).1.trim_end();
        Err(failed(if error.is_empty() { ending(status) } else { error.to_owned() }))
    }
}

fn failed(error: String) -> LaunchError {
    LaunchError::JobFailed { error }
}

/// Prints the warnings of a program as they come, and returns its last other lines.
pub(crate) async fn messages(stderr: Option<ChildStderr>) -> String {
    let mut said = String::new();
    let Some(stderr) = stderr else { return said };
    let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
    // A pipe that cannot be read has ended.
    while stderr.read_until(b'\n', &mut line).await.is_ok_and(|bytes| bytes > 0) {
        let text = String::from_utf8_lossy(&line);
        if text.starts_with("warning: ") {
            terminal::note(text.trim_end());
        } else {
            said += &text;
            keep_last(&mut said);
        }
        line.clear();
    }
    said
}

/// Keeps the last [`KEPT_BYTES`] of a text.
fn keep_last(said: &mut String) {
    let excess = said.len().saturating_sub(KEPT_BYTES);
    said.drain(..said.ceil_char_boundary(excess));
}

#[cfg(test)]
mod tests {
    use super::{KEPT_BYTES, keep_last};

    #[test]
    fn the_last_words_are_kept() {
        let mut said = String::new();
        for number in 0..10_000 {
            said += &format!("line {number}é\n");
            keep_last(&mut said);
            assert!(said.len() <= KEPT_BYTES);
        }
        assert!(said.ends_with("line 9999é\n") && !said.contains("line 1é"));
        assert!(said.len() > KEPT_BYTES - 4);
    }
}
