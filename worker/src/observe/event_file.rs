//! TensorBoard event files.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use vljepa_recipes::clock;

/// TensorBoard event file: a sequence of records. A record is a length, the masked CRC of the
/// length, an `Event` message and the masked CRC of the message.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
}

impl EventFile {
    pub(super) fn create(folder: &Path) -> anyhow::Result<Self> {
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

    pub(super) fn scalars(
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
pub(super) fn masked_crc(data: &[u8]) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::masked_crc;

    #[test]
    fn masked_checksums_are_those_of_tfrecord() {
        // Length field of a 24-byte record and its masked CRC, as TensorFlow 2 writes them.
        assert_eq!(masked_crc(&24u64.to_le_bytes()), 0x224b_7fa3);
    }
}
