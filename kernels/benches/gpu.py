#!/usr/bin/env python3
"""What only a GPU can say: are the kernels right, how fast are they, how fast is the step, and PyTorch beside each.

  gpu.py pack FOLDER                 builds the programs here (Rust, no GPU) and puts all that the other machine needs into FOLDER
  gpu.py run FOLDER OUT PHASE…       runs phases on a machine with a GPU, a driver, NVRTC and PyTorch; results are added to OUT
  gpu.py report OUT                  the table of all results in OUT, as OUT/README.md
  gpu.py dry-run OUT                 every phase at tiny sizes, on an emulated GPU (and PyTorch on the CPU, where it is installed)

Phases, each well below eight minutes: cases (every kernel's tests on the GPU), kernels (each kernel and the ceilings), images, video,
long (the whole step), trace (where a step's time goes). Ours and PyTorch's run by turns in one call.
"""
import argparse, glob, json, os, pathlib, shutil, subprocess, sys, time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PHASES = ["cases", "kernels", "images", "video", "long", "trace"]
FEATURES = "vljepa-worker/emulator,vljepa-tests/cuda"
# Frames, rows of a rank, what backward computes again (also where the GPU has 80 GB instead of 141), rows that fit PyTorch.
STEPS = {
    "images": dict(frames=2, batch=128, recompute="none", recompute_80="none", peer_batch=128),
    "video": dict(frames=8, batch=128, recompute="none", recompute_80="mlp", peer_batch=48),
    "long": dict(frames=32, batch=80, recompute="mlp", recompute_80="block", peer_batch=12),
}
# Samples per second that one H200 should reach.
BARS = {"images": 430, "video": 105, "long": 20}
RANKS, TEXT = 192, 32


def pack(folder):
    """Builds tests and benchmarks without MPI and FFmpeg, and strips them."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target" / "gpu-build")}
    wanted = {"vljepa_kernels": "kernels_tests", "all": "tests", "operations_gpu": "operations_gpu", "step": "step"}
    common = ["--release", "--features", FEATURES, "--message-format=json"]
    commands = [
        ["cargo", "test", "--no-run", "-p", "vljepa-kernels", "-p", "vljepa-tests", "-p", "vljepa-worker", "--lib", "--test", "all", "--bench", "operations_gpu", "--bench", "step", *common],
    ]
    for command in commands:
        output = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True, text=True).stdout
        for line in output.splitlines():
            message = json.loads(line)
            program, name = message.get("executable"), message.get("target", {}).get("name")
            crate = message.get("package_id", "")
            if program and name in wanted and not (name == "all" and "tests" not in crate):
                target = folder / wanted[name]
                shutil.copy(program, target)
                subprocess.run(["strip", str(target)], check=True)
    missing = [name for name in wanted.values() if not (folder / name).exists()]
    if missing:
        sys.exit(f"gpu.py: not built: {', '.join(missing)}")
    for file in [HERE / "torch_kernels.py", ROOT / "worker/benches/torch_step.py", HERE / "gpu.py"]:
        shutil.copy(file, folder)
    shutil.copytree(ROOT / "recipes", folder / "recipes", dirs_exist_ok=True, ignore=shutil.ignore_patterns("src", "*.rs"))
    shutil.copytree(ROOT / "tests/golden", folder / "golden", dirs_exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()
    (folder / "commit").write_text(commit)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) >> 20} MiB, commit {commit}")


def environment():
    """Where this machine has NVRTC, its headers and cuBLASLt: beside PyTorch, or in a toolkit."""
    roots = [pathlib.Path(p) / "nvidia" for p in sys.path if p] + [pathlib.Path("/usr/local/cuda")]

    def find(*patterns):
        for root in roots:
            for pattern in patterns:
                found = sorted(glob.glob(str(root / pattern)))
                if found:
                    return pathlib.Path(found[0])
        return None

    env = {"VLJEPA_TEST_GPU": "0", "VLJEPA_SAY_ERRORS": "1"}
    nvrtc = find("cuda_nvrtc/lib/libnvrtc.so.1?", "cu1?/lib/libnvrtc.so.1?", "lib64/libnvrtc.so.1?")
    header = find("cuda_runtime/include/cuda_bf16.h", "cu1?/include/cuda_bf16.h", "include/cuda_bf16.h")
    blas = find("cublas/lib/libcublasLt.so.1?", "cu1?/lib/libcublasLt.so.1?", "lib64/libcublasLt.so.1?")
    if nvrtc:
        env["VLJEPA_NVRTC"] = str(nvrtc)
    if header:
        env["VLJEPA_CUDA_INCLUDE"] = str(header.parent)
    folders = [str(p.parent) for p in (blas, nvrtc) if p]
    env["LD_LIBRARY_PATH"] = ":".join(folders + [os.environ.get("LD_LIBRARY_PATH", "")])
    return env


class Runner:
    def __init__(self, folder, out, dry):
        self.folder, self.out, self.dry, self.mib = folder, out, dry, 0
        self.env = {**os.environ, **({} if dry else environment()), "VLJEPA_GOLDEN": str(folder / "golden")}
        out.mkdir(parents=True, exist_ok=True)
        self.torch = subprocess.run([sys.executable, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0
        if not self.torch:
            self.note({"what": "no PyTorch here: nothing is compared"}, "machine")

    def note(self, line, kind):
        print(json.dumps(line), flush=True)
        with open(self.out / f"{kind}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self, kind, phase, command):
        """Runs a program and keeps its lines of JSON; one that fails is noted with its last words."""
        started = time.time()
        done = subprocess.run([str(c) for c in command], env=self.env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                self.note({"phase": phase, **json.loads(line)}, kind)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-3:]
            self.note({"phase": phase, "failed": pathlib.Path(str(command[0])).name, "rc": done.returncode, "last": last}, kind)
        self.note({"phase": phase, "program": " ".join(str(c) for c in command[:2]), "seconds": round(time.time() - started, 1)}, "machine")
        return done.returncode == 0

    def python(self, kind, phase, *command):
        return not self.torch or self.lines(kind, phase, [sys.executable, *command])

    def recompute(self, step):
        return step["recompute" if self.mib > 100_000 else "recompute_80"]

    def machine(self):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total", "--format=csv,noheader"]
        try:
            gpu = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip()
            self.mib = int(gpu.split(",")[-1].strip().split()[0])
        except (FileNotFoundError, ValueError):
            gpu = "none"
        commit = self.folder / "commit"
        self.note({"what": "machine", "date": time.strftime("%Y-%m-%d %H:%M"), "gpu": gpu, "commit": commit.read_text() if commit.exists() else "?"}, "machine")

    def cases(self):
        good = True
        for program, filters in (("kernels_tests", ["tests_cube", "cuda::tests"]), ("tests", ["gpu_"])):
            command = [self.folder / program, *filters, "--nocapture", "--test-threads", "4"]
            if self.dry:
                command = [self.folder / program, *filters, "--list"]
            done = subprocess.run([str(c) for c in command], env=self.env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            (self.out / f"{program}.txt").write_text(done.stdout)
            results = [line for line in done.stdout.splitlines() if line.startswith("test result") or line.endswith("FAILED") or "tests," in line]
            self.note({"phase": "cases", "program": program, "rc": done.returncode, "results": results[-20:]}, "cases")
            good &= done.returncode == 0
        return good

    def kernels(self):
        ours = self.lines("kernels", "kernels", [self.folder / "operations_gpu", *(["--emulated"] if self.dry else [])])
        return self.python("kernels", "kernels", self.folder / "torch_kernels.py", *(["--cpu"] if self.dry else [])) and ours

    def ours(self, phase, *more):
        step = STEPS[phase]
        common = ["--text", TEXT, "--query", 0, "--recompute", self.recompute(step)]
        if self.dry:
            tiny = ["model.x_encoder.num_layers=1", "model.predictor.num_layers=1", "device=cuda", "precision=bf16"]
            size = ["--emulated", "--batch", 4, "--frames", 2, "--ranks", 3, "--text", 4, "--query", 0, "--recompute", self.recompute(step), "--steps", 1, "--warm-up", 0]
            arguments = ["--recipe", "recipes/quickstart.yaml", *size, *(a for t in tiny for a in ("--set", t))]
        else:
            arguments = ["--recipe", "recipes/pretrain.yaml", "--threads", 8, "--ranks", RANKS, "--batch", step["batch"], "--frames", step["frames"], "--steps", 12, "--warm-up", 3, *common]
        return [self.folder / "step", *arguments, *more]

    def step(self, phase):
        step, good = STEPS[phase], True
        good &= self.lines("step", phase, self.ours(phase))
        tiny = ["--device", "cpu", "--tiny", "--mode", "eager"] if self.dry else ["--steps", 10]
        for mode in ["eager"] if self.dry else ["default", "eager"]:
            good &= self.python("step", phase, self.folder / "torch_step.py", "--frames", step["frames"], "--batch", step["peer_batch"], "--text", TEXT, *(tiny if self.dry else [*tiny, "--mode", mode]))
        return good

    def trace(self):
        good = True
        for phase in ["images"] if self.dry else STEPS:
            more = [] if self.dry else ["--steps", 2]
            good &= self.lines("budget", phase, self.ours(phase, "--trace", self.out / f"trace-{phase}.json", *more))
        return good

    def phase(self, name):
        return self.step(name) if name in STEPS else getattr(self, name)()


def read(out, kind):
    file = out / f"{kind}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(out):
    text = ["# Measured on a GPU", ""]
    text += [f"- {m['gpu']}, commit {m['commit']}, {m['date']}" for m in read(out, "machine") if m.get("what") == "machine"]
    text += ["", "## Tests on the GPU", ""] + [f"- {c['program']}: rc {c['rc']}, {'; '.join(c['results'])}" for c in read(out, "cases")]
    steps = [s for s in read(out, "step") if "samples_per_s" in s]
    text += ["", "## The step of one rank (network left out)", "", "| stage | peer | rows | ms | samples/s | bar | GiB | ours ÷ peer |", "|---|---|---|---|---|---|---|---|"]
    for phase in STEPS:
        ours = [s["samples_per_s"] for s in steps if s["phase"] == phase and s["peer"] == "vljepa"]
        for s in (s for s in steps if s["phase"] == phase):
            ratio = f"{ours[-1] / s['samples_per_s']:.2f}" if ours and s["peer"] != "vljepa" else ""
            bar = BARS[phase] if s["peer"] == "vljepa" else ""
            text.append(f"| {phase} | {s['peer']} {s['mode']} | {s['batch']} | {s['ms']} | {s['samples_per_s']} | {bar} | {s.get('peak_gib') or ''} | {ratio} |")
    text += ["", "## Kernels", "", "| what | peer | shape | ms | rate | share of the ceiling |", "|---|---|---|---|---|---|"]
    for k in read(out, "kernels"):
        if "failed" in k or k.get("what") in (None, "device"):
            continue
        rates = [f"{k[key]} {unit}" for key, unit in (("GB_per_s", "GB/s"), ("tflops", "TFLOP/s"), ("fwd_tflops", "TFLOP/s forward"), ("bwd_tflops", "TFLOP/s backward"), ("gemm_tflops", "TFLOP/s"), ("error", "")) if key in k]
        peer = k.get("peer", "torch") + " " + str(k.get("backend", k.get("mode", "")))
        name = k["what"] + (f" {k['model']}" if "model" in k else "")
        text.append(f"| {name} | {peer} | {k.get('shape', k.get('parameters', ''))} | {k.get('ms', '')} | {', '.join(rates)} | {k.get('share', '')} |")
    text += ["", "## Where a step's time goes", ""]
    for b in (b for b in read(out, "budget") if b.get("what") == "budget"):
        text += [f"{b['phase']}: {b['ms']} ms, of which kernels, products and copies are {b['busy_ms']}", "", "| what | launches | ms |", "|---|---|---|"]
        text += [f"| {r['name']} | {r['count']} | {r['ms']} |" for r in b["rows"][:30]] + [""]
    failed = [f"- {kind}: {json.dumps(line)}" for kind in ("kernels", "step", "budget") for line in read(out, kind) if "failed" in line]
    text += ["", "## Failed", "", *failed] if failed else []
    (out / "README.md").write_text("\n".join(text) + "\n")
    print(f"{out / 'README.md'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pack").add_argument("folder", type=pathlib.Path)
    run = commands.add_parser("run")
    run.add_argument("folder", type=pathlib.Path)
    run.add_argument("out", type=pathlib.Path)
    run.add_argument("phases", nargs="+", choices=PHASES)
    commands.add_parser("report").add_argument("out", type=pathlib.Path)
    dry = commands.add_parser("dry-run")
    dry.add_argument("out", type=pathlib.Path)
    dry.add_argument("--folder", type=pathlib.Path, help="an already packed folder")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        return pack(arguments.folder.resolve())
    if arguments.command == "report":
        return report(arguments.out.resolve())
    dry = arguments.command == "dry-run"
    out = arguments.out.resolve()
    folder = arguments.folder
    if folder is None:
        folder = out / "packed"
        pack(folder)
    runner = Runner(folder.resolve(), out, dry)
    runner.machine()
    good = [runner.phase(phase) for phase in (PHASES if dry else arguments.phases)]
    report(out)
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
