//! Keeps the numbers of a run for observers: the straggler table in `ranks.json` and the metrics of
//! the Prometheus endpoint. The observer lives through all attempts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{FromWorker, Metrics};

use super::Run;
use super::prometheus::Endpoint;
use crate::error::LaunchError;
use crate::record::events::{Event, EventLog, FaultKind};
use crate::record::rates::{LoggedInterval, Recent};
use crate::record::stragglers::{RankTable, Straggler, Stragglers};
use crate::terminal;

/// Shortest time between two writes of `ranks.json`.
const WRITE_INTERVAL: Duration = Duration::from_secs(2);

/// Collects the numbers and publishes them.
#[derive(Debug)]
pub(crate) struct Observer {
    shared: Arc<Mutex<Observed>>,
    file: PathBuf,
    written: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    _endpoint: Option<Endpoint>,
}

/// Newest numbers of a run.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Name of the run.
    pub name: String,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Number of the current attempt.
    pub attempt: u32,
    /// Restarts by this supervisor.
    pub restarts: u64,
    /// Number of faults of each kind.
    pub faults: BTreeMap<String, u64>,
    /// Newest metrics of rank 0.
    pub metrics: Option<Metrics>,
    /// Newest intervals of the attempt.
    pub recent: Recent,
    /// Step of the newest checkpoint, and the seconds that the step waited for it.
    pub checkpoint: Option<(u64, f64)>,
    /// Time of each rank's last message, or `None` if the rank is not connected.
    pub last_heard: Vec<Option<Instant>>,
    pub stragglers: Stragglers,
}

impl Observed {
    /// Longest time since the last message of a connected rank.
    pub(crate) fn longest_silence(&self, now: Instant) -> Option<Duration> {
        self.last_heard.iter().flatten().min().map(|last| now.saturating_duration_since(*last))
    }

    /// Table of the ranks at this moment, or `None` before the first interval.
    pub(crate) fn table(&self) -> Option<RankTable> {
        self.stragglers.table(self.attempt, clock::now_text())
    }
}

impl Observer {
    /// Starts observing a run, with the Prometheus endpoint if the recipe sets its address.
    ///
    /// # Errors
    /// If the endpoint cannot listen at the address of `logging.prometheus`.
    pub(super) async fn start(run: &Run) -> Result<Self, LaunchError> {
        let total_steps = run.recipe.total_steps();
        let name = run.recipe.name.clone();
        let shared = Arc::new(Mutex::new(Observed { name, total_steps, ..Observed::default() }));
        let address = &run.recipe.logging.prometheus;
        let endpoint = if address.is_empty() {
            None
        } else {
            let endpoint = Endpoint::start(address, Arc::clone(&shared)).await?;
            terminal::note(&format!(
                "metrics for Prometheus: http://{}/metrics",
                endpoint.address()
            ));
            Some(endpoint)
        };
        let file = run.directory.ranks();
        Ok(Self { shared, file, written: None, writing: None, _endpoint: endpoint })
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets the numbers of the ranks for a new attempt.
    pub(super) fn attempt(&self, number: u32, world_size: usize) {
        let mut observed = self.lock();
        observed.attempt = number;
        observed.recent.restart();
        observed.last_heard = vec![None; world_size];
        observed.stragglers.restart(world_size);
    }

    /// Records the host of a rank that has connected.
    pub(super) fn joined(&self, rank: usize, host: &str) {
        let mut observed = self.lock();
        observed.stragglers.joined(rank, host);
        if let Some(last) = observed.last_heard.get_mut(rank) {
            *last = Some(Instant::now());
        }
    }

    /// Hosts of the attempt's ranks, without duplicates.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.lock().stragglers.hosts()
    }

    /// Records that the connection of a rank has ended.
    pub(super) fn lost(&self, rank: usize) {
        if let Some(last) = self.lock().last_heard.get_mut(rank) {
            *last = None;
        }
    }

    /// Records a message of a rank. If a rank has become a straggler, writes the event and returns
    /// the warning to show.
    pub(super) fn message(
        &mut self,
        rank: usize,
        said: &FromWorker,
        events: &EventLog,
    ) -> Option<String> {
        let mut observed = self.lock();
        if let Some(last) = observed.last_heard.get_mut(rank) {
            *last = Some(Instant::now());
        }
        if let FromWorker::Metrics(metrics) = said {
            observed.recent.add(&LoggedInterval::from(metrics));
            observed.metrics = Some(metrics.clone());
        }
        if let FromWorker::Saved { step, stall_s, .. } = said {
            observed.checkpoint = Some((*step, *stall_s));
        }
        let FromWorker::Interval(interval) = said else { return None };
        let slow = observed.stragglers.add(rank, interval);
        let complete = observed.stragglers.is_round_complete();
        drop(observed);
        if complete && self.written.is_none_or(|at| at.elapsed() >= WRITE_INTERVAL) {
            self.write();
        }
        slow.map(|straggler: Straggler| {
            let text = format!("warning: {straggler}");
            events.write(Event::Straggler(straggler));
            text
        })
    }

    /// Counts a fault that ended an attempt.
    pub(super) fn fault(&self, kind: FaultKind) {
        let name = serde_json::to_value(kind).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("other").to_owned();
        *self.lock().faults.entry(name).or_default() += 1;
    }

    /// Counts a restart.
    pub(super) fn restarted(&self) {
        self.lock().restarts += 1;
    }

    /// Writes `ranks.json` with all intervals of the attempt that has ended, and forgets its
    /// connections.
    pub(super) async fn end_attempt(&mut self) {
        if let Some(writing) = self.writing.take() {
            writing.await.ok();
        }
        self.write();
        if let Some(writing) = self.writing.take() {
            writing.await.ok();
        }
        self.lock().last_heard.fill(None);
    }

    /// Replaces `ranks.json` on a blocking thread, so that a slow disk does not delay the
    /// supervisor. If the previous write is still running, this one is skipped. The file is
    /// informative only: it is not synced and errors are ignored.
    fn write(&mut self) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        let table = self.lock().table();
        let Some(text) = table.and_then(|table| serde_json::to_vec_pretty(&table).ok()) else {
            return;
        };
        self.written = Some(Instant::now());
        let file = self.file.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let new = file.with_extension("json.new");
            std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)).ok();
        }));
    }
}
