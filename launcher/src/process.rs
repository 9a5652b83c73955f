//! Runs programs to their end and returns what they print.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use vljepa_recipes::protocol::TOKEN_VARIABLE;

/// Runs a program and returns its standard output.
///
/// # Errors
/// If the program is missing, fails (with the last line of its standard error), or takes longer
/// than 30 s.
pub(crate) async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let output = answer(command.args(arguments), program, Duration::from_secs(30)).await?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Runs a program and returns its standard output.
///
/// # Errors
/// As for [`ask`], with the timeout `limit`.
pub(crate) async fn ask_within(
    limit: Duration,
    program: &Path,
    arguments: &[&OsStr],
) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    answer(command.args(arguments), &program.display().to_string(), limit).await
}

/// Runs a command line with the attempt's token in its environment and returns its standard output.
///
/// # Errors
/// As for [`ask`], with the timeout `limit`.
pub(crate) async fn ask_with_token(
    line: &[String],
    token: &str,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let (program, arguments) = line.split_first().ok_or("the command is empty")?;
    let mut command = Command::new(program);
    answer(command.args(arguments).env(TOKEN_VARIABLE, token), program, limit).await
}

async fn answer(command: &mut Command, name: &str, limit: Duration) -> Result<Vec<u8>, String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, output)
        .await
        .map_err(|_| format!("{name} did not answer within {} s", limit.as_secs()))?
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{name} ended with {}: {}", ending(output.status), last_line(&output.stderr)))
}

/// Standard output of a program whose answer is optional, or `None` if it is missing, fails or
/// takes longer than 10 s.
pub(crate) async fn inquire(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), output).await.ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}

/// A program that answers lines on its standard input with lines on its standard output. Dropping
/// the value kills the program.
pub(crate) struct Conversation {
    name: String,
    child: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// Everything that the program writes to standard error.
    complaints: tokio::task::JoinHandle<Vec<u8>>,
}

impl Conversation {
    /// Starts the command line.
    pub(crate) fn start(line: &[String]) -> Result<Self, String> {
        let (program, arguments) = line.split_first().ok_or("the command is empty")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(mut stderr)) = pipes else {
            return Err(format!("{program} has no pipes"));
        };
        let complaints = tokio::spawn(async move {
            let mut said = Vec::new();
            // A pipe that cannot be read has ended.
            stderr.read_to_end(&mut said).await.ok();
            said
        });
        let answers = BufReader::new(stdout).lines();
        Ok(Self { name: program.clone(), child, stdin, answers, complaints })
    }

    /// Sends a line and waits for a line.
    ///
    /// # Errors
    /// If the program ends, with its exit code and the last line of its standard error.
    pub(crate) async fn ask(&mut self, line: &str) -> Result<String, String> {
        let sent = self.stdin.write_all(format!("{line}\n").as_bytes()).await;
        let flushed = match sent {
            Ok(()) => self.stdin.flush().await,
            Err(error) => Err(error),
        };
        if flushed.is_ok()
            && let Ok(Some(answer)) = self.answers.next_line().await
        {
            return Ok(answer);
        }
        let status = self.child.wait().await.map_err(|error| format!("{}: {error}", self.name))?;
        let said = (&mut self.complaints).await.unwrap_or_default();
        Err(format!("{} ended with {}: {}", self.name, ending(status), error_line(&said)))
    }

    /// Closes the standard input and waits up to `limit` for the program to end. Returns whether it
    /// did.
    pub(crate) async fn end(self, limit: Duration) -> bool {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        tokio::time::timeout(limit, child.wait()).await.is_ok()
    }
}

/// The last line that is not empty.
fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// The first line that says `error`, otherwise the last line. The last lines of `srun` say only
/// that it has ended.
fn error_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let error = text.lines().find(|line| line.to_lowercase().contains("error"));
    error.map_or_else(|| last_line(said), |line| line.trim().to_owned())
}

/// Exit code or signal of a process as text.
pub(crate) fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            let memory = if signal == 9 { "; a common cause is lack of memory" } else { "" };
            format!("signal {signal}, {name}{memory}")
        }
        (None, None) => "an unknown status".to_owned(),
    }
}
