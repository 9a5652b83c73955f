//! `vljepa-launch status PROGRAMME`: one line for each run, once or until all have ended.

use std::time::Duration;

use tokio::time::Instant;
use vljepa_recipes::Programme;

use super::load;
use super::progress::{LiveRuns, Progress};
use crate::cli;
use crate::commands::status::screen::Screen;
use crate::commands::status::{UNCLEAR_TIMEOUT, not_written};
use crate::commands::train::listen;
use crate::error::LaunchError;
use crate::terminal;

/// Shortest time between two looks at all runs, each of which asks Slurm's controller.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(5);
/// How long a programme counts as watched after nothing works on it: on one machine, the files of
/// the next run are checked before it starts, and `squeue` does not list a job while it is
/// requeued.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Prints the states of the runs, once or with `--watch` until all have ended.
pub(crate) async fn status(arguments: &cli::Status) -> Result<u8, LaunchError> {
    let programme = load(&arguments.run, &arguments.set)?;
    let Some(interval) = arguments.watch else {
        let progress = Progress::read(&programme, &mut LiveRuns::default()).await?;
        let text = match arguments.json {
            true => serde_json::to_string_pretty(&progress).map_err(|error| not_written(&error))?,
            false => progress.text(),
        };
        terminal::result(&text);
        return Ok(0);
    };
    let mut signals = listen()?;
    tokio::select! {
        ended = watch(&programme, interval.0, arguments.json) => ended,
        signal = signals.next() => Ok(signal.exit_code(false)),
    }
}

/// Shows the states until all runs are complete, or until nothing works on the programme any more,
/// or `squeue` has not answered for [`UNCLEAR_TIMEOUT`]. The exit code is then 1.
async fn watch(programme: &Programme, interval: Duration, json: bool) -> Result<u8, LaunchError> {
    let mut screen = (!json && terminal::can_rewrite()).then(Screen::default);
    let mut shown: Option<Progress> = None;
    let mut idle_since: Option<Instant> = None;
    let (mut live_runs, mut is_unknown) = (LiveRuns::default(), false);
    loop {
        let progress = Progress::read(programme, &mut live_runs).await?;
        let was_unknown = std::mem::replace(&mut is_unknown, progress.is_unknown());
        if progress.is_alive() || is_unknown != was_unknown {
            idle_since = None;
        }
        let timeout = if is_unknown { UNCLEAR_TIMEOUT } else { IDLE_TIMEOUT };
        let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
        let code = match progress.is_complete() {
            true => Some(0),
            false if !progress.is_alive() && idle >= timeout => Some(1),
            false => None,
        };
        if let Some(screen) = &mut screen {
            if screen.draw(&progress.text(), code.is_some()).is_err() {
                return Ok(0);
            }
        } else if shown.as_ref() != Some(&progress.without_times()) {
            terminal::result(&match json {
                true => serde_json::to_string(&progress).map_err(|error| not_written(&error))?,
                false => progress.text() + "\n",
            });
        }
        if let Some(code) = code {
            return Ok(code);
        }
        shown = Some(progress.without_times());
        tokio::time::sleep(interval.max(SHORTEST_INTERVAL)).await;
    }
}
