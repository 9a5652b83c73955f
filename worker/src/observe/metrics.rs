//! Writes the metrics of a run on rank 0: `metrics.jsonl` and TensorBoard event files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{DataWork, Gauges, Metrics, Phase};
use vljepa_recipes::run_directory::{append_line, atomic_write};

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

impl MetricsWriter {
    /// Opens the files of a run that continues after `step`. `events` is the folder for TensorBoard
    /// files, or `None` if they are not wanted. Returns a warning if a file cannot be written.
    #[must_use]
    pub fn open(lines: &Path, events: Option<PathBuf>, step: u64) -> (Self, Option<String>) {
        let lines = lines.to_owned();
        let mut writer = Self { lines, folder: events, events: None, failing: false };
        let dropped = writer.drop_lines_after(step);
        let trouble = writer.warning([dropped]);
        (writer, trouble)
    }

    /// Drops lines of steps after `step`, and a line that was cut short by a kill and does not
    /// parse.
    fn drop_lines_after(&self, step: u64) -> anyhow::Result<()> {
        let lines = &self.lines;
        if !lines.exists() {
            return Ok(());
        }
        let bytes =
            std::fs::read(lines).with_context(|| format!("cannot read {}", lines.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let kept: String = text
            .lines()
            .filter(|line| serde_json::from_str::<Metrics>(line).is_ok_and(|m| m.step <= step))
            .flat_map(|line| [line, "\n"])
            .collect();
        if kept.len() == bytes.len() {
            return Ok(());
        }
        Ok(atomic_write(lines, kept.as_bytes())?)
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

/// TensorBoard event file: a sequence of records. A record is a length, the masked CRC of the
/// length, an `Event` message and the masked CRC of the message.
#[derive(Debug)]
struct EventFile {
    file: File,
}

impl EventFile {
    fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let started = clock::now();
        let path = folder.join(format!(
            "events.out.tfevents.{}.{}",
            started.as_millisecond(),
            std::process::id()
        ));
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self { file };
        let mut version = Message::event();
        version.bytes(3, b"brain.Event:2");
        events.record(&version.0)?;
        Ok(events)
    }

    fn scalars(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (String, f64)>,
    ) -> anyhow::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "TensorBoard's scalars are f32")]
            entry.fixed32(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Message::event();
        event.varint_field(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    /// Writes a record with one call, so a reader sees whole records. Only the last record of a
    /// killed process may be cut short.
    fn record(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record).context("cannot write TensorBoard's event file")
    }
}

/// Returns TFRecord's masked CRC-32C: rotated and shifted, so that checksums of data that contain
/// checksums stay useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol-buffer message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    /// Begins an `Event` message with the current time.
    fn event() -> Self {
        let mut event = Self::default();
        event.tag(1, 1);
        event.0.extend(clock::now().as_duration().as_secs_f64().to_le_bytes());
        event
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn varint_field(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn fixed32(&mut self, field: u64, value: f32) {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
    }
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
            samples_per_s: 100.0,
            data_wait_fraction: 0.0,
            bad_samples: 0,
            phase_s: BTreeMap::from([(Phase::Forward, 0.5)]),
            tflops: Some(0.25),
            mfu: None,
            memory_mib: Some(100),
            device_memory_mib: None,
            data: None,
            time: clock::now_text(),
        }
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
    fn masked_checksums_are_those_of_tfrecord() {
        // Length field of a 24-byte record and its masked CRC, as TensorFlow 2 writes them.
        assert_eq!(masked_crc(&24u64.to_le_bytes()), 0x224b_7fa3);
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
        let (mut writer, trouble) = MetricsWriter::open(&path, None, 4);
        assert_eq!(trouble.or(writer.write(&line(5))), None);
        let steps: Vec<u64> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Metrics>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn event_files_hold_a_version_and_one_record_per_line_of_metrics() {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("tensorboard");
        let lines = folder.path().join("metrics.jsonl");
        let (mut writer, trouble) = MetricsWriter::open(&lines, Some(events.clone()), 0);
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
        let (mut writer, _) = MetricsWriter::open(&path, None, 0);
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
        let (mut writer, _) = MetricsWriter::open(&lines, Some(events.clone()), 0);
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
