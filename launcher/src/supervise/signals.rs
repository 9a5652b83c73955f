//! What asks a run to stop: signals, a file in the run directory, the end of the time that Slurm gave.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::slurm::render::{REQUEUE, TERMINATED};

/// Between looks at the clock and for the stop file.
const LOOK: Duration = Duration::from_millis(500);
/// TERM so shortly before the end of the job's time comes of it.
const LAST: Duration = Duration::from_secs(10);

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`, a shutdown, a scheduler.
    Terminate,
    /// The terminal is gone.
    Hangup,
    /// USR1, which Slurm is told to send ahead of the time limit.
    User1,
    /// USR2, which some sites send instead.
    User2,
    /// The time that Slurm gave is nearly over.
    EndTime,
    /// `vljepa-launch stop`.
    Asked,
}

impl StopSignal {
    /// 128 + the signal's number, as shells have it: the run is not complete, so what follows it in a script should not start. Where
    /// time is over, a job of Slurm's ends with the code that puts it into the queue again.
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

    /// Whether the run goes on by itself after this request, in a job of Slurm's.
    pub(crate) fn comes_back(self) -> bool {
        matches!(self, Self::User1 | Self::User2 | Self::EndTime)
    }

    /// Its name.
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

    /// The signal of that number, as a worker got it.
    pub(crate) fn of_number(number: i32) -> Self {
        match number {
            2 => Self::Interrupt,
            10 => Self::User1,
            12 => Self::User2,
            _ => Self::Terminate,
        }
    }

    /// Whether a second request ends the run at once: a person's alone. Slurm sends TERM to a batch script and to its children, and the script
    /// passes it on, so a job that is cancelled hears it twice within a millisecond.
    pub(crate) fn is_impatient(self) -> bool {
        self == Self::Interrupt
    }
}

/// Listens to them.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
    hangup: Option<Signal>,
    stop_file: Option<PathBuf>,
    /// When the run should save itself because its time is nearly over; none after that.
    nearly: Option<Instant>,
    /// When Slurm ends the job because its time is over.
    over: Option<Instant>,
}

impl Signals {
    /// From here on they no longer end this process.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            // `nohup` ignores HUP so that the run outlives its terminal; it stays ignored.
            hangup: if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
            stop_file: None,
            nearly: None,
            over: None,
        })
    }

    /// Also hears a file that appears, which it deletes, and the clock, `ahead` of the time when all is `over`.
    #[must_use]
    pub(crate) fn watching(
        self,
        stop_file: PathBuf,
        over: Option<Instant>,
        ahead: Duration,
    ) -> Self {
        let nearly = over.map(|over| over.checked_sub(ahead).unwrap_or_else(Instant::now));
        Self { stop_file: Some(stop_file), nearly, over, ..self }
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> StopSignal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => StopSignal::Interrupt,
            // At the end of the time, Slurm says so with TERM as well.
            _ = self.terminate.recv() => match self.over {
                Some(over) if Instant::now() + LAST >= over => StopSignal::EndTime,
                _ => StopSignal::Terminate,
            },
            _ = self.user1.recv() => StopSignal::User1,
            _ = self.user2.recv() => StopSignal::User2,
            _ = hangup => StopSignal::Hangup,
            signal = look(self.stop_file.as_deref(), &mut self.nearly) => signal,
        }
    }
}

/// Waits for the file or the time.
async fn look(file: Option<&std::path::Path>, end: &mut Option<Instant>) -> StopSignal {
    loop {
        if file.is_some_and(|file| std::fs::remove_file(file).is_ok()) {
            return StopSignal::Asked;
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            // Once: the run is asked to save, and then has until KILL.
            *end = None;
            return StopSignal::EndTime;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Bit 0 of the kernel's mask of ignored signals is HUP.
fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        })
        .is_some_and(|mask| mask & 1 == 1)
}
