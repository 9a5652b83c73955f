//! Reads from the bitstream at which packets of a clip a decoder can start.
//!
//! Containers mark such packets too, but files with wrong marks are common, and a decoder that
//! starts at a wrong packet shows grey pictures without an error. A packet is an entry only if the
//! decoding of the frames after it cannot depend on the packets before it:
//!
//! | codec | entry |
//! |---|---|
//! | H.264 | IDR picture |
//! | HEVC | IDR or CRA picture |
//! | MPEG-1, MPEG-2 | I-picture |
//! | MPEG-4 part 2 | I-VOP |
//! | VP8, VP9 | key frame |
//! | AV1 | key frame that is shown |
//! | MJPEG and codecs without prediction between frames | every packet |
//! | all other codecs | only the first packet |
//!
//! A recovery point of H.264 is no entry. Some encoders place one before pictures that refer to
//! pictures before it, and FFmpeg decodes these with other references and no error.
//!
//! Frames that follow an entry in the file but are shown before it (B-pictures of an open GOP) may
//! depend on packets before it. The caller must not decode them from this entry.

use ffmpeg_next::codec::Id;

use super::bitstream::{nal_units, obus, start_codes};

/// Content of one packet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coded {
    /// Whether a decoder may start here.
    pub(super) entry: bool,
    /// Whether the packet shows no frame, as the alternate reference frames of VP8 do.
    pub(super) hidden: bool,
    /// Whether no other frame can refer to the frame of this packet. Without the packet, the
    /// decoder gives the same other frames.
    pub(super) droppable: bool,
    /// Temporal sub-layer. In HEVC, frames of higher sub-layers may refer to frames that are marked
    /// as no references.
    sublayer: u8,
    /// One bit for each kind of header (parameter set, table) in the packet. Later packets need
    /// these headers.
    headers: u8,
    /// Whether the decoder may show another number of frames than one for this packet.
    unclear: bool,
    /// Whether a coded sequence ends with this packet. The decoder drops some frames after it.
    ends: bool,
}

/// Reads all packets of a clip, in decoding order. Returns `None` if the packets do not tell which
/// frames the decoder will show. The clip must then be decoded from its start.
pub(super) fn read<'a>(codec: Id, packets: impl Iterator<Item = &'a [u8]>) -> Option<Vec<Coded>> {
    joined(codec, packets.map(|data| one(codec, data)).collect())
}

/// Reads one packet. [`joined`] corrects the result after all packets are known.
pub(super) fn one(codec: Id, data: &[u8]) -> Coded {
    reader(codec).map_or_else(Coded::default, |read| read(data))
}

/// Corrects what the packets of a clip say by themselves. Returns `None` as [`read`] does.
pub(super) fn joined(codec: Id, mut coded: Vec<Coded>) -> Option<Vec<Coded>> {
    let (last, others) = coded.split_last()?;
    if coded.iter().any(|packet| packet.unclear) || others.iter().any(|packet| packet.ends) {
        return None;
    }
    // The decoder may drop frames before the first entry.
    if reader(codec).is_some() && !others.first().unwrap_or(last).entry {
        return None;
    }
    // A decoder that starts at an entry has not seen the headers before it. So the entry must
    // repeat all of them, and no other packet may bring headers.
    let all_headers = coded.iter().fold(0, |all, packet| all | packet.headers);
    let between = coded.iter().skip(1).any(|packet| !packet.entry && packet.headers != 0);
    let top = coded.iter().map(|packet| packet.sublayer).max().unwrap_or(0);
    for packet in &mut coded {
        packet.droppable &= packet.sublayer == top && packet.headers == 0;
        packet.entry &= packet.headers == all_headers && !between;
    }
    coded[0].entry = true;
    Some(coded)
}

fn reader(codec: Id) -> Option<fn(&[u8]) -> Coded> {
    match codec {
        Id::H264 => Some(h264),
        Id::HEVC => Some(hevc),
        Id::MPEG1VIDEO | Id::MPEG2VIDEO => Some(mpeg2),
        Id::MPEG4 => Some(mpeg4),
        Id::VP8 => Some(vp8),
        Id::VP9 => Some(vp9),
        Id::AV1 => Some(av1),
        Id::MJPEG => Some(mjpeg),
        Id::PRORES
        | Id::DNXHD
        | Id::DVVIDEO
        | Id::HUFFYUV
        | Id::FFVHUFF
        | Id::UTVIDEO
        | Id::JPEG2000
        | Id::PNG
        | Id::RAWVIDEO
        | Id::V210 => Some(|_| Coded { entry: true, ..Coded::default() }),
        _ => None,
    }
}

fn h264(data: &[u8]) -> Coded {
    let mut coded = Coded { hidden: true, ..Coded::default() };
    for nal in nal_units(data) {
        match nal[0] & 0x1f {
            kind @ 1..=5 => {
                // The second field of an IDR picture is a P field: the first slice decides.
                coded.entry |= coded.hidden && kind == 5;
                // Bits: forbidden_zero_bit, nal_ref_idc (2), nal_unit_type (5).
                coded.droppable = (coded.hidden || coded.droppable) && nal[0] & 0x60 == 0;
                coded.hidden = false;
            }
            7 => coded.headers |= 1,
            8 => coded.headers |= 2,
            _ => {}
        }
    }
    coded
}

fn hevc(data: &[u8]) -> Coded {
    let mut coded = Coded { hidden: true, ..Coded::default() };
    for nal in nal_units(data) {
        let &[first, second, ..] = nal else { continue };
        let layer = ((first & 1) << 5) | (second >> 3);
        match (first >> 1) & 0x3f {
            _ if layer != 0 => {}
            kind @ 0..=31 => {
                // Below 16, even types are no references within their sub-layer.
                let unreferenced = kind < 16 && kind % 2 == 0;
                coded.droppable = (coded.hidden || coded.droppable) && unreferenced;
                coded.sublayer = second & 7;
                coded.hidden = false;
                coded.entry |= (19..=21).contains(&kind);
                // The decoder drops leading pictures of a BLA picture.
                coded.unclear |= (16..=18).contains(&kind);
            }
            kind @ 32..=34 => coded.headers |= 1 << (kind - 32),
            36 | 37 => coded.ends = true,
            _ => {}
        }
    }
    coded
}

/// Values of `picture_coding_type` in MPEG-1 and MPEG-2.
const I_PICTURE: u8 = 1;
const B_PICTURE: u8 = 3;

fn mpeg2(data: &[u8]) -> Coded {
    let mut coded = Coded::default();
    let (mut pictures, mut is_field) = (0, false);
    for (code, after) in start_codes(data) {
        match (code, after) {
            (0x00, &[_, kind, ..]) => {
                let kind = (kind >> 3) & 7;
                coded.entry |= pictures == 0 && kind == I_PICTURE;
                coded.droppable = (pictures == 0 || coded.droppable) && kind == B_PICTURE;
                pictures += 1;
            }
            (0xb3, _) => coded.headers |= 1,
            // Quantisation matrices.
            (0xb5, &[id, ..]) if id >> 4 == 3 => coded.headers |= 2,
            (0xb5, &[id, _, structure, ..]) if id >> 4 == 8 => is_field = structure & 3 != 3,
            (0xb7, _) => coded.ends = true,
            _ => {}
        }
    }
    coded.unclear = pictures != if is_field { 2 } else { 1 };
    coded
}

/// Size in bytes below which a VOP may be one that is not coded. The decoder shows nothing for it.
/// The bits before the mark of such a VOP are fewer, and the coded pictures of a clip have more.
const SMALL_VOP: usize = 8;

fn mpeg4(data: &[u8]) -> Coded {
    let mut coded = Coded::default();
    let mut pictures = 0;
    for (code, after) in start_codes(data) {
        match (code, after) {
            (0xb6, &[first, ..]) => {
                pictures += 1;
                // `vop_coding_type`: I is 0, P is 1, B is 2.
                coded.entry = first >> 6 == 0;
                coded.droppable = first >> 6 == 2;
                coded.unclear |= after.len() < SMALL_VOP;
            }
            (0x20..=0x2f, _) => coded.headers |= 1,
            // The decoder recognises encoders with known faults by their user data.
            (0xb2, _) => coded.headers |= 2,
            _ => {}
        }
    }
    // DivX packs two frames in a packet.
    coded.unclear |= pictures != 1;
    coded
}

fn vp8(data: &[u8]) -> Coded {
    let &[tag, ..] = data else { return Coded { unclear: true, ..Coded::default() } };
    let entry = tag & 1 == 0 && data.get(3..6) == Some(&[0x9d, 0x01, 0x2a]);
    Coded { entry, hidden: tag & 0x10 == 0, ..Coded::default() }
}

fn vp9(data: &[u8]) -> Coded {
    let (Some(&first), Some(&last)) = (data.first(), data.last()) else {
        return Coded { unclear: true, ..Coded::default() };
    };
    // Bits: marker (2), profile (2), reserved (1, profile 3 only), show_existing_frame,
    // not a key frame, show_frame.
    let bits = if (first >> 4) & 3 == 3 { first << 1 } else { first };
    let shows_existing = bits & 0x08 != 0;
    let is_superframe = last & 0xe0 == 0xc0;
    Coded {
        entry: first >> 6 == 2 && !shows_existing && bits & 0x04 == 0,
        hidden: !is_superframe && !shows_existing && bits & 0x02 == 0,
        ..Coded::default()
    }
}

fn av1(data: &[u8]) -> Coded {
    let mut coded = Coded::default();
    let (mut frames, mut shown) = (0, 0);
    for (kind, payload) in obus(data) {
        match (kind, payload) {
            (1, _) => coded.headers |= 1,
            (3 | 6, &[bits, ..]) => {
                // Bits: show_existing_frame, frame_type (2), show_frame.
                let (shows_existing, shows_new) = (bits & 0x80 != 0, bits & 0x10 != 0);
                coded.entry |= frames == 0 && !shows_existing && bits & 0x60 == 0 && shows_new;
                frames += 1;
                shown += i32::from(shows_existing || shows_new);
            }
            _ => {}
        }
    }
    coded.unclear = shown != 1;
    coded
}

fn mjpeg(data: &[u8]) -> Coded {
    let mut coded = Coded { entry: data.starts_with(&[0xff, 0xd8]), ..Coded::default() };
    let mut rest = data.get(2..).unwrap_or_default();
    // Segments up to the first scan.
    while let &[0xff, marker @ (0xc0..=0xcf | 0xdb..=0xfe), high, low, ..] = rest {
        match marker {
            0xdb => coded.headers |= 1,
            0xc4 => coded.headers |= 2,
            _ => {}
        }
        let length = 2 + usize::from(u16::from_be_bytes([high, low]));
        rest = rest.get(length..).unwrap_or_default();
    }
    coded
}
