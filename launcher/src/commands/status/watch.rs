//! `vljepa-launch status RUN --watch`: shows the state of a run until it ends.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::Recipe;

use super::end::End;
use super::screen::Screen;
use super::{Job, State, Status, text};
use crate::error::LaunchError;
use crate::record::live::LiveRun;
use crate::supervise::Signals;
use crate::{cli, terminal};

/// Shortest time between two questions to Slurm, whose controller answers all users.
const JOB_INTERVAL: Duration = Duration::from_secs(5);

/// Shows the run every `interval` until it ends, and returns the exit code of its state. A signal
/// ends the display alone.
pub(super) async fn watch(arguments: &cli::Status, interval: Duration) -> Result<u8, LaunchError> {
    let mut signals = Signals::listen().map_err(|error| LaunchError::Start {
        what: "listening to signals".to_owned(),
        why: error.to_string(),
    })?;
    let mut display = Display::new(arguments.json);
    tokio::select! {
        ended = follow(&arguments.run, interval, &mut display) => ended,
        signal = signals.next() => Ok(signal.exit_code(false)),
    }
}

/// A run that was found.
struct Watched {
    directory: RunDirectory,
    /// Device and inode of the directory.
    identity: Option<(u64, u64)>,
    recipe: Recipe,
    live: LiveRun,
    job: Option<Job>,
    asked: Option<Instant>,
    end: End,
}

impl Watched {
    fn open(run: &Path) -> Result<Self, LaunchError> {
        let directory = RunDirectory::open(run)?;
        let recipe = directory.load_recipe()?.recipe;
        let live = LiveRun::new(&directory, &recipe);
        let identity = identity(run);
        Ok(Self { directory, identity, recipe, live, job: None, asked: None, end: End::default() })
    }

    /// Reads what is new.
    async fn update(&mut self) -> Result<Status, LaunchError> {
        while self.live.advance()? {
            // A signal is noticed between two parts of a large file.
            tokio::task::yield_now().await;
        }
        if self.asked.is_none_or(|at| at.elapsed() >= JOB_INTERVAL) {
            self.asked = Some(Instant::now());
            self.job = Job::of(&self.directory).await;
        }
        Ok(Status::of(&self.directory, &self.recipe, &self.live, self.job.as_ref()))
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

async fn follow(run: &Path, interval: Duration, display: &mut Display) -> Result<u8, LaunchError> {
    let mut watched: Option<Watched> = None;
    loop {
        let is_open = match &watched {
            Some(known) if !known.directory.recipe().exists() => {
                return Err(LaunchError::Deleted { run: run.to_owned() });
            }
            Some(known) => known.identity == identity(run),
            None => false,
        };
        if !is_open {
            watched = open(run)?;
        }
        let shown = match &mut watched {
            Some(watched) => {
                let status = match watched.update().await {
                    // The files of a run that is being deleted vanish one by one.
                    Err(_) if !watched.directory.recipe().exists() => continue,
                    updated => updated?,
                };
                let (stopped_by, job) = (watched.live.stopped_by.as_deref(), watched.job.as_ref());
                let ended = watched.end.code(Instant::now(), status.state, stopped_by, job);
                let shown = display.show(&status, watched.live.events_read, ended.is_some())?;
                if let Some(code) = ended {
                    return Ok(code);
                }
                shown
            }
            None => display.wait_for(run)?,
        };
        if !shown {
            return Ok(0);
        }
        tokio::time::sleep(interval).await;
    }
}

/// Opens the run, or returns `None` if the path may still become a run directory.
fn open(run: &Path) -> Result<Option<Watched>, LaunchError> {
    match Watched::open(run) {
        Err(_) if !run.exists() || (run.is_dir() && !run.join("recipe.yaml").exists()) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Values whose change is printed where lines cannot be rewritten. Durations change all the time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    state: State,
    step: u64,
    events_read: u64,
    job: Option<String>,
}

/// Where and how the states are shown.
#[derive(Debug)]
enum Display {
    /// A block that is rewritten in a terminal.
    Screen(Screen),
    /// A block, or a line of JSON, for each change.
    Changes { json: bool, shown: Option<Version>, waits: bool },
}

impl Display {
    fn new(json: bool) -> Self {
        if !json && terminal::can_rewrite() {
            return Self::Screen(Screen::default());
        }
        Self::Changes { json, shown: None, waits: false }
    }

    /// Shows a state. Returns false if the output was closed.
    fn show(
        &mut self,
        status: &Status,
        events_read: u64,
        is_last: bool,
    ) -> Result<bool, LaunchError> {
        match self {
            Self::Screen(screen) => Ok(screen.draw(&text::text(status), is_last).is_ok()),
            Self::Changes { json, shown, .. } => {
                let (state, step, job) = (status.state, status.step, status.job.clone());
                let version = Some(Version { state, step, events_read, job });
                if *shown == version {
                    return Ok(true);
                }
                *shown = version;
                let text = if *json { status.json(false)? } else { text::text(status) + "\n" };
                Ok(print(&text))
            }
        }
    }

    /// Shows that there is no run yet. Returns false if the output was closed.
    fn wait_for(&mut self, run: &Path) -> Result<bool, LaunchError> {
        let text = format!("no run in {} yet; waiting for its start", run.display());
        Ok(match self {
            Self::Screen(screen) => screen.draw(&text, false).is_ok(),
            Self::Changes { waits: true, .. } => true,
            Self::Changes { json, waits, .. } => {
                *waits = true;
                print(&if *json { Status::json_of_missing(run)? } else { text + "\n" })
            }
        })
    }
}

/// Prints a block or a line to standard output. Returns false if it was closed.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
