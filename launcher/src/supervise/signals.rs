//! Requests to stop a run: signals, the stop file in the run directory, and the end of the Slurm
//! job's time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use vljepa_recipes::signals::hangup_is_ignored;

use crate::platform::slurm::render::{REQUEUE, TERMINATED};

/// Time between two looks at the clock and at the stop file.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long before the end of the job's time ranks that have not stopped are ended. A TERM that
/// arrives in this time is attributed to the time limit.
const END_TIME_WINDOW: Duration = Duration::from_secs(10);

/// A request to stop a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// INT, which Ctrl-C sends.
    Interrupt,
    /// TERM: from `kill`, a shutdown or a scheduler.
    Terminate,
    /// HUP: the terminal was closed.
    Hangup,
    /// USR1, which Slurm sends ahead of the time limit because the batch script asks for it.
    User1,
    /// USR2, which some sites send instead of USR1.
    User2,
    /// The job's time is nearly over.
    EndTime,
    /// The stop file, which `vljepa-launch stop` writes.
    Asked,
}

impl StopSignal {
    /// Exit code of the launcher: 128 + number of the signal, as in shells, so that a script does
    /// not go on as if the run were complete. If the run continues by itself in a Slurm job, the
    /// code that requeues the job.
    pub(crate) fn exit_code(self, in_job: bool) -> u8 {
        match self {
            _ if in_job && self.comes_back() => REQUEUE,
            Self::Hangup => 129,
            Self::Interrupt | Self::Asked => 130,
            Self::User1 => 138,
            Self::User2 => 140,
            Self::Terminate | Self::EndTime => TERMINATED,
        }
    }

    /// Whether the run continues by itself after this request if it runs in a Slurm job.
    pub(crate) fn comes_back(self) -> bool {
        matches!(self, Self::User1 | Self::User2 | Self::EndTime)
    }

    /// Name of the request in messages and events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "Ctrl-C",
            Self::Terminate => "TERM",
            Self::Hangup => "HUP",
            Self::User1 => "USR1",
            Self::User2 => "USR2",
            Self::EndTime => "end of the job's time",
            Self::Asked => "stop",
        }
    }

    /// The request with the given [`Self::name`].
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let all = [
            Self::Interrupt,
            Self::Terminate,
            Self::Hangup,
            Self::User1,
            Self::User2,
            Self::EndTime,
            Self::Asked,
        ];
        all.into_iter().find(|signal| signal.name() == name)
    }

    /// The request for a signal number that a worker reports.
    pub(crate) fn of_number(number: i32) -> Self {
        match number {
            2 => Self::Interrupt,
            10 => Self::User1,
            12 => Self::User2,
            _ => Self::Terminate,
        }
    }

    /// Whether a second request of this kind ends the run at once. Only Ctrl-C does: Slurm sends
    /// TERM to a batch script and to its children and the script passes it on, so a cancelled job
    /// receives TERM twice within a millisecond.
    pub(crate) fn is_impatient(self) -> bool {
        self == Self::Interrupt
    }
}

/// Listens for requests to stop.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
    hangup: Option<Signal>,
    stop_file: Option<PathBuf>,
    /// When the run has to save because the job's time is nearly over; `None` afterwards.
    nearly: Option<Instant>,
    /// When Slurm ends the job because its time is over.
    over: Option<Instant>,
    /// When ranks that have not stopped by then are ended, so that the job can still be requeued.
    last_moment: Option<Instant>,
}

impl Signals {
    /// Installs the handlers; the signals then no longer end this process.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            // `nohup` ignores HUP so that the run survives its terminal; HUP then stays ignored.
            hangup: if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
            stop_file: None,
            nearly: None,
            over: None,
            last_moment: None,
        })
    }

    /// Also watches for the stop file, which is deleted when found, and requests a stop `ahead` of
    /// the time limit `over`.
    #[must_use]
    pub(crate) fn watching(
        self,
        stop_file: PathBuf,
        over: Option<Instant>,
        ahead: Duration,
    ) -> Self {
        let nearly = over.map(|over| over.checked_sub(ahead).unwrap_or_else(Instant::now));
        let last_moment = over.and_then(|over| over.checked_sub(END_TIME_WINDOW.min(ahead / 2)));
        Self { stop_file: Some(stop_file), nearly, over, last_moment, ..self }
    }

    /// When ranks that were asked to stop must be ended, because Slurm would end the job a moment
    /// later. `None` without a time limit.
    pub(crate) fn last_moment(&self) -> Option<Instant> {
        self.last_moment
    }

    /// Waits for the next request.
    pub(crate) async fn next(&mut self) -> StopSignal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => StopSignal::Interrupt,
            // Slurm also sends TERM at the end of the job's time.
            _ = self.terminate.recv() => match self.over {
                Some(over) if Instant::now() + END_TIME_WINDOW >= over => StopSignal::EndTime,
                _ => StopSignal::Terminate,
            },
            _ = self.user1.recv() => StopSignal::User1,
            _ = self.user2.recv() => StopSignal::User2,
            _ = hangup => StopSignal::Hangup,
            signal = look(self.stop_file.as_deref(), &mut self.nearly) => signal,
        }
    }
}

/// Waits for the stop file or for the time `end`.
async fn look(file: Option<&std::path::Path>, end: &mut Option<Instant>) -> StopSignal {
    loop {
        if file.is_some_and(|file| std::fs::remove_file(file).is_ok()) {
            return StopSignal::Asked;
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            // The request is made only once; the run has until KILL to save.
            *end = None;
            return StopSignal::EndTime;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
