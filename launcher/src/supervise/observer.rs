//! What the supervisor knows of a run for those who watch: the straggler table in `ranks.json`, and the numbers of the Prometheus
//! endpoint. Lives through all attempts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{FromWorker, Metrics};

use super::Run;
use super::stragglers::{RankTable, Straggler, Stragglers};
use crate::error::LaunchError;
use crate::events::{Event, EventLog, FaultKind};
use crate::prometheus::Endpoint;
use crate::terminal;

/// Between two writings of `ranks.json`.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// Notes what happens and shows it.
#[derive(Debug)]
pub(crate) struct Observer {
    shared: Arc<Mutex<Observed>>,
    file: PathBuf,
    written: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    _endpoint: Option<Endpoint>,
}

/// The newest of everything.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Name of the run.
    pub name: String,
    /// Steps of the run.
    pub total_steps: u64,
    /// The attempt at work.
    pub attempt: u32,
    /// Starts after the first, by this supervisor.
    pub restarts: u64,
    /// Faults by their kind.
    pub faults: BTreeMap<String, u64>,
    /// Rank 0's newest line.
    pub metrics: Option<Metrics>,
    /// Step of the newest checkpoint, and the seconds the step waited for it.
    pub checkpoint: Option<(u64, f64)>,
    /// Seconds that steps waited for checkpoints in all.
    pub checkpoint_stall_s: f64,
    /// Rank by rank, when it last said anything.
    pub heard: Vec<Option<Instant>>,
    /// Who is slow.
    pub stragglers: Stragglers,
}

impl Observed {
    /// How long the most silent of the connected ranks has said nothing.
    pub(crate) fn longest_silence(&self, now: Instant) -> Option<Duration> {
        self.heard.iter().flatten().min().map(|heard| now.saturating_duration_since(*heard))
    }

    /// The ranks as they are now.
    pub(crate) fn table(&self) -> Option<RankTable> {
        self.stragglers.table(self.attempt, clock::now_text())
    }
}

impl Observer {
    /// Begins to watch a run, and to answer Prometheus where the recipe says so.
    ///
    /// # Errors
    /// When the address of `logging.prometheus` cannot be listened to.
    pub(super) async fn start(run: &Run) -> Result<Self, LaunchError> {
        let total_steps = run.recipe.stages.iter().map(|stage| stage.steps).sum();
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

    /// An attempt begins.
    pub(super) fn attempt(&self, number: u32, world_size: usize) {
        let mut observed = self.lock();
        observed.attempt = number;
        observed.heard = vec![None; world_size];
        observed.stragglers.restart(world_size);
    }

    /// A rank was welcomed.
    pub(super) fn joined(&self, rank: usize, host: &str) {
        let mut observed = self.lock();
        observed.stragglers.joined(rank, host);
        if let Some(heard) = observed.heard.get_mut(rank) {
            *heard = Some(Instant::now());
        }
    }

    /// Machines of the attempt's ranks, each once.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.lock().stragglers.hosts()
    }

    /// A rank's connection is gone.
    pub(super) fn lost(&self, rank: usize) {
        if let Some(heard) = self.lock().heard.get_mut(rank) {
            *heard = None;
        }
    }

    /// A rank said something; writes the event of a rank that has become slow and returns the line to show.
    pub(super) fn hear(
        &mut self,
        rank: usize,
        said: &FromWorker,
        events: &EventLog,
    ) -> Option<String> {
        let mut observed = self.lock();
        if let Some(heard) = observed.heard.get_mut(rank) {
            *heard = Some(Instant::now());
        }
        if let FromWorker::Metrics(metrics) = said {
            observed.metrics = Some(metrics.clone());
        }
        if let FromWorker::Saved { step, stall_s, .. } = said {
            observed.checkpoint = Some((*step, *stall_s));
            observed.checkpoint_stall_s += stall_s;
        }
        let FromWorker::Interval(interval) = said else { return None };
        let slow = observed.stragglers.hear(rank, interval);
        let complete = observed.stragglers.is_round_complete();
        drop(observed);
        if complete && self.written.is_none_or(|at| at.elapsed() >= WRITE_EVERY) {
            self.write();
        }
        slow.map(|straggler: Straggler| {
            let text = format!("warning: {straggler}");
            events.write(Event::Straggler(straggler));
            text
        })
    }

    /// An attempt ended by a fault.
    pub(super) fn fault(&self, kind: FaultKind) {
        let name = serde_json::to_value(kind).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("other").to_owned();
        *self.lock().faults.entry(name).or_default() += 1;
    }

    /// The run starts again.
    pub(super) fn restarted(&self) {
        self.lock().restarts += 1;
    }

    /// The attempt is over: the table is as new as what was heard.
    pub(super) async fn end_attempt(&mut self) {
        if let Some(writing) = self.writing.take() {
            writing.await.ok();
        }
        self.write();
        if let Some(writing) = self.writing.take() {
            writing.await.ok();
        }
        self.lock().heard.fill(None);
    }

    /// Replaces `ranks.json` beside the supervisor's own work, so that a slow disk holds up nothing; a disk that is still busy with
    /// the last one misses one. It only informs: nothing is said of a failure, and nothing is synced.
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
