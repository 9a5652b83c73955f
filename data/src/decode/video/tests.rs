//! Tests that chosen frames are those of FFmpeg's decoding from the start, in every codec and
//! container, and whatever the container says about key frames.

use std::io::{Cursor, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex};

use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::packet::Flags;
use ffmpeg_next::format::{context::StreamIo, output_to_stream};
use ffmpeg_next::util::frame::Video as Frame;
use ffmpeg_next::{Dictionary, Packet, Rational, codec, encoder};

use super::convert::Converter;
use super::entry;
use super::stream::Stream;
use super::{Picture, Region, decode};
use crate::decode::uniform_frames;

mod jpegs;

/// A clip of `data/tests/cases`.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Number of frames and checksum of all decoded planes, from FFmpeg's command line
    /// (`make_clips.py`).
    frames: usize,
    checksum: u32,
    /// Packets at which decoding may start; empty if the clip must be decoded in order.
    entries: &'static [usize],
}

const fn case(name: &'static str, frames: usize, checksum: u32, entries: &'static [usize]) -> Case {
    Case { name, frames, checksum, entries }
}

pub(super) const CASES: [Case; 25] = [
    case("av1.mp4", 36, 0x4cc6_d727, &[0, 12, 24]),
    case("flv1.flv", 36, 0x3b67_7a28, &[0]),
    case("h264.flv", 36, 0x8ca3_1c59, &[0, 12, 24]),
    case("h264.ts", 36, 0x10df_c63f, &[0, 12, 24]),
    case("h264_closed.mp4", 36, 0x10df_c63f, &[0, 12, 24]),
    case("h264_false_recovery.mp4", 36, 0x74ca_77c9, &[0]),
    case("h264_open.mp4", 36, 0x686b_ad3b, &[0]),
    case("h264_refresh.mp4", 36, 0xe3fd_9abc, &[0]),
    case("hevc_all_sync.mp4", 60, 0x9755_8600, &[0, 30]),
    case("hevc_closed.mp4", 36, 0xdb8e_203c, &[0, 12, 24]),
    case("hevc_open.mkv", 36, 0x8da8_3a03, &[0, 9, 21]),
    case("hevc_open.mp4", 36, 0x8da8_3a03, &[0, 9, 21]),
    case("hevc_one_wrong_sync.mp4", 60, 0x9755_8600, &[0, 30]),
    // Every packet of MJPEG is an entry.
    case("mjpeg.avi", 36, 0xcdc1_ec37, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    case("mpeg1.mkv", 36, 0xdcf4_9923, &[0, 10, 22, 34]),
    case("mpeg2.ts", 36, 0x2f41_9c92, &[0, 10, 22, 34]),
    case("mpeg4.mkv", 36, 0x2546_a7e2, &[0, 12, 24]),
    case("mpeg4.mp4", 36, 0x4ecd_bf18, &[0, 10, 22, 34]),
    case("mpeg4_all_sync.mp4", 60, 0x9ae9_56a3, &[0, 30, 32]),
    case("mpegts_named.mp4", 60, 0x1aa2_83a5, &[0, 32]),
    case("msmpeg4.avi", 36, 0x626f_a5a0, &[0]),
    case("theora.mkv", 18, 0x1b2d_2b1f, &[0]),
    case("vp8.webm", 36, 0x36c0_494a, &[0, 18]),
    case("vp9.webm", 36, 0x5415_a45b, &[0, 12, 24]),
    case("xvid_packed.avi", 34, 0x4e60_3a2e, &[]),
];

pub(super) fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// All frames of a clip as pictures, and the checksum of their planes, decoded from the start.
pub(super) fn in_order(bytes: &[u8]) -> (Vec<Picture>, u32) {
    let mut stream = Stream::open(bytes).unwrap();
    let mut converter = Converter::new(stream.orientation);
    let mut pictures = Vec::new();
    let mut checksum = Adler { low: 1, high: 0 };
    stream
        .decode_all(&mut |frame| {
            checksum.add_frame(frame);
            pictures.push(converter.part(frame, &Region::whole)?.pixels);
            Ok(true)
        })
        .unwrap();
    (pictures, (checksum.high << 16) | checksum.low)
}

/// Adler-32 (RFC 1950), which FFmpeg's `-f crc` computes over raw frames.
struct Adler {
    low: u32,
    high: u32,
}

impl Adler {
    /// Adds the bytes of a frame of 4:2:0 YUV, plane by plane, without padding.
    fn add_frame(&mut self, frame: &Frame) {
        for plane in 0..frame.planes() {
            let half = |side: u32| if plane == 0 { side } else { side.div_ceil(2) } as usize;
            let (width, height) = (half(frame.width()), half(frame.height()));
            for line in frame.data(plane).chunks(frame.stride(plane)).take(height) {
                for &byte in &line[..width] {
                    self.low = (self.low + u32::from(byte)) % 65_521;
                    self.high = (self.high + self.low) % 65_521;
                }
            }
        }
    }
}

/// Asserts that any number of chosen frames are the frames of `expected`.
fn assert_chosen_frames(name: &str, bytes: &[u8], expected: &[Picture]) {
    for n in [1, 2, 3, 5, 8, expected.len()] {
        let clip = decode(bytes, n, &mut Ok::<Picture, String>).unwrap();
        for (&place, number) in clip.order.iter().zip(uniform_frames(expected.len(), n)) {
            let same = clip.pictures[place] == expected[number];
            assert!(same, "{name}: frame {number}, one of {n}, is not FFmpeg's");
        }
    }
}

#[test]
fn frames_decoded_in_order_are_those_of_ffmpegs_command_line() {
    for Case { name, frames, checksum, .. } in CASES {
        let (pictures, ours) = in_order(&read(name));
        assert_eq!((pictures.len(), ours), (frames, checksum), "{name}: {ours:#x}");
    }
}

#[test]
fn chosen_frames_are_those_decoded_in_order() {
    for Case { name, .. } in CASES {
        let bytes = read(name);
        assert_chosen_frames(name, &bytes, &in_order(&bytes).0);
    }
}

#[test]
fn decoding_starts_only_where_the_bitstream_allows_it() {
    for Case { name, entries, .. } in CASES {
        let stream = Stream::open(&read(name)).unwrap();
        let data = stream.packets.iter().map(|packet| packet.data().unwrap());
        let coded = entry::read(stream.codec, data).unwrap_or_default();
        let found: Vec<_> = (0..coded.len()).filter(|&number| coded[number].entry).collect();
        assert_eq!(found[..entries.len().min(12)], *entries, "{name}");
        assert_eq!(found.len(), if name == "mjpeg.avi" { 36 } else { entries.len() }, "{name}");
    }
}

/// The frames before a chosen one that no other frame refers to are not decoded. The clips of the
/// codecs with B-frames have such frames; without them the other frames are the same.
#[test]
fn frames_that_nothing_refers_to_can_be_left_out() {
    let clips = ["h264_closed.mp4", "hevc_closed.mp4", "mpeg2.ts", "mpeg4.mp4"];
    for name in clips {
        let bytes = read(name);
        let mut stream = Stream::open(&bytes).unwrap();
        let data = stream.packets.iter().map(|packet| packet.data().unwrap());
        let coded = entry::read(stream.codec, data).unwrap();
        let left_out = coded.iter().filter(|packet| packet.droppable).count();
        assert!((6..30).contains(&left_out), "{name}: {left_out} of {} packets", coded.len());
        let mut shown = |needed: &dyn Fn(usize) -> bool| {
            let mut frames = Vec::new();
            let mut converter = Converter::new(stream.orientation);
            let mut take = |frame: &Frame| {
                frames.push((frame.pts(), converter.part(frame, &Region::whole)?.pixels));
                Ok(true)
            };
            assert!(stream.decode_from(0..coded.len(), needed, &mut take).is_ok(), "{name}");
            frames
        };
        let all = shown(&|_| true);
        let some = shown(&|number| !coded[number].droppable);
        assert_eq!((all.len(), some.len()), (coded.len(), coded.len() - left_out), "{name}");
        assert!(some.iter().all(|frame| all.contains(frame)), "{name}: another frame changed");
        // Without a frame that others refer to, they change or are missing.
        let reference = (1..coded.len()).find(|&n| !coded[n].droppable && !coded[n].entry).unwrap();
        let wrong = shown(&|number| number != reference);
        assert!(!wrong.iter().all(|frame| all.contains(frame)), "{name}: packet {reference}");
    }
}

/// File in memory whose contents can be taken after the muxer has dropped its clone.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Cursor<Vec<u8>>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.lock().unwrap().seek(to)
    }
}

/// Writes the packets of a clip to another file, with other marks of key frames.
fn remuxed(
    bytes: &[u8],
    format: &str,
    options: &[(&str, &str)],
    is_key: impl Fn(usize, bool) -> bool,
) -> Vec<u8> {
    let io = StreamIo::from_read_seek(Cursor::new(bytes.to_vec())).unwrap();
    let mut input = ffmpeg::format::input_from_stream(io, None, None).unwrap();
    let memory = Memory::default();
    let io = StreamIo::from_write_seek(memory.clone()).unwrap();
    let mut output = output_to_stream(io, None, Some(format)).unwrap();
    let base: Rational = {
        let source = input.stream(0).unwrap();
        let mut stream = output.add_stream(encoder::find(codec::Id::None)).unwrap();
        stream.set_parameters(source.parameters());
        stream.set_time_base(source.time_base());
        source.time_base()
    };
    let options: Dictionary = options.iter().copied().collect();
    output.write_header_with(options).unwrap();
    let to = output.stream(0).unwrap().time_base();
    let mut number = 0;
    let mut packet = Packet::empty();
    while packet.read(&mut input).is_ok() {
        let key = is_key(number, packet.is_key());
        packet.set_flags(if key { Flags::KEY } else { Flags::empty() });
        packet.rescale_ts(base, to);
        packet.set_position(-1);
        packet.write(&mut output).unwrap();
        number += 1;
    }
    output.write_trailer().unwrap();
    drop(output);
    std::mem::take(memory.0.lock().unwrap().get_mut())
}

#[test]
fn wrong_marks_of_key_frames_change_no_pixel() {
    type Mark = fn(usize, bool) -> bool;
    let marks: [(&str, Mark); 4] = [
        ("all are marked", |_, _| true),
        ("one too many is marked", |number, key| key || number == 17),
        ("only the first is marked", |number, _| number == 0),
        ("the third and all true ones but the second are marked", |number, key| {
            number == 2 || (key && !(9..=12).contains(&number))
        }),
    ];
    let fragments = [("movflags", "frag_every_frame+empty_moov")];
    let mut damaged = 0;
    for Case { name, .. } in CASES {
        let bytes = read(name);
        let expected = in_order(&bytes).0;
        let targets: &[(&str, &[(&str, &str)])] = match name.rsplit_once('.').unwrap().1 {
            "mp4" if name != "mpegts_named.mp4" => &[("mp4", &[]), ("mp4", &fragments)],
            "mkv" => &[("matroska", &[])],
            "webm" => &[("webm", &[])],
            _ => continue,
        };
        for (format, options) in targets {
            for (wrong, mark) in marks {
                let damaged_clip = remuxed(&bytes, format, options, mark);
                let case = format!("{name} as {format} {options:?}, {wrong}");
                assert_chosen_frames(&case, &damaged_clip, &expected);
                damaged += 1;
            }
        }
    }
    assert!(damaged > 60, "{damaged} damaged clips");
}

/// The display matrix of the clip is 0 1 1 0, which transposes. FFmpeg's command line shows it so.
/// The matrix begins 48 bytes after the type of the box `tkhd`.
#[test]
fn every_display_matrix_is_applied() {
    const ONE: [u8; 4] = [0, 1, 0, 0];
    const MINUS_ONE: [u8; 4] = [0xff, 0xff, 0, 0];
    let transposed = read("h264_mirrored_turned.mp4");
    let track = transposed.windows(4).position(|kind| kind == b"tkhd").unwrap();
    let with_matrix = |numbers: [i32; 4]| {
        let mut clip = transposed.clone();
        for (number, offset) in numbers.into_iter().zip([0, 4, 12, 16]) {
            let bytes = [MINUS_ONE, [0; 4], ONE][usize::try_from(number + 1).unwrap()];
            clip[track + 44 + offset..][..4].copy_from_slice(&bytes);
        }
        decode(&clip, 2, &mut Ok::<Picture, String>)
    };
    assert_eq!(with_matrix([0, 1, 1, 0]), decode(&transposed, 2, &mut Ok::<Picture, String>));
    let first = |numbers| with_matrix(numbers).unwrap().pictures[0].clone();
    let upright = first([1, 0, 0, 1]);
    // The matrix maps the pixel at (x, y) to (a·x + c·y, b·x + d·y), up to a shift.
    for [a, b, c, d] in [
        [1, 0, 0, 1],
        [0, 1, -1, 0],
        [-1, 0, 0, -1],
        [0, -1, 1, 0],
        [-1, 0, 0, 1],
        [1, 0, 0, -1],
        [0, 1, 1, 0],
        [0, -1, -1, 0],
    ] {
        let turned = first([a, b, c, d]);
        let (width, height) = (upright.width.cast_signed(), upright.height.cast_signed());
        let pixel = |picture: &Picture, x: i32, y: i32| {
            let start = usize::try_from(3 * (y * picture.width.cast_signed() + x)).unwrap();
            <[u8; 3]>::try_from(&picture.pixels[start..start + 3]).unwrap()
        };
        // A negative factor maps 0 to the last row or column.
        let place = |p: i32, q: i32, x: i32, y: i32| {
            let last = |factor: i32, side: i32| if factor < 0 { side - 1 } else { 0 };
            p * x + q * y + last(p, width) + last(q, height)
        };
        for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
            let moved = pixel(&turned, place(a, c, x, y), place(b, d, x, y));
            assert_eq!(moved, pixel(&upright, x, y), "{a} {b} {c} {d}: ({x}, {y})");
        }
    }
    assert!(with_matrix([1, 1, -1, 1]).unwrap_err().contains("no multiple of 90 degrees"));
}

#[test]
fn a_clip_cut_short_is_refused() {
    let mut cuts = 0;
    for Case { name, .. } in CASES {
        let whole = read(name);
        // MPEG-TS consists of packets of 188 bytes and does not say how many.
        let step = if whole[0] == 0x47 { 188 } else { whole.len() };
        for length in (1..10).map(|tenth| whole.len() * tenth / 10) {
            if length % step != 0 {
                let error = decode(&whole[..length], 4, &mut Ok::<Picture, String>);
                assert!(error.is_err(), "{name}: {length} of {} bytes", whole.len());
                cuts += 1;
            }
        }
    }
    assert!(cuts > 200, "{cuts}");
    let error = decode(&read("vp9_cut.webm"), 4, &mut Ok::<Picture, String>).unwrap_err();
    assert!(error.contains("cut short"), "{error}");
    let live = remuxed(&read("vp9.webm"), "webm", &[("live", "1")], |_, key| key);
    assert!(decode(&live, 4, &mut Ok::<Picture, String>).is_ok(), "a whole live recording");
    let half = &live[..live.len() / 2];
    assert!(decode(half, 4, &mut Ok::<Picture, String>).is_err(), "half of a live recording");
}

#[test]
fn a_clip_that_cannot_be_used_is_refused_with_the_reason() {
    let refused = |bytes: &[u8]| decode(bytes, 4, &mut Ok::<Picture, String>).unwrap_err();
    assert!(refused(&read("song_with_cover.mp4")).contains("it is a song"));
    let no_index = refused(&read("h264_no_moov.mp4"));
    assert!(no_index.contains("cut short"), "{no_index}");
    let junk = refused(b"not a clip at all");
    assert!(junk.contains("Invalid data found when processing input"), "{junk}");
    // The size of MJPEG is in its frames and in the format of the stream.
    let mut clip = read("mjpeg.avi");
    let with = |clip: &[u8], pattern: &[u8]| -> Vec<usize> {
        (0..clip.len() - 20).filter(|&i| clip[i..].starts_with(pattern)).collect()
    };
    for frame in with(&clip, &[0xff, 0xc0]) {
        clip[frame + 5..frame + 9].copy_from_slice(&[0x2e, 0xe0, 0x2e, 0xe0]);
    }
    for format in with(&clip, b"strf") {
        clip[format + 12..format + 20].copy_from_slice(&[0xe0, 0x2e, 0, 0, 0xe0, 0x2e, 0, 0]);
    }
    let large = refused(&clip);
    assert!(large.contains("12000×12000 pixels are too many"), "{large}");
}
