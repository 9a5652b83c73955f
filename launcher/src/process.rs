//! Runs programs to their end and returns what they print.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;
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
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(format!("{name} ended with {}: {}", ending(output.status), last.trim()))
}

/// Standard output of a program whose answer is optional, or `None` if it is missing, fails or
/// takes longer than 10 s.
pub(crate) async fn inquire(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), output).await.ok()?.ok()?;
    output.status.success().then_some(output.stdout)
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
