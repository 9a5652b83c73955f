//! Chrome traces of chosen steps: the phases of this rank on the host and, on a GPU, every kernel,
//! product and copy. The files open in `chrome://tracing` and `ui.perfetto.dev`.
//!
//! The format is the array form of the Trace Event Format: complete events (`"ph": "X"`, times in
//! microseconds), and metadata events (`"ph": "M"`) with the names of processes and threads. A
//! process is a rank, thread 0 shows the phases, and the other threads are the GPU's streams.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use vljepa_kernels::Device;
use vljepa_kernels::device::cuda::{Lane, Span};
use vljepa_recipes::RunDirectory;
use vljepa_recipes::protocol::Phase;
use vljepa_recipes::run_directory::atomic_write;
use vljepa_recipes::schema::Trace;

/// Thread that shows the step and, nested in it, the phases.
const PHASES: usize = 0;

/// A Chrome trace under construction.
#[derive(Debug)]
pub struct ChromeTrace {
    rank: usize,
    events: Vec<Value>,
}

impl ChromeTrace {
    /// Creates an empty trace of one rank.
    #[must_use]
    pub fn new(rank: usize) -> Self {
        let mut trace = Self { rank, events: Vec::new() };
        trace.name("process_name", PHASES, &format!("rank {rank}"));
        trace
    }

    fn name(&mut self, kind: &str, thread: usize, name: &str) {
        self.events.push(json!({
            "name": kind, "ph": "M", "pid": self.rank, "tid": thread, "args": {"name": name},
        }));
    }

    fn span(&mut self, thread: usize, name: &str, start_us: f64, duration_us: f64) {
        self.events.push(json!({
            "name": name, "ph": "X", "pid": self.rank, "tid": thread, "ts": start_us, "dur": duration_us,
        }));
    }

    /// Adds a step of duration `length` and its phases. Each phase lasts until the next one begins;
    /// the last one lasts until the end of the step.
    pub fn step(&mut self, step: u64, phases: &[(Phase, Duration)], length: Duration) {
        self.name("thread_name", PHASES, "phases");
        self.span(PHASES, &format!("step {step}"), 0.0, microseconds(length));
        let ends = phases.iter().skip(1).map(|phase| phase.1).chain([length]);
        for (&(phase, start), end) in phases.iter().zip(ends) {
            let [start, end] = [start, end].map(microseconds);
            self.span(PHASES, phase.name(), start, end - start);
        }
    }

    /// Adds the spans that a GPU recorded, with one thread per stream.
    pub fn kernels(&mut self, spans: &[Span]) {
        for (thread, lane) in Lane::ALL.into_iter().enumerate() {
            let thread = PHASES + 1 + thread;
            self.name("thread_name", thread, &format!("{lane:?} stream").to_lowercase());
            for span in spans.iter().filter(|span| span.lane == lane) {
                self.span(thread, &span.name, span.start_ms * 1e3, span.duration_ms * 1e3);
            }
        }
    }

    /// Writes the trace to a file atomically.
    ///
    /// # Errors
    /// Fails if the folder or the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec(&json!({ "traceEvents": self.events }))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(atomic_write(path, &text)?)
    }
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Records the traces that the recipe asks of this rank. A trace that cannot be recorded or written
/// is only a warning, because the run matters more.
#[derive(Debug)]
pub struct Tracer {
    chosen: Option<Chosen>,
    recording: Option<Recording>,
}

#[derive(Debug)]
struct Chosen {
    steps: std::ops::Range<u64>,
    run: RunDirectory,
    rank: usize,
    device: Device,
}

#[derive(Debug)]
struct Recording {
    step: u64,
    began: Instant,
    phases: Vec<(Phase, Duration)>,
}

impl Tracer {
    /// Creates a tracer that records nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { chosen: None, recording: None }
    }

    /// Creates a tracer that records the steps that `wanted` asks of `rank`.
    #[must_use]
    pub fn new(wanted: Option<&Trace>, run: &RunDirectory, rank: usize, device: Device) -> Self {
        let chosen = wanted.filter(|trace| trace.ranks.contains(&rank)).map(|trace| Chosen {
            steps: trace.first_step..trace.first_step.saturating_add(trace.steps),
            run: run.clone(),
            rank,
            device,
        });
        Self { chosen, recording: None }
    }

    /// Ends the previous step, if any, and begins step `step`.
    pub fn begin(&mut self, step: u64) {
        self.finish();
        let Some(chosen) = self.chosen.as_ref().filter(|chosen| chosen.steps.contains(&step))
        else {
            return;
        };
        match chosen.listen() {
            Ok(()) => {
                self.recording =
                    Some(Recording { step, began: Instant::now(), phases: Vec::new() });
            }
            Err(error) => tracing::warn!("step {step} is not traced: {error:#}"),
        }
    }

    /// Begins `phase` of the current step.
    pub fn enter(&mut self, phase: Phase) {
        if let Some(recording) = &mut self.recording {
            recording.phases.push((phase, recording.began.elapsed()));
        }
    }

    /// Ends the current step and writes its trace, if one was recorded.
    pub fn finish(&mut self) {
        let Some(Recording { step, began, phases }) = self.recording.take() else { return };
        let length = began.elapsed();
        let Some(chosen) = &self.chosen else { return };
        match chosen.write(step, &phases, length) {
            Ok(path) => tracing::info!("trace of step {step}: {}", path.display()),
            Err(error) => tracing::warn!("no trace of step {step}: {error:#}"),
        }
    }
}

impl Chosen {
    /// Starts recording on the GPU, after waiting until it is idle, so that its clock and the
    /// host's clock start together.
    fn listen(&self) -> anyhow::Result<()> {
        match self.device {
            Device::Host => Ok(()),
            Device::Cuda(cuda) => {
                self.device.compute_stream().synchronize()?;
                Ok(cuda.trace()?)
            }
        }
    }

    fn write(
        &self,
        step: u64,
        phases: &[(Phase, Duration)],
        length: Duration,
    ) -> anyhow::Result<PathBuf> {
        let mut trace = ChromeTrace::new(self.rank);
        trace.step(step, phases, length);
        match self.device {
            Device::Host => {}
            Device::Cuda(cuda) => trace.kernels(&cuda.traced()?),
        }
        let path = self.run.trace(self.rank, step);
        trace.write(&path)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path) -> RunDirectory {
        std::fs::write(folder.join("recipe.yaml"), "").unwrap();
        RunDirectory::open(folder).unwrap()
    }

    fn wanted(ranks: &[usize]) -> Trace {
        Trace { first_step: 3, steps: 2, ranks: ranks.to_vec() }
    }

    /// Returns name, start and end of the complete events of one thread.
    fn spans(trace: &Value, thread: usize) -> Vec<(String, f64, f64)> {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let own = events.filter(|e| e["ph"] == "X" && e["tid"] == thread);
        own.map(|e| {
            let (start, length) = (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
            (e["name"].as_str().unwrap().to_owned(), start, start + length)
        })
        .collect()
    }

    #[test]
    fn a_trace_parses_and_its_phases_nest_in_the_step_and_cover_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let mut tracer = Tracer::new(Some(&wanted(&[1])), &run, 1, Device::Host);
        let phases = [Phase::Data, Phase::Forward, Phase::Collective, Phase::Backward];
        for step in 2..7 {
            tracer.begin(step);
            for phase in phases {
                tracer.enter(phase);
                std::thread::park_timeout(Duration::from_millis(2));
            }
        }
        tracer.finish();
        let mut files: Vec<_> =
            std::fs::read_dir(run.traces()).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["rank-0001-step-3.json", "rank-0001-step-4.json"]);
        let text = std::fs::read(run.trace(1, 3)).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let spans = spans(&trace, PHASES);
        let names: Vec<&str> = spans.iter().map(|span| span.0.as_str()).collect();
        assert_eq!(names, ["step 3", "data", "forward", "collective", "backward"]);
        let (start, end) = (spans[0].1, spans[0].2);
        // The rounding of sums of microseconds in f64 is far below a nanosecond.
        let nanosecond = 1e-3;
        assert!(
            start == 0.0 && spans[1].1 < 1e3,
            "the first phase begins with the step: {spans:?}"
        );
        for pair in spans[1..].windows(2) {
            assert!(
                (pair[0].2 - pair[1].1).abs() < nanosecond,
                "phases follow each other: {pair:?}"
            );
        }
        assert!((spans[4].2 - end).abs() < nanosecond && end >= 8e3, "{spans:?}");
        assert!(trace["traceEvents"].as_array().unwrap().iter().all(|e| e["pid"] == 1));
    }

    #[test]
    fn ranks_that_are_not_chosen_write_nothing_and_a_full_disk_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        for mut tracer in [
            Tracer::none(),
            Tracer::new(None, &run, 0, Device::Host),
            Tracer::new(Some(&wanted(&[1])), &run, 0, Device::Host),
        ] {
            tracer.begin(3);
            tracer.enter(Phase::Data);
            tracer.finish();
            assert!(!run.traces().exists());
        }
        std::fs::write(run.traces(), "a file where the folder belongs").unwrap();
        let mut tracer = Tracer::new(Some(&wanted(&[0])), &run, 0, Device::Host);
        tracer.begin(3);
        tracer.finish();
    }
}
