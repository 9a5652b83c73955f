//! Runs programs to their end and returns what they print.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use vljepa_recipes::protocol::TOKEN_VARIABLE;

/// Why a program gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// The program runs too long, and was killed.
    #[error("{name} did not answer within {} s", limit.as_secs())]
    Timeout { name: String, limit: Duration },
    /// The program is missing or failed.
    #[error("{0}")]
    Failed(String),
}

impl From<Unanswered> for String {
    fn from(why: Unanswered) -> Self {
        why.to_string()
    }
}

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
) -> Result<Vec<u8>, Unanswered> {
    let mut command = Command::new(program);
    answer(command.args(arguments), &program.display().to_string(), limit).await
}

/// Runs a program with additional environment variables and returns its standard output.
///
/// # Errors
/// As for [`ask`], with the timeout `limit`.
pub(crate) async fn ask_with(
    limit: Duration,
    program: &Path,
    arguments: &[&OsStr],
    variables: &[(&str, String)],
) -> Result<Vec<u8>, Unanswered> {
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    answer(&mut command, &program.display().to_string(), limit).await
}

/// Runs a program and returns the lines of its standard output, with an error if it is missing,
/// fails or takes longer than `limit`. Lines that were printed before are returned then too.
pub(crate) async fn lines_within(
    limit: Duration,
    program: &Path,
    arguments: &[&OsStr],
) -> (Vec<String>, Result<(), Unanswered>) {
    let name = program.display().to_string();
    let failed = |why: &dyn std::fmt::Display| Unanswered::Failed(format!("{name}: {why}"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) => return (Vec::new(), Err(failed(&error))),
    };
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return (Vec::new(), Err(failed(&"it has no pipes")));
    };
    let (mut printed, mut said) = (Vec::new(), Vec::new());
    let running = async {
        let mut lines = BufReader::new(stdout).lines();
        let read = async {
            while let Ok(Some(line)) = lines.next_line().await {
                printed.push(line);
            }
        };
        // A pipe that cannot be read has ended.
        let ((), _) = tokio::join!(read, stderr.read_to_end(&mut said));
        child.wait().await
    };
    let ended = match tokio::time::timeout(limit, running).await {
        Err(_) => Err(Unanswered::Timeout { name, limit }),
        Ok(Err(error)) => Err(failed(&error)),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(unsuccessful(&name, status, &said)),
    };
    (printed, ended)
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
    Ok(answer(command.args(arguments).env(TOKEN_VARIABLE, token), program, limit).await?)
}

async fn answer(command: &mut Command, name: &str, limit: Duration) -> Result<Vec<u8>, Unanswered> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, output)
        .await
        .map_err(|_| Unanswered::Timeout { name: name.to_owned(), limit })?
        .map_err(|error| Unanswered::Failed(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(unsuccessful(name, output.status, &output.stderr))
}

fn unsuccessful(name: &str, status: ExitStatus, stderr: &[u8]) -> Unanswered {
    Unanswered::Failed(format!("{name} ended with {}: {}", ending(status), last_line(stderr)))
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

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;
    use std::time::Duration;

    use super::{Unanswered, ask_within, lines_within};

    #[tokio::test]
    async fn lines_that_a_program_prints_before_it_hangs_or_fails_are_kept() {
        let run = async |limit_ms, script: &str| {
            let words: [&OsStr; 2] = ["-c".as_ref(), script.as_ref()];
            lines_within(Duration::from_millis(limit_ms), Path::new("/bin/sh"), &words).await
        };
        let long = 600_000;
        let (lines, ended) = run(long, "echo one; echo two").await;
        assert_eq!((lines, ended), (vec!["one".to_owned(), "two".to_owned()], Ok(())));
        let (lines, ended) = run(2000, "echo one; exec sleep 1000").await;
        assert_eq!(lines, ["one"]);
        assert!(matches!(ended, Err(Unanswered::Timeout { .. })), "{ended:?}");
        let (lines, ended) = run(long, "echo one; echo within >&2; exit 3").await;
        assert_eq!(lines, ["one"]);
        let why = Unanswered::Failed("/bin/sh ended with exit code 3: within".to_owned());
        assert_eq!(ended, Err(why), "its words are no timeout");
        let missing = lines_within(Duration::from_secs(60), Path::new("/nowhere"), &[]).await;
        assert!(missing.1.unwrap_err().to_string().contains("/nowhere"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_and_one_that_fails_are_told_apart() {
        let words: [&OsStr; 1] = ["1000".as_ref()];
        let hung = ask_within(Duration::from_millis(50), Path::new("/bin/sleep"), &words).await;
        assert!(matches!(hung, Err(Unanswered::Timeout { .. })), "{hung:?}");
        let failed = ask_within(Duration::from_secs(60), Path::new("/bin/false"), &[]).await;
        assert!(matches!(failed, Err(Unanswered::Failed(_))), "{failed:?}");
    }
}
