//! Writes the metrics of a run on rank 0: `metrics.jsonl` and TensorBoard event files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use vljepa_recipes::protocol::{DataWork, Gauges, Metrics, Phase, Resumed};
use vljepa_recipes::run_directory::{append_line, atomic_write};

use super::event_file::EventFile;

/// Appends lines of metrics. When a run resumes, lines of steps that it will compute again are
/// dropped first.
///
/// A file that cannot be written (a full disk, a lost mount) does not end the run. The methods
/// return a warning instead, for the first failure after a success.
#[derive(Debug)]
pub struct MetricsWriter {
    lines: PathBuf,
    folder: Option<PathBuf>,
    events: Option<EventFile>,
    failing: bool,
}

/// Point from which a run continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Number of steps done.
    pub step: u64,
    /// Number of samples trained on.
    pub samples: u64,
}

/// Result of [`MetricsWriter::open`].
#[derive(Debug)]
pub struct Opened {
    /// The writer of the run's metrics.
    pub writer: MetricsWriter,
    /// The point, and the cost of the steps after it whose lines were dropped.
    pub resumed: Resumed,
    /// Warning if a file cannot be written.
    pub trouble: Option<String>,
}

impl MetricsWriter {
    /// Opens the files of a run that continues from `point`. `events` is the folder for
    /// TensorBoard files, or `None` if they are not wanted.
    #[must_use]
    pub fn open(lines: &Path, events: Option<PathBuf>, point: ResumePoint) -> Opened {
        let lines = lines.to_owned();
        let mut writer = Self { lines, folder: events, events: None, failing: false };
        let (resumed, dropped) = match writer.drop_lines_after(point) {
            Ok(resumed) => (resumed, Ok(())),
            Err(error) => (Resumed { from_step: point.step, ..Resumed::default() }, Err(error)),
        };
        let trouble = writer.warning([dropped]);
        Opened { writer, resumed, trouble }
    }

    /// Drops lines of steps after `point`, and a line that was cut short by a kill and does not
    /// parse. Returns what the dropped steps cost.
    fn drop_lines_after(&self, point: ResumePoint) -> anyhow::Result<Resumed> {
        let mut resumed = Resumed { from_step: point.step, ..Resumed::default() };
        let lines = &self.lines;
        if !lines.exists() {
            return Ok(resumed);
        }
        let bytes =
            std::fs::read(lines).with_context(|| format!("cannot read {}", lines.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let mut kept = String::new();
        for line in text.lines() {
            match serde_json::from_str::<Metrics>(line) {
                Ok(metrics) if metrics.step <= point.step => kept.extend([line, "\n"]),
                Ok(metrics) => add_lost(&mut resumed, point, metrics),
                Err(_) => {}
            }
        }
        if kept.len() != bytes.len() {
            atomic_write(lines, kept.as_bytes())?;
        }
        Ok(resumed)
    }

    /// Appends one line of metrics. Returns a warning if a file cannot be written.
    #[must_use]
    pub fn write(&mut self, metrics: &Metrics) -> Option<String> {
        // The error's text already includes its cause.
        let line = append_line(&self.lines, metrics).map_err(|error| anyhow::anyhow!("{error}"));
        let scalars = self.scalars(metrics.step, scalars_of(metrics));
        self.warning([line, scalars])
    }

    /// Writes scores of an evaluation to TensorBoard. Returns a warning if the file cannot be
    /// written.
    #[must_use]
    pub fn scores(&mut self, step: u64, scores: &BTreeMap<String, f64>) -> Option<String> {
        let values = scores.iter().map(|(name, &value)| (format!("scores/{name}"), value));
        let written = self.scalars(step, values);
        self.warning([written])
    }

    fn scalars(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (String, f64)>,
    ) -> anyhow::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let file = match self.events.take() {
            Some(file) => file,
            None => EventFile::create(folder)?,
        };
        // A file that failed is not written again; the next record begins a new file.
        self.events.insert(file).scalars(step, values).inspect_err(|_| self.events = None)
    }

    /// Returns a warning for the first failure after a success.
    fn warning<const N: usize>(&mut self, results: [anyhow::Result<()>; N]) -> Option<String> {
        let error = results.into_iter().find_map(Result::err);
        let news = error.as_ref().filter(|_| !self.failing);
        let text =
            news.map(|error| format!("metrics are not written: {error:#}; training goes on"));
        self.failing = error.is_some();
        text
    }
}

/// Adds the work of a dropped line. The part of its interval before `point` is not lost: a
/// checkpoint can be saved in the middle of an interval.
fn add_lost(resumed: &mut Resumed, point: ResumePoint, metrics: Metrics) {
    let start_s = metrics.phase_s.get(&Phase::Start).copied().unwrap_or_default();
    let seconds = metrics.seconds() - start_s;
    let of_interval = metrics.samples_per_s * metrics.seconds();
    #[expect(clippy::cast_precision_loss, reason = "counts of samples stay far below 2^53")]
    let after = metrics.samples.saturating_sub(point.samples) as f64;
    let share = if of_interval > 0.0 { (after / of_interval).min(1.0) } else { 1.0 };
    resumed.lost_steps = metrics.step.saturating_sub(point.step);
    resumed.lost_s += share * seconds;
    resumed.kept_s += (1.0 - share) * seconds;
    resumed.lost_until = Some(metrics.time);
}

/// Returns TensorBoard tags and values of one line of metrics.
fn scalars_of(metrics: &Metrics) -> Vec<(String, f64)> {
    #[expect(clippy::cast_precision_loss, reason = "memory in MiB is far below 2^53")]
    let mib = |memory: Option<u64>| memory.map(|mib| mib as f64);
    let mut values = vec![
        ("train/loss".to_owned(), metrics.loss),
        ("train/gradient_norm".to_owned(), metrics.gradient_norm),
        ("train/learning_rate".to_owned(), metrics.learning_rate),
        ("speed/samples_per_s".to_owned(), metrics.samples_per_s),
        ("speed/data_wait_fraction".to_owned(), metrics.data_wait_fraction),
    ];
    let known = [
        ("train/scale", metrics.scale),
        ("speed/tflops", metrics.tflops),
        ("speed/mfu", metrics.mfu),
        ("memory/host_mib", mib(metrics.memory_mib)),
        ("memory/device_mib", mib(metrics.device_memory_mib)),
    ];
    values.extend(known.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value?))));
    values.extend(metrics.gauges.iter().flat_map(scalars_of_gauges));
    values.extend(metrics.data.iter().flat_map(scalars_of_data));
    let phases = metrics.phase_s.iter();
    values.extend(phases.map(|(phase, seconds)| (format!("phase_s/{}", phase.name()), *seconds)));
    values
}

/// Returns TensorBoard tags and values of the gauges of collapse.
fn scalars_of_gauges(gauges: &Gauges) -> [(String, f64); 5] {
    [
        ("predicted_effective_rank", gauges.predicted.effective_rank),
        ("target_effective_rank", gauges.target.effective_rank),
        ("predicted_uniformity", gauges.predicted.uniformity),
        ("target_uniformity", gauges.target.uniformity),
        ("alignment", gauges.alignment),
    ]
    .map(|(name, value)| (format!("gauges/{name}"), value))
}

/// Returns TensorBoard tags and values of the reader threads' work.
#[expect(clippy::cast_precision_loss, reason = "counts of an interval are small")]
fn scalars_of_data(data: &DataWork) -> Vec<(String, f64)> {
    let mut values = vec![
        ("data/ready_batches".to_owned(), data.ready_batches as f64),
        ("data/bytes_per_s".to_owned(), data.bytes_per_s()),
    ];
    for (kind, work) in &data.kinds {
        for (part, seconds) in &work.seconds {
            let tag = format!("data/{}_{}_s", kind.name(), part.name());
            values.push((tag, seconds / work.samples.max(1) as f64));
        }
    }
    values
}

/// Measures seconds per phase. All time between two readings is counted for exactly one phase.
#[derive(Debug)]
pub struct PhaseClock {
    since: Instant,
    phase: Phase,
    seconds: BTreeMap<Phase, f64>,
}

impl PhaseClock {
    /// Starts the clock in `phase`.
    #[must_use]
    pub fn start(phase: Phase) -> Self {
        Self { since: Instant::now(), phase, seconds: BTreeMap::new() }
    }

    /// Counts the time from now on as time of `phase`.
    pub fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        *self.seconds.entry(self.phase).or_default() += (now - self.since).as_secs_f64();
        (self.since, self.phase) = (now, phase);
    }

    /// Returns the seconds per phase since the last call, and starts again from zero.
    pub fn take(&mut self) -> BTreeMap<Phase, f64> {
        self.enter(self.phase);
        std::mem::take(&mut self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::event_file::masked_crc;

    fn line(step: u64) -> Metrics {
        Metrics {
            step,
            total_steps: 10,
            stage: "one".to_owned(),
            samples: step * 8,
            loss: 1.5,
            gradient_norm: 0.5,
            learning_rate: 1e-3,
            scale: Some(14.0),
            gauges: None,
            samples_per_s: 16.0,
            data_wait_fraction: 0.0,
            bad_samples: 0,
            phase_s: BTreeMap::from([(Phase::Forward, 0.5)]),
            tflops: Some(0.25),
            mfu: None,
            memory_mib: Some(100),
            device_memory_mib: None,
            data: None,
            time: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    /// Opens the files of a new run.
    fn open(lines: &Path, events: Option<PathBuf>) -> (MetricsWriter, Option<String>) {
        let opened = MetricsWriter::open(lines, events, ResumePoint { step: 0, samples: 0 });
        assert_eq!(opened.resumed, Resumed::default());
        (opened.writer, opened.trouble)
    }

    /// Reads records as TensorFlow does, and checks both checksums.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (length_crc, rest) = rest.split_at(4);
            assert_eq!(masked_crc(length).to_le_bytes(), length_crc);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            let (data, rest) = rest.split_at(length);
            let (data_crc, rest) = rest.split_at(4);
            assert_eq!(masked_crc(data).to_le_bytes(), data_crc);
            found.push(data.to_vec());
            bytes = rest;
        }
        found
    }

    #[test]
    fn a_resumed_run_drops_the_lines_it_computes_again_and_lines_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut text = String::new();
        for step in 1..=6 {
            text += &(serde_json::to_string(&line(step)).unwrap() + "\n");
        }
        text += "{\"step\":3,\"total";
        std::fs::write(&path, text).unwrap();
        let point = ResumePoint { step: 4, samples: 32 };
        let Opened { mut writer, resumed, trouble } = MetricsWriter::open(&path, None, point);
        assert_eq!(trouble.or(writer.write(&line(5))), None);
        assert_eq!((resumed.from_step, resumed.lost_steps), (4, 2));
        assert_eq!(resumed.lost_until, Some(line(6).time));
        let [lost_s, kept_s] = [resumed.lost_s, resumed.kept_s];
        assert!((lost_s - 1.0).abs() < 1e-9 && kept_s.abs() < 1e-9, "{resumed:?}");
        let steps: Vec<u64> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Metrics>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn of_an_interval_around_the_checkpoint_only_the_part_after_it_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        // Ten steps of 8 samples in 2 s, of which 0.5 s start-up; the checkpoint is of step 18.
        let phase_s = BTreeMap::from([(Phase::Start, 0.5), (Phase::Forward, 1.5)]);
        let interval =
            |step| Metrics { phase_s: phase_s.clone(), samples_per_s: 40.0, ..line(step) };
        let text = [10, 20, 30].map(|step| serde_json::to_string(&interval(step)).unwrap() + "\n");
        std::fs::write(&path, text.concat()).unwrap();
        let point = ResumePoint { step: 18, samples: 144 };
        let resumed = MetricsWriter::open(&path, None, point).resumed;
        assert_eq!((resumed.from_step, resumed.lost_steps), (18, 12));
        assert!((resumed.lost_s - 1.2 * 1.5).abs() < 1e-9, "{resumed:?}");
        assert!((resumed.kept_s - 0.8 * 1.5).abs() < 1e-9, "{resumed:?}");
        let again = MetricsWriter::open(&path, None, point).resumed;
        assert_eq!(again, Resumed { from_step: 18, ..Resumed::default() }, "counted once");
    }

    #[test]
    fn event_files_hold_a_version_and_one_record_per_line_of_metrics() {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("tensorboard");
        let lines = folder.path().join("metrics.jsonl");
        let (mut writer, trouble) = open(&lines, Some(events.clone()));
        assert_eq!(trouble, None);
        assert_eq!(writer.write(&line(1)), None);
        assert_eq!(writer.scores(1, &BTreeMap::from([("motion".to_owned(), 0.5)])), None);
        let file = std::fs::read_dir(&events).unwrap().next().unwrap().unwrap().path();
        let records = records(&std::fs::read(file).unwrap());
        assert_eq!(records.len(), 3);
        let holds = |record: &[u8], text: &[u8]| record.windows(text.len()).any(|w| w == text);
        assert!(holds(&records[0], b"brain.Event:2"));
        assert!(holds(&records[1], b"train/loss") && holds(&records[1], &1.5f32.to_le_bytes()));
        assert!(holds(&records[1], b"speed/tflops") && holds(&records[1], b"phase_s/forward"));
        assert!(!holds(&records[1], b"speed/mfu"), "what is not known is left out");
        assert!(holds(&records[2], b"scores/motion"));
    }

    #[test]
    fn a_full_disk_is_said_once_and_writing_goes_on_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (mut writer, _) = open(&path, None);
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let said = writer.write(&line(1)).unwrap();
        assert!(said.contains("metrics.jsonl") && said.contains("training goes on"), "{said}");
        assert_eq!(writer.write(&line(2)), None, "said once");
        std::fs::remove_file(&path).unwrap();
        // Part of a line, as a full disk leaves it.
        std::fs::write(&path, "{\"step\":2,").unwrap();
        assert_eq!(writer.write(&line(3)), None);
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: Vec<u64> = text
            .lines()
            .filter_map(|line| Some(serde_json::from_str::<Metrics>(line).ok()?.step))
            .collect();
        assert_eq!(kept, [3]);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(writer.write(&line(4)).is_some(), "a new failure is said again");
    }

    #[test]
    fn event_files_go_on_in_a_new_file_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let (lines, events) = (folder.path().join("m"), folder.path().join("tensorboard"));
        // A folder cannot be created at the path of a file.
        std::fs::write(&events, "").unwrap();
        let (mut writer, _) = open(&lines, Some(events.clone()));
        assert!(writer.write(&line(1)).unwrap().contains("tensorboard"));
        std::fs::remove_file(&events).unwrap();
        assert_eq!(writer.write(&line(2)), None);
        let file = std::fs::read_dir(&events).unwrap().next().unwrap().unwrap().path();
        assert_eq!(records(&std::fs::read(file).unwrap()).len(), 2);
        assert_eq!(std::fs::read_to_string(&lines).unwrap().lines().count(), 2);
    }

    #[test]
    fn every_moment_belongs_to_one_phase() {
        let started = Instant::now();
        let mut clock = PhaseClock::start(Phase::Data);
        clock.enter(Phase::Forward);
        clock.enter(Phase::Backward);
        let seconds = clock.take();
        let all: f64 = seconds.values().sum();
        assert!(all <= started.elapsed().as_secs_f64() && seconds.len() == 3);
    }
}
