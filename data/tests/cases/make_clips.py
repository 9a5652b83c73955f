"""Makes the clips of this folder, and prints the golden checksums of `data/src/decode/video/tests`.

    python3 -m venv venv; venv/bin/pip install av==18.1.0 imageio-ffmpeg==0.8.1
    venv/bin/python make_clips.py

Each clip shows 36 frames of FFmpeg's moving test picture. A checksum is that of FFmpeg's command
line (`-f crc`), which decodes a clip from its start. It covers the decoded planes of all frames.
"""

import os
import subprocess
import tempfile

import av
import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SOURCE = "testsrc2=size=64x48:rate=25:duration=1.44"
GROUPS = "keyint=12:min-keyint=12:scenecut=0:bframes=3:ref=4"


def ffmpeg(*arguments):
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make(name, *arguments, picture="noise=alls=6:allf=t:all_seed=3"):
    ffmpeg("-f", "lavfi", "-i", SOURCE, "-vf", picture + ",format=yuv420p", "-bitexact", *arguments, name)


def x264(name, parameters, **other):
    make(name, "-c:v", "libx264", "-crf", "36", "-x264-params", parameters, **other)


def x265(name, parameters):
    quiet = "log-level=none:info=0:pools=none:frame-threads=1:"
    make(name, "-c:v", "libx265", "-crf", "36", "-tag:v", "hvc1", "-x265-params", quiet + parameters)


def with_recovery_points(name, to, numbers):
    """Copies a clip and declares exact recovery at the frames `numbers`, which is not true."""
    sei = bytes([6, 6, 1, 0xC4, 0x80])  # recovery_frame_cnt 0, exact_match_flag 1, broken_link_flag 0
    with av.open(name) as source, av.open(to, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            data = bytes(packet)
            if number in numbers:
                data = len(sei).to_bytes(4, "big") + sei + data
            copy = av.Packet(data)
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.stream = packet.time_base, stream
            copy.is_keyframe = packet.is_keyframe or number in numbers
            target.mux(copy)


x264("h264_closed.mp4", GROUPS + ":b-pyramid=normal")
x264("h264_open.mp4", GROUPS + ":b-pyramid=normal:open-gop=1")
x264("h264_refresh.mp4", "keyint=12:min-keyint=12:scenecut=0:intra-refresh=1:bframes=0:ref=4")
x264("h264.ts", GROUPS)
x264("h264.flv", GROUPS + ":slices=3")
# The picture alternates, so that P-frames refer to the frame before the last one. Frames 12 and 24
# are I-frames, but the frames after them refer to the frames before them.
with tempfile.TemporaryDirectory() as folder:
    types = os.path.join(folder, "types")
    with open(types, "w") as file:
        file.writelines(f"{n} {'I' if n == 0 else 'i' if n % 12 == 0 else 'P'} -1\n" for n in range(36))
    plain = os.path.join(folder, "plain.mp4")
    x264(plain, f"keyint=infinite:scenecut=0:bframes=0:ref=4:qpfile={types}", picture="negate=enable='mod(n,2)'")
    with_recovery_points(plain, "h264_false_recovery.mp4", {12, 24})
x265("hevc_open.mp4", GROUPS + ":open-gop=1")
x265("hevc_open.mkv", GROUPS + ":open-gop=1:repeat-headers=1")
x265("hevc_closed.mp4", GROUPS + ":open-gop=0")
make("mpeg4.mp4", "-c:v", "mpeg4", "-q:v", "12", "-g", "12", "-bf", "2")
make("mpeg4.mkv", "-c:v", "mpeg4", "-q:v", "12", "-g", "12", "-bf", "0")
make("xvid_packed.avi", "-c:v", "libxvid", "-q:v", "12", "-g", "12", "-bf", "2")
make("mpeg2.ts", "-c:v", "mpeg2video", "-q:v", "14", "-g", "12", "-bf", "2")
make("mpeg1.mkv", "-c:v", "mpeg1video", "-q:v", "14", "-g", "12", "-bf", "2")
make("vp8.webm", "-c:v", "libvpx", "-b:v", "60k", "-g", "18", "-keyint_min", "18", "-auto-alt-ref", "1",
     "-lag-in-frames", "16", "-arnr-maxframes", "7", "-deadline", "good", picture="null")
make("vp9.webm", "-c:v", "libvpx-vp9", "-b:v", "60k", "-g", "12", "-auto-alt-ref", "1", "-lag-in-frames", "16")
make("av1.mp4", "-c:v", "libaom-av1", "-crf", "50", "-cpu-used", "6", "-g", "12")
make("mjpeg.avi", "-c:v", "mjpeg", "-q:v", "24", "-pix_fmt", "yuvj420p", picture="null")
make("theora.mkv", "-c:v", "libtheora", "-q:v", "3", "-g", "12")
make("msmpeg4.avi", "-c:v", "msmpeg4", "-q:v", "12", "-g", "12")
make("flv1.flv", "-c:v", "flv", "-q:v", "12", "-g", "12")

for clip in sorted(os.listdir(".")):
    if not clip.endswith((".py", ".jpg", ".webp", ".avif", ".png")):
        planes = ffmpeg("-i", clip, "-an", "-fps_mode", "passthrough", "-f", "crc", "-")
        frames = len(ffmpeg("-i", clip, "-an", "-fps_mode", "passthrough", "-f", "framecrc", "-").split("\n"))
        print(clip, planes.strip(), frames)
