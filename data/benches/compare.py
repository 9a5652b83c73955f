#!/usr/bin/env python3
"""Compares the decoding of pictures and clips with other libraries, by turns on this machine.

    data/benches/compare.py OUT [--work FOLDER] [--rounds N] [--photos FOLDER]

It writes OUT/record.jsonl with every measurement and OUT/README.md with the machine, the versions,
the medians, and the ratio to the best other library (above 1: ours is faster). In FOLDER, outside
of the repository, it installs the other libraries from PyPI and makes the pictures and clips.

One thread runs on one core (`taskset`). The figure is samples per second of processor time, which
other programs on the machine change little. Two threads run on two cores, and their figure is
samples per second of the clock: it shows locks, and needs an idle machine.
"""

import argparse
import glob
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FEATURES = "vljepa-worker/mpi,vljepa-worker/video,vljepa-data/video,vljepa-tests/mpi,vljepa-tests/video"
PACKAGES = ["numpy", "pillow", "opencv-python-headless", "decord", "av", "imageio-ffmpeg", "setuptools",
            "typing_extensions", "sympy", "networkx", "jinja2", "fsspec", "filelock"]
# The wheels of PyPI need CUDA's libraries, which `mkstubs.py` replaces by empty ones.
TORCH = ["torch", "torchvision", "torchcodec"]
PICTURE_PEERS = ["torchvision", "opencv", "pillow"]
CLIP_PEERS = ["torchcodec", "torchcodec_approximate", "torchcodec_transforms", "pyav", "decord"]
FRAMES = [8, 16, 32]


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def install(work):
    """Installs the other libraries. Returns their python and its environment."""
    python, libraries = work / "venv/bin/python", work / "libraries"
    if not libraries.exists():
        run(sys.executable, "-m", "venv", work / "venv")
        run(python, "-m", "pip", "install", "-q", *PACKAGES)
        run(python, "-m", "pip", "install", "-q", "--no-deps", *TORCH)
        site = next((work / "venv/lib").glob("python*/site-packages"))
        run(python, ROOT / "tests/golden/mkstubs.py", site / "torch/lib", work / "stubs", stdout=subprocess.DEVNULL)
        # torchcodec brings no FFmpeg. It gets PyAV's, whose files have other names.
        libraries.mkdir()
        for path in (site / "av.libs").iterdir():
            name, _, version = path.name.partition(".so.")
            (libraries / f"{name.rsplit('-', 1)[0]}.so.{version.split('.')[0]}").symlink_to(path)
    bundled = next((work / "venv/lib").glob("python*/site-packages/av.libs"))
    return python, dict(os.environ, LD_LIBRARY_PATH=f"{work / 'stubs'}:{libraries}:{bundled}")


INPUTS = """
import glob, os, subprocess, sys
import imageio_ffmpeg
from PIL import Image
folder, photos = sys.argv[1:]
ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "lavfi", "-i"]
subprocess.run([*ffmpeg, "mandelbrot=size=500x375:rate=1", "-vf", "noise=alls=12:allf=t:all_seed=3",
                "-frames:v", "16", folder + "/%02d.png"], check=True)
for name in glob.glob(folder + "/*.png"):
    Image.open(name).convert("RGB").save(name[:-3] + "jpg", quality=90)
    os.remove(name)
for name in glob.glob(photos + "/**/*", recursive=True) if photos else []:
    if name.endswith((".jpg", ".png")) and "truncated" not in name:
        picture = Image.open(name).convert("RGB").resize((500, 375), Image.LANCZOS)
        picture.save(f"{folder}/photo_{os.path.basename(name)[:-4]}.jpg", quality=90)
for name, source, noise in [("pattern", "testsrc2=size=640x360:rate=30", 2), ("fractal", "mandelbrot=size=640x360:rate=30", 2)]:
    subprocess.run([*ffmpeg, source, "-t", "10", "-vf", f"noise=alls={noise}:allf=t:all_seed=3,format=yuv420p",
                    "-c:v", "libx264", "-threads", "1", f"{folder}/{name}.mp4"], check=True)
"""


def measure(command, inputs, environment, threads, frames, seconds):
    cores = "0" if threads == 1 else "0,1"
    command = ["taskset", "-c", cores, *command, "--frames", frames, "--threads", threads, "--seconds", seconds]
    load = os.getloadavg()[0]
    output = run(*command, *inputs, capture_output=True, text=True, env=environment).stdout
    return {**json.loads(output.splitlines()[-1]), "load": load}


def build():
    """Builds `decode.rs` with the features that all programs of the repository are built with."""
    output = run("cargo", "bench", "--no-run", "--workspace", "--features", FEATURES, "--bench", "decode",
                 "--message-format", "json", cwd=ROOT, capture_output=True, text=True).stdout
    messages = map(json.loads, output.splitlines())
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "decode")


def versions(python, environment):
    code = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {TORCH + PACKAGES[:5]}), sep=', ')"
    peers = run(python, "-c", code, capture_output=True, text=True, env=environment).stdout.strip()
    ours = run("pkg-config", "--modversion", "libavcodec", capture_output=True, text=True).stdout.strip()
    commit = run("git", "rev-parse", "--short", "HEAD", cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return f"commit {commit}, libavcodec {ours}, libjpeg-turbo of turbojpeg-sys; {peers}"


def machine():
    with open("/proc/cpuinfo") as file:
        fields = dict(line.strip().replace("\t", "").split(":", 1) for line in file if ":" in line)
    name, model = fields["model name"].strip(), fields.get("model", "").strip()
    return f"{os.cpu_count()} cores of {name} (model {model}), {platform.platform()}"


def table(records):
    """One line for each task and peer, from the medians of the rounds."""
    groups = {}
    for record in records:
        task = record["task"], record["frames"], record["threads"]
        figure = record["per_cpu_s" if record["threads"] == 1 else "per_s"]
        groups.setdefault(task, {}).setdefault(record["peer"], []).append(figure)
    lines = ["| task | frames | threads | peer | samples/s of rounds | median |", "|---|---|---|---|---|---|"]
    ratios = ["| task | frames | threads | ours | best other | ratio |", "|---|---|---|---|---|---|"]
    for (task, frames, threads), peers in groups.items():
        medians = {peer: statistics.median(values) for peer, values in peers.items()}
        for peer, values in peers.items():
            rounds = ", ".join(f"{value:.4g}" for value in values)
            lines.append(f"| {task} | {frames} | {threads} | {peer} | {rounds} | {medians[peer]:.4g} |")
        ours = medians.pop("vljepa")
        best = max(medians, key=medians.get)
        ratios.append(f"| {task} | {frames} | {threads} | {ours:.4g} | {best} {medians[best]:.4g} | {ours / medians[best]:.2f} |")
    return "\n".join(ratios + ["", *lines])


def options(arguments):
    threads = " ".join(map(str, arguments.threads))
    photos = " --photos FOLDER" if arguments.photos else ""
    return f"--rounds {arguments.rounds} --seconds {arguments.seconds:g} --threads {threads}{photos}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path.home() / ".cache/vljepa-decode-peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--photos", type=pathlib.Path, help="folder of photographs to measure too")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    python, environment = install(arguments.work)
    inputs = arguments.work / ("inputs_photos" if arguments.photos else "inputs")
    if not inputs.exists():
        inputs.mkdir()
        run(python, "-c", INPUTS, inputs, arguments.photos or "")
    tasks = [("picture", f"{inputs}/[0-9]*.jpg", PICTURE_PEERS, [1]), ("clip", f"{inputs}/*.mp4", CLIP_PEERS, FRAMES)]
    if arguments.photos:
        tasks.insert(1, ("photo", f"{inputs}/photo_*.jpg", PICTURE_PEERS, [1]))
    ours = build()
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = []
    with open(arguments.out / "record.jsonl", "w") as file:
        for threads in arguments.threads:
            for task, pattern, peers, counts in tasks:
                for frames, number in [(frames, number) for frames in counts for number in range(arguments.rounds)]:
                    for peer in ["vljepa", *peers]:
                        command = [ours] if peer == "vljepa" else [python, HERE / "peers.py", peer]
                        record = measure(command, sorted(glob.glob(pattern)), environment if peer != "vljepa" else None,
                                         threads, frames, arguments.seconds)
                        records.append({"task": task, "round": number, **record})
                        print(json.dumps(records[-1]), file=file, flush=True)
    sizes = {task: [os.path.getsize(name) for name in glob.glob(pattern)] for task, pattern, _, _ in tasks}
    sizes = ", ".join(f"{task}: {len(values)} files of {sum(values) // len(values) // 1000} kB" for task, values in sizes.items())
    (arguments.out / "README.md").write_text(
        f"# Decoding to 256² frames\n\n{machine()}.\n{versions(python, environment)}.\n"
        f"Command: `data/benches/compare.py OUT {options(arguments)}`. Inputs: {sizes}.\n\n{table(records)}\n")


main()
