//! What a run writes down while it trains: `metrics.jsonl` and TensorBoard event files (rank 0).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{Metrics, Phase};

/// Lines of metrics, appended. Lines of steps that a resumed run computes again are dropped first.
#[derive(Debug)]
pub struct MetricsWriter {
    lines: BufWriter<File>,
    events: Option<EventFile>,
}

impl MetricsWriter {
    /// Opens the files of a run that continues after `step`.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub fn open(lines: &Path, events: Option<&Path>, step: u64) -> anyhow::Result<Self> {
        if lines.exists() {
            let text = std::fs::read_to_string(lines)
                .with_context(|| format!("cannot read {}", lines.display()))?;
            // A line cut short by a kill does not parse and is dropped with the steps behind the checkpoint.
            let kept: String = text
                .lines()
                .filter(|line| serde_json::from_str::<Metrics>(line).is_ok_and(|m| m.step <= step))
                .flat_map(|line| [line, "\n"])
                .collect();
            vljepa_recipes::run_directory::atomic_write(lines, kept.as_bytes())?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(lines)
            .with_context(|| format!("cannot write {}", lines.display()))?;
        let events = events.map(EventFile::create).transpose()?;
        Ok(Self { lines: BufWriter::new(file), events })
    }

    /// Adds one line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, metrics: &Metrics) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.lines, metrics)?;
        self.lines.write_all(b"\n")?;
        self.lines.flush()?;
        let values = [
            ("train/loss", metrics.loss),
            ("train/gradient_norm", metrics.gradient_norm),
            ("train/learning_rate", metrics.learning_rate),
            ("train/scale", metrics.scale),
            ("speed/samples_per_s", metrics.samples_per_s),
            ("speed/data_wait_fraction", metrics.data_wait_fraction),
        ];
        self.scalars(metrics.step, values.map(|(tag, value)| (tag.to_owned(), value)))
    }

    /// Adds scores.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn scores(&mut self, step: u64, scores: &BTreeMap<String, f64>) -> anyhow::Result<()> {
        self.scalars(step, scores.iter().map(|(name, &value)| (format!("scores/{name}"), value)))
    }

    fn scalars(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (String, f64)>,
    ) -> anyhow::Result<()> {
        if let Some(events) = &mut self.events {
            events.scalars(step, values)?;
        }
        Ok(())
    }
}

/// TensorBoard's event format: records of (length, masked CRC of it, an `Event` message, masked CRC of that).
#[derive(Debug)]
struct EventFile {
    file: BufWriter<File>,
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
        let mut events = Self { file: BufWriter::new(file) };
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

    fn record(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_crc(&length).to_le_bytes())?;
        self.file.write_all(data)?;
        self.file.write_all(&masked_crc(data).to_le_bytes())?;
        self.file.flush()?;
        Ok(())
    }
}

/// CRC-32C, rotated and shifted so that a checksum of data that holds checksums stays useful (TFRecord).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol-buffer message being written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` of now.
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

/// Seconds per phase: each moment since the last reading belongs to one phase.
#[derive(Debug)]
pub struct PhaseClock {
    since: Instant,
    phase: Phase,
    seconds: BTreeMap<Phase, f64>,
}

impl PhaseClock {
    /// Starts in `phase`.
    #[must_use]
    pub fn start(phase: Phase) -> Self {
        Self { since: Instant::now(), phase, seconds: BTreeMap::new() }
    }

    /// From now on time belongs to `phase`.
    pub fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        *self.seconds.entry(self.phase).or_default() += (now - self.since).as_secs_f64();
        (self.since, self.phase) = (now, phase);
    }

    /// Seconds per phase since the last call.
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
            scale: 14.0,
            samples_per_s: 100.0,
            data_wait_fraction: 0.0,
            bad_samples: 0,
            phase_s: BTreeMap::new(),
            time: clock::now_text(),
        }
    }

    /// Reads records as TensorFlow does: both checksums must fit.
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
        // The length field of a 24-byte record and its masked CRC, as TensorFlow 2 writes them.
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
        let mut writer = MetricsWriter::open(&path, None, 4).unwrap();
        writer.write(&line(5)).unwrap();
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
        let mut writer = MetricsWriter::open(&lines, Some(&events), 0).unwrap();
        writer.write(&line(1)).unwrap();
        writer.scores(1, &BTreeMap::from([("motion".to_owned(), 0.5)])).unwrap();
        let file = std::fs::read_dir(&events).unwrap().next().unwrap().unwrap().path();
        let records = records(&std::fs::read(file).unwrap());
        assert_eq!(records.len(), 3);
        let holds = |record: &[u8], text: &[u8]| record.windows(text.len()).any(|w| w == text);
        assert!(holds(&records[0], b"brain.Event:2"));
        assert!(holds(&records[1], b"train/loss") && holds(&records[1], &1.5f32.to_le_bytes()));
        assert!(holds(&records[2], b"scores/motion"));
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
