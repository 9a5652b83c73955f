//! Rates of a run that may be running: each update reads only what is new in its files.

use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::Recipe;

use super::events::{Event, Line};
use super::rates::{Activity, LoggedInterval, Rates, Summary};
use super::tail::Tail;
use crate::error::LaunchError;

/// Metrics and events of a run that were read so far.
#[derive(Debug)]
pub(crate) struct LiveRun {
    directory: RunDirectory,
    recipe: Recipe,
    metrics: Tail,
    events: Tail,
    rates: Rates,
    /// Number of events that were read.
    pub(crate) events_read: u64,
    /// Request that stopped the newest attempt: [`StopSignal::name`](crate::supervise::StopSignal).
    pub(crate) stopped_by: Option<String>,
}

impl LiveRun {
    /// A run of which nothing was read yet.
    pub(crate) fn new(directory: &RunDirectory, recipe: &Recipe) -> Self {
        Self {
            directory: directory.clone(),
            recipe: recipe.clone(),
            metrics: Tail::new(&directory.metrics()),
            events: Tail::new(&directory.events()),
            rates: Rates::new(recipe),
            events_read: 0,
            stopped_by: None,
        }
    }

    /// Reads a part of what is new. Returns whether there may be more.
    ///
    /// # Errors
    /// If a file of the run exists and cannot be read.
    pub(crate) fn advance(&mut self) -> Result<bool, LaunchError> {
        if self.events.is_replaced() {
            *self = Self::new(&self.directory, &self.recipe);
        }
        // A resumed run drops the lines of the steps that it computes again.
        if self.metrics.is_replaced() {
            self.metrics = Tail::new(&self.directory.metrics());
            self.rates.forget_intervals();
        }
        let mut events = Vec::new();
        let more = self.events.read(|line| events.extend(serde_json::from_slice::<Line>(line)));
        let unreadable = |path: std::path::PathBuf, error: std::io::Error| {
            LaunchError::Unreadable { path, why: error.to_string() }
        };
        let more = more.map_err(|error| unreadable(self.directory.events(), error))?;
        for line in &events {
            self.take(line);
        }
        // Intervals belong to attempts, so all events are read before them.
        if more {
            return Ok(true);
        }
        let rates = &mut self.rates;
        let read = self.metrics.read(|line| {
            if let Ok(interval) = serde_json::from_slice::<LoggedInterval>(line) {
                rates.interval(interval);
            }
        });
        read.map_err(|error| unreadable(self.directory.metrics(), error))
    }

    /// Reads all that is new.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub(crate) fn update(&mut self) -> Result<(), LaunchError> {
        while self.advance()? {}
        Ok(())
    }

    fn take(&mut self, line: &Line) {
        self.events_read += 1;
        match &line.event {
            Event::AttemptStarted { .. } => self.stopped_by = None,
            Event::StopRequested { signal } => self.stopped_by = Some(signal.clone()),
            _ => {}
        }
        self.rates.event(line);
    }

    /// The newest line of metrics.
    pub(crate) fn newest(&self) -> Option<&LoggedInterval> {
        self.rates.newest()
    }

    /// Rates at this moment; see [`Rates::summary`].
    pub(crate) fn summary(&self, activity: Activity) -> Summary {
        self.rates.now(activity)
    }
}
