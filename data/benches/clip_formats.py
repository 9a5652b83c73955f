#!/usr/bin/env python3
"""Compares ways to store prepared clips: size, error and decoding speed on this machine.

    data/benches/clip_formats.py OUT [--work FOLDER] [--rounds N] [--clips FILE…]

It writes OUT/record.jsonl with every measurement and OUT/README.md with the machine and the medians.
In FOLDER, outside of the repository, it installs FFmpeg from PyPI and makes the clips: two generated
ones of 10 s, 640×360, 30 frames per second, and those that the command line names.

Speed is clips per second of processor time with one thread on one core, from bytes in memory to
frames of 256². The error is that of these frames, against the frames that the original clip gives.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FEATURES = "vljepa-worker/mpi,vljepa-worker/video,vljepa-data/video,vljepa-tests/mpi,vljepa-tests/video"
FRAMES = [8, 16, 32]
GENERATED = [("pattern", "testsrc2=size=640x360:rate=30"), ("fractal", "mandelbrot=size=640x360:rate=30")]
# Name, arguments of FFmpeg. Without `bframes`, every frame is a reference.
H264 = [
    (f"H.264, {name}, crf {crf}", ["-crf", str(crf), "-x264-params", parameters + ":scenecut=0:open-gop=0"])
    for name, parameters, values in [
        ("GOP 8, no B", "keyint=8:min-keyint=8:bframes=0", [18, 23]),
        ("GOP 8, B unreferenced", "keyint=8:min-keyint=8:bframes=3:b-pyramid=none", [18]),
        ("GOP 16, B unreferenced", "keyint=16:min-keyint=16:bframes=3:b-pyramid=none", [18]),
        ("all intra", "keyint=1", [18, 23]),
    ]
    for crf in values
]
# Name, arguments of `vljepa-shards prepare`.
JPEG = [
    (f"JPEG, short side {side}, quality {quality}, {rate} frames per second",
     ["--short-side", side, "--quality", quality, "--frames-per-second", rate])
    for side, quality, rate in [(288, 90, "all"), (292, 85, "all"), (292, 90, "all"), (292, 95, "all"), (292, 90, 16), (292, 90, 8), (292, 90, 4)]
]


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def ffmpeg(work):
    python = work / "venv/bin/python"
    if not python.exists():
        run(sys.executable, "-m", "venv", work / "venv")
        run(python, "-m", "pip", "install", "-q", "imageio-ffmpeg")
    code = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"
    program = run(python, "-c", code, capture_output=True, text=True).stdout.strip()
    return [program, "-y", "-loglevel", "error"]


def originals(work, program, named):
    clips = []
    for name, source in GENERATED:
        path = work / f"{name}.mp4"
        if not path.exists():
            run(*program, "-f", "lavfi", "-i", source, "-t", "10", "-vf", "noise=alls=2:allf=t:all_seed=3,format=yuv420p",
                "-c:v", "libx264", "-threads", "1", path)
        clips.append(path)
    return clips + named


def h264(work, program, original, number, arguments):
    path = work / f"h264-{number}-{original.stem}.mp4"
    scale = "scale='if(lt(iw,ih),min(iw,288),-2)':'if(lt(iw,ih),-2,min(ih,288))':flags=bilinear,format=yuv420p"
    run(*program, "-i", original, "-an", "-vf", scale, "-fps_mode", "passthrough",
        "-c:v", "libx264", "-threads", "1", *arguments, path)
    return path


def jpeg(work, original, number, arguments):
    shard, into = work / f"{original.stem}.tar", work / f"jpeg-{number}-{original.stem}"
    with tarfile.open(shard, "w") as tar:
        tar.add(original, "clip" + original.suffix)
    run("rm", "-rf", into)
    run(ROOT / "target/release/vljepa-shards", "prepare", "webdataset", shard, "--into", into, *arguments,
        capture_output=True)
    path = into.with_suffix(".mp4")
    with tarfile.open(into / "shard-000000.tar") as tar:
        member = next(member for member in tar if member.name.endswith(".mp4"))
        path.write_bytes(tar.extractfile(member).read())
    return path


def build(features):
    """Builds `decode.rs` and `vljepa-shards` with the features of all programs of the repository."""
    run("cargo", "build", "--release", "--workspace", "--features", features, cwd=ROOT)
    output = run("cargo", "bench", "--no-run", "--workspace", "--features", features, "--bench", "decode",
                 "--message-format", "json", cwd=ROOT, capture_output=True, text=True).stdout
    messages = map(json.loads, output.splitlines())
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "decode")


def decoded(program, *arguments):
    output = run("taskset", "-c", "0", program, *arguments, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def machine():
    with open("/proc/cpuinfo") as file:
        fields = dict(line.strip().replace("\t", "").split(":", 1) for line in file if ":" in line)
    name, model = fields["model name"].strip(), fields.get("model", "").strip()
    return f"{os.cpu_count()} cores of {name} (model {model}), {platform.platform()}"


def table(records):
    """One line for each format: the mean size and error of all clips, and the medians of the speeds."""
    lines = ["| format | kB per clip | of the original | PSNR, dB | worst clip | clips/cpu-s: 8 frames | 16 | 32 |",
             "|---|---|---|---|---|---|---|---|"]
    formats = list(dict.fromkeys(record["format"] for record in records))
    size = lambda of: sum({r["clip"]: r["bytes"] for r in records if r["format"] == of}.values())
    for name in formats:
        ours = [record for record in records if record["format"] == name]
        clips = {record["clip"]: record for record in ours}
        errors = [record["psnr"] for record in clips.values() if record["psnr"] is not None]
        mean, worst = (f"{statistics.mean(errors):.1f}", f"{min(errors):.1f}") if errors else ("–", "–")
        # All clips once take the sum of their times.
        speeds = []
        for frames in FRAMES:
            medians = [statistics.median(r["per_cpu_s"] for r in ours if (r["clip"], r["frames"]) == (clip, frames)) for clip in clips]
            speeds.append(f"{len(medians) / sum(1 / speed for speed in medians):.1f}")
        lines.append(f"| {name} | {size(name) / len(clips) / 1000:.0f} | {size(name) / size('original'):.2f} | {mean} | {worst} | {' | '.join(speeds)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path.home() / ".cache/vljepa-clip-formats")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--features", default=FEATURES, help="features of the build")
    parser.add_argument("--clips", type=pathlib.Path, nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    program, bench = ffmpeg(arguments.work), build(arguments.features)
    records = []
    with open(arguments.out / "record.jsonl", "w") as file:
        for original in originals(arguments.work, program, arguments.clips):
            stored = [("original", original)]
            stored += [(name, h264(arguments.work, program, original, n, a)) for n, (name, a) in enumerate(H264)]
            stored += [(name, jpeg(arguments.work, original, n, a)) for n, (name, a) in enumerate(JPEG)]
            for name, path in stored:
                # A clip of a limited rate has other frames.
                same = name != "original" and ("JPEG" not in name or "all frames" in name)
                error = decoded(bench, "--frames", 16, "--reference", original, path)["psnr"] if same else None
                for number, frames in [(n, f) for f in FRAMES for n in range(arguments.rounds)]:
                    speed = decoded(bench, "--frames", frames, "--seconds", arguments.seconds, path)
                    records.append({"clip": original.name, "format": name, "bytes": path.stat().st_size, "psnr": error, "round": number,
                                    "frames": frames, "per_cpu_s": speed["per_cpu_s"], "load": os.getloadavg()[0]})
                    print(json.dumps(records[-1]), file=file, flush=True)
    commit = run("git", "rev-parse", "--short", "HEAD", cwd=ROOT, capture_output=True, text=True).stdout.strip()
    clips = ", ".join(f"{name} ({size // 1000} kB)" for name, size in {r["clip"]: r["bytes"] for r in records if r["format"] == "original"}.items())
    loads = [record["load"] for record in records]
    (arguments.out / "README.md").write_text(
        f"# Ways to store prepared clips\n\n{machine()}, commit {commit}, load {min(loads):.1f} to {max(loads):.1f}.\n"
        f"Command: `data/benches/clip_formats.py OUT --rounds {arguments.rounds} --seconds {arguments.seconds:g} --clips …`. Clips: {clips}.\n\n"
        f"{table(records)}\n")


main()
