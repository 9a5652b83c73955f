//! Reads packets of a video again, in any order.

use ffmpeg_next::format::context::Input;
use ffmpeg_next::{Packet, Rational, decoder};

use super::open;
use crate::decode::MediaSource;
use crate::decode::video::stream::{Opened, cannot_read, next_packet};

/// Time before a packet to which the container is told to seek, in seconds. Containers round times.
const SEEK_MARGIN_S: f64 = 0.5;

/// Number of packets that are read and dropped before the container is told to seek.
const SKIPPED_PACKETS: usize = 16;

/// Times of a packet, and what tells it from the others of a video.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) pts: Option<i64>,
    /// Decoding time. After a seek, some containers give none.
    dts: Option<i64>,
    pub(super) duration: i64,
    position: isize,
    size: usize,
}

impl Slot {
    pub(super) fn of(packet: &Packet) -> Self {
        Self {
            pts: packet.pts(),
            dts: packet.dts(),
            duration: packet.duration(),
            position: packet.position(),
            size: packet.size(),
        }
    }

    fn is_of(&self, packet: &Packet) -> bool {
        let other = Self::of(packet);
        (self.pts, self.position, self.size) == (other.pts, other.position, other.size)
    }
}

/// The decoder of a video, and what reads its packets.
pub(super) fn parts<'a>(
    source: &'a MediaSource,
    opened: &'a mut Opened,
    slots: &'a [Slot],
    next: &'a mut usize,
) -> (&'a mut decoder::Video, Packets<'a>) {
    let Opened { input, index, time_base, decoder, .. } = opened;
    (decoder, Packets { source, input, index: *index, time_base: *time_base, slots, next })
}

/// Reads packets of a video again.
pub(super) struct Packets<'a> {
    source: &'a MediaSource,
    input: &'a mut Input,
    index: usize,
    time_base: Rational,
    slots: &'a [Slot],
    next: &'a mut usize,
}

impl Packets<'_> {
    pub(super) fn send(
        &mut self,
        decoder: &mut decoder::Video,
        number: usize,
    ) -> Result<(), String> {
        let packet = self.packet(number)?;
        decoder
            .send_packet(&packet)
            .map_err(|error| format!("packet {number} cannot be decoded: {error}"))
    }

    /// Packet with a number. The container is told to seek if the packet is not among the next
    /// ones. It may seek to any packet before the wanted one; if it does not, or if it cannot be
    /// told where it is, the video is read from its start.
    fn packet(&mut self, number: usize) -> Result<Packet, String> {
        if !(*self.next..=*self.next + SKIPPED_PACKETS).contains(&number) {
            if let Some(packet) = self.seek(number)? {
                return Ok(packet);
            }
            *self.input = open(self.source)?.input;
            *self.next = 0;
        }
        self.read_to(number)
    }

    /// Seeks to the packet, and returns it if the container did.
    fn seek(&mut self, number: usize) -> Result<Option<Packet>, String> {
        let Some(ticks) = self.slots[number].dts.or(self.slots[number].pts) else {
            return Ok(None);
        };
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "microseconds of a video stay far below 2⁵³"
        )]
        let microseconds =
            ((ticks as f64 * f64::from(self.time_base) - SEEK_MARGIN_S) * 1e6) as i64;
        if microseconds <= 0 || self.input.seek(microseconds, ..microseconds).is_err() {
            return Ok(None);
        }
        let Some(packet) = self.next_of_stream()? else { return Ok(None) };
        let before = self.slots[..=number].iter().enumerate();
        let mut same = before.filter(|(_, slot)| slot.is_of(&packet));
        let (Some((found, _)), None) = (same.next(), same.next()) else { return Ok(None) };
        *self.next = found + 1;
        if found == number { Ok(Some(packet)) } else { self.read_to(number).map(Some) }
    }

    /// Reads up to the packet, which has not been read yet.
    fn read_to(&mut self, number: usize) -> Result<Packet, String> {
        loop {
            let packet = self.next_of_stream()?;
            let packet = packet.ok_or("the video has become shorter while it was read")?;
            if !self.slots.get(*self.next).is_some_and(|slot| slot.is_of(&packet)) {
                return Err("the video has changed while it was read".to_owned());
            }
            *self.next += 1;
            if *self.next == number + 1 {
                return Ok(packet);
            }
        }
    }

    fn next_of_stream(&mut self) -> Result<Option<Packet>, String> {
        loop {
            match next_packet(self.input).map_err(cannot_read)? {
                Some(packet) if packet.stream() != self.index => {}
                packet => return Ok(packet),
            }
        }
    }
}
