"""One call of gpu.py: its phases, each under a deadline, the processes they start, and the archive
of their output."""

import concurrent.futures, ctypes, glob, importlib.metadata, importlib.util, json, os, pathlib, shutil, signal
import subprocess, sys, tarfile, tempfile, threading, time

import gpu_report

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Time limit of each call in seconds, and its phases with theirs. The time that the phases leave is
# for repeated modules.
CALLS = {
    "call1": (270, {"machine": 5, "gate": 15, "modules": 60, "steps": 30, "images": 40, "operations": 50, "video": 50}),
    "call2": (300, {"machine": 5, "red": 30, "sanitizers": 60, "images-beside-torch": 90, "torch-kernels": 60, "long": 50}),
}
# Tests that must pass before the other phases run: memory and copies, then products.
GATE = ("device::cuda::tests::values_survive", "device::cuda::tests::linear_layers")
# Small tests that reach every kernel of attention and InfoNCE, for tools that slow a kernel down a
# hundredfold.
SANITIZED = ("device::cuda::tests::attention_and_pooling", "device::cuda::tests::info_nce_agrees")
# For each step: frames; rows of a rank and recomputation, on a GPU of 141 GB and of 80 GB; rows
# that fit PyTorch; seconds.
STEPS = {
    "images": dict(frames=2, batch=(128, 128), recompute=("none", "none"), torch_batch=128, seconds=10),
    "video": dict(frames=8, batch=(128, 128), recompute=("none", "mlp"), torch_batch=48, seconds=16),
    "long": dict(frames=32, batch=(80, 64), recompute=("mlp", "block"), torch_batch=12, seconds=16),
}
RANKS, TEXT = 192, 32
AT_ONCE = 6
# A step of the quickstart's model with one layer per part, which an emulated GPU can run.
SMALL_STEP = [
    *("--recipe", ROOT / "recipes/quickstart.yaml"),
    *"--set model.x_encoder.num_layers=1 --set model.predictor.layers=[0,1] --set device=cuda --set precision=bf16".split(),
    *"--batch 4 --frames 2 --ranks 3 --text 4 --query 0 --steps 1 --warm-up 0".split(),
]


def libraries(wanted_nvrtc):
    """Finds NVRTC, its headers and cuBLASLt near PyTorch (wheels of CUDA 12 or 13) or in a toolkit.

    Returns environment variables that name them, and a note for the results."""
    roots = [pathlib.Path(p) / "nvidia" for p in sys.path if p] + [pathlib.Path("/usr/local/cuda")]

    def find(*patterns):
        return [f for root in roots for pattern in patterns for f in sorted(glob.glob(str(root / pattern)))]

    nvrtc = {f: nvrtc_version(f) for f in find(*(f"{d}/libnvrtc.so.1?" for d in ("cuda_nvrtc/lib", "cu1?/lib", "lib64")))}
    headers = find(*(f"{d}/cuda_bf16.h" for d in ("cuda_runtime/include", "cu1?/include", "include")))
    blas = find(*(f"{d}/libcublasLt.so.1?" for d in ("cublas/lib", "cu1?/lib", "lib64")))
    # Cubins are stored under the version of NVRTC; another version would compile them again.
    chosen = [f for f, version in nvrtc.items() if version == wanted_nvrtc] or list(nvrtc)
    found = {"VLJEPA_NVRTC": chosen, "VLJEPA_CUDA_INCLUDE": [os.path.dirname(h) for h in headers], "VLJEPA_CUBLASLT": blas}
    env = {variable: files[0] for variable, files in found.items() if files}
    folders = [os.path.dirname(f) for f in (*blas[:1], *chosen[:1])] + os.environ.get("LD_LIBRARY_PATH", "").split(":")
    env["LD_LIBRARY_PATH"] = ":".join(dict.fromkeys(filter(None, folders)))
    return env, dict(env, nvrtc=nvrtc.get(env.get("VLJEPA_NVRTC")), packed_nvrtc=wanted_nvrtc)


def nvrtc_version(library):
    """Version of the library, such as `13.0`, or the reason why it does not load."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        ctypes.CDLL(str(library)).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    except (OSError, AttributeError) as error:
        return str(error)
    return f"{major.value}.{minor.value}"


class Call:
    """One call: its phases, each under a deadline, and the archive of their output."""

    def __init__(self, name, arguments):
        self.name, self.small, self.emulated = name, arguments.small or arguments.emulated, arguments.emulated
        self.keep_going, self.after, self.patience = arguments.keep_going, arguments.after, arguments.patience
        self.out = arguments.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        limit, phases = CALLS[name]
        self.phases, self.slack = phases, (limit - sum(phases.values())) * self.patience
        self.end = time.monotonic() + limit * self.patience
        self.deadline, self.phase, self.mib = self.end, "start", 0
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vljepa-gpu-"))
        self.results = self.folder / "results"
        self.results.mkdir()
        self.lock, self.running = threading.RLock(), set()
        with tarfile.open(arguments.packed) as packed:
            packed.extractall(self.folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.kernels = self.folder / "cache/vljepa/kernels"
        self.packed_kernels = set(os.listdir(self.kernels))
        folders = {"VLJEPA_GOLDEN": ROOT / "tests/golden", "VLJEPA_RECIPES": ROOT / "recipes"}
        self.env = {**os.environ, "VLJEPA_SAY_ERRORS": "1", **{name: str(folder) for name, folder in folders.items()}}
        self.torch = importlib.util.find_spec("torch") is not None

    # Records

    def note(self, **line):
        """Adds a line to the results, and prints it unless it repeats the output of a program."""
        line = {"call": self.name, "phase": self.phase, **line}
        with self.lock:
            with open(self.results / "results.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
            if "program" not in line:
                print(json.dumps(line)[:400], flush=True)

    def archive(self):
        """Writes the archive and the summary. The archive appears only when it is complete."""
        with self.lock:
            part = self.out / f".{self.name}.part"
            with tarfile.open(part, "w:gz") as tar:
                tar.add(self.results, arcname=self.name)
            part.rename(self.out / f"{self.name}.tar.gz")
            (self.out / f"{self.name}.md").write_text(gpu_report.text(gpu_report.lines(self.results)))

    # Processes

    def left(self):
        return min(self.deadline, self.end) - time.monotonic()

    def log(self, name):
        return self.results / f"{name.replace('::', '.')}.txt"

    def start(self, name, command, seconds=None, rows=False, **env):
        """Runs a program until its time limit; its output goes to files. With `rows`, its lines of
        JSON become results."""
        seconds = min(self.left(), seconds or float("inf"))
        if seconds < 1:
            self.note(what="process", name=name, rc=None, failed="no time left")
            return None
        log, since = self.log(name), time.monotonic()
        rows = log.with_suffix(".jsonl") if rows else None
        with open(log, "w") as errors, open(rows or os.devnull, "w") as output:
            streams = dict(stdin=subprocess.DEVNULL, stdout=output if rows else errors, stderr=errors)
            command, env = [str(word) for word in command], {**self.env, **env}
            process = subprocess.Popen(command, env=env, cwd=self.folder, start_new_session=True, **streams)
            self.running.add(process)
            try:
                rc = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                rc = 124
            finally:
                self.kill(process)
        for line in gpu_report.parse(rows.read_text()) if rows else ():
            self.note(program=name, **line)
        failed = {} if rc == 0 else {"failed": "time is up" if rc == 124 else failure_lines(log)}
        self.note(what="process", name=name, rc=rc, seconds=round(time.monotonic() - since, 1), **failed)
        return rc

    def kill(self, process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        self.running.discard(process)

    # Tests

    def tests(self, name, program, tests, seconds=None, blocking=False, prefix=()):
        """Runs tests of a module by their full names. Returns whether all ran and passed."""
        threads, env = ("1", {"CUDA_LAUNCH_BLOCKING": "1"}) if blocking else ("4", {})
        command = [*prefix, self.folder / program, "--exact", *tests, "--nocapture", "--test-threads", threads]
        rc = self.start(name, command, seconds, **env)
        if rc is None:
            return False
        passed = f"test result: ok. {len(tests)} passed" in self.log(name).read_text(errors="replace")
        self.note(what="module", program=program, module=name, tests=tests, green=rc == 0 and passed, rc=rc)
        return rc == 0 and passed

    def matching(self, beginnings):
        """Packed tests whose names start with one of `beginnings`, as (program, test)."""
        packed = [(p, t) for p, modules in self.manifest["modules"].items() for m in modules.values() for t in m]
        for beginning in beginnings:
            if not any(test.startswith(beginning) for _, test in packed):
                raise Stop(f"no packed test starts with {beginning}")
        return [(program, test) for program, test in packed if test.startswith(beginnings)]

    def in_modules(self, modules):
        """Runs a process for each module, six at a time. Failed modules run again, with blocking
        launches."""
        if not modules:
            self.note(what="modules", failed="no module to run")
            return False
        limit = max(self.left() * 2 / 3, 1)

        def run(item, suffix="", blocking=False):
            (program, module), tests = item
            return self.tests(module + suffix, program, tests, limit, blocking)

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            green = list(pool.map(run, modules.items()))
        red = [item for item, good in zip(modules.items(), green) if not good]
        planned = self.deadline
        self.deadline += self.slack
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda item: run(item, ".again", True), red))
        self.slack -= max(time.monotonic() - planned, 0)
        return not red

    def modules_of(self, program):
        return {(program, module): tests for module, tests in self.manifest["modules"].get(program, {}).items()}

    # Phases

    def machine(self):
        gpu = "emulated"
        if not self.emulated:
            env, note = libraries(self.manifest["nvrtc"])
            self.env |= {**env, "VLJEPA_TEST_GPU": "0", "VLJEPA_TEST_KERNELS": str(self.kernels)}
            self.env["XDG_CACHE_HOME"] = str(self.folder / "cache")
            if note["nvrtc"] != note["packed_nvrtc"]:
                note["failed"] = "NVRTC has another version than the packed one: kernels are compiled on this machine"
            self.note(what="libraries", **note)
            query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
            command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
            try:
                gpu = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(self.left(), 1)).stdout.strip()
                self.mib = int(gpu.splitlines()[0].split(",")[-1].split()[0])
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
                self.note(what="machine", failed=f"nvidia-smi: {error}")
                return False
        torch = importlib.metadata.version("torch") if self.torch else None
        told = dict(gpu=gpu, cores=os.cpu_count(), torch=torch, commit=self.manifest["commit"])
        self.note(what="machine", date=time.strftime("%Y-%m-%d %H:%M"), **told)
        return True

    def gate(self):
        """Stops the call if memory or products do not work, because everything else would fail for
        the same reason."""
        tests = self.matching(GATE)
        green = self.in_modules({(tests[0][0], "gate"): [name for _, name in tests]})
        if not green and not self.keep_going:
            raise Stop("the gate failed: memory, copies or products do not work")
        return green

    def modules(self):
        return self.in_modules(self.modules_of("kernels_tests"))

    def steps(self):
        return self.in_modules(self.modules_of("tests"))

    def step(self, kind, trace=True):
        step, gpu = STEPS[kind], 0 if self.mib > 100_000 else 1
        arguments = SMALL_STEP
        if not self.small:
            sizes = ["--ranks", RANKS, "--batch", step["batch"][gpu], "--frames", step["frames"], "--text", TEXT, "--query", 0]
            times = ["--steps", 12, "--warm-up", 2, "--seconds", step["seconds"], "--threads", os.cpu_count()]
            arguments = ["--recipe", ROOT / "recipes/pretrain.yaml", *sizes, *times]
        device = ["--emulated"] if self.emulated else []
        trace = ["--trace", self.results / f"trace-{kind}.json"] if trace else []
        more = ["--recompute", step["recompute"][gpu], "--phases", *trace]
        return self.start(f"step-{kind}", [self.folder / "step", *device, *arguments, *more], rows=True) == 0

    def images(self):
        return self.step("images")

    def video(self):
        return self.step("video")

    def long(self):
        return self.step("long")

    def operations(self):
        """Runs all sections. Sections that failed after a first failure run again in a new process
        with a new CUDA context."""
        flags = ["--emulated"] if self.emulated else ["--small"] if self.small else []
        command = [self.folder / "operations_gpu", *flags]
        if self.start("operations", command, rows=True) == 0:
            return True
        told = [line for line in gpu_report.lines(self.results) if line.get("what") == "section"]
        good = {line["section"] for line in told if "failed" not in line}
        first = next((line["section"] for line in told if "failed" in line), None)
        rest = [section for section in self.manifest["sections"] if section not in good and section != first]
        if rest:
            self.start("operations-again", [*command, *dict.fromkeys(["ceilings", *rest])], rows=True)
        return False

    def red(self):
        """Runs the modules that did not pass in the first call."""
        told = [line for line in gpu_report.archived(self.after) if line.get("what") == "module"]
        green, red = ({line["module"] for line in told if line["green"] is good} for good in (True, False))
        everything = {**self.modules_of("kernels_tests"), **self.modules_of("tests")}
        modules = {key: tests for key, tests in everything.items() if key[1] not in green - red}
        if not modules:
            self.note(what="modules", red="no module failed in the first call")
            return True
        return self.in_modules(modules)

    def sanitizers(self):
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if not tool:
            missing = "not found on PATH or in /usr/local/cuda/bin"
            self.note(what="process", name="compute-sanitizer", rc=None, failed=missing)
            return False
        good = True
        for check in ("racecheck", "memcheck"):
            for program, test in self.matching(SANITIZED):
                name = f"{check}-{test.rsplit('::', 1)[-1]}"
                prefix = (tool, "--tool", check, "--error-exitcode", "99")
                good &= self.tests(name, program, [test], self.left() / 2, blocking=True, prefix=prefix)
        return good

    def python(self, name, script, *arguments):
        if not self.torch:
            self.note(what="process", name=name, rc=None, skipped="PyTorch is not installed on this machine")
            return self.small
        return self.start(name, [sys.executable, script, *arguments], rows=True) == 0

    def images_beside_torch(self):
        step, good = STEPS["images"], self.step("images", trace=False)
        for mode in ("eager", "default"):
            sizes = ["--frames", step["frames"], "--batch", step["torch_batch"], "--text", TEXT]
            arguments = [*sizes, "--steps", 10, "--mode", mode]
            if self.small:
                arguments = ["--device", "cpu", "--tiny", "--mode", "eager"]
            good &= self.python(f"torch-step-{mode}", ROOT / "worker/benches/torch_step.py", *arguments)
        return good

    def torch_kernels(self):
        return self.python("torch-kernels", HERE / "torch_kernels.py", *(["--cpu"] if self.small else []))

    def compiled_here(self):
        """Reports kernels that were not packed, so that this machine had to compile them while the
        GPU waited."""
        new = sorted(set(os.listdir(self.kernels)) - self.packed_kernels)
        if new:
            self.note(what="compiled", failed=f"{len(new)} kernels were not packed", kernels=new)
        return not new

    def run(self):
        """Runs all phases in order. Returns whether all passed. The archive is written in any
        case."""
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

        def stop(number, _):
            for other in signals:
                signal.signal(other, signal.SIG_IGN)
            # From here on no process is started, and threads that wait for a process continue.
            self.end = 0
            for process in list(self.running):
                self.kill(process)
            raise Stop(f"signal {number}")

        for number in signals:
            signal.signal(number, stop)
        good = True
        try:
            for phase, seconds in self.phases.items():
                self.phase, self.deadline = phase, time.monotonic() + seconds * self.patience
                since = time.monotonic()
                try:
                    green = getattr(self, phase.replace("-", "_"))()
                except Exception as error:
                    # A bug of this script costs one phase, not the remaining time.
                    green = False
                    self.note(what="process", name=phase, rc=None, failed=repr(error))
                good &= green
                self.note(what="phase", green=green, seconds=round(time.monotonic() - since, 1))
                self.archive()
            good &= self.compiled_here()
        except Stop as reason:
            good = False
            self.note(what="stopped", failed=str(reason))
        finally:
            for process in list(self.running):
                self.kill(process)
            self.archive()
            shutil.rmtree(self.folder, ignore_errors=True)
        print((self.out / f"{self.name}.md").read_text()[-6000:])
        return good


class Stop(BaseException):
    """Ends the call early. The archive is still written."""


def failure_lines(log):
    """The panics in a log, each with the line that states its reason, or else the last lines of the
    log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    panics = [" ".join(lines[i : i + 2])[:300] for i, line in enumerate(lines) if "panicked at" in line]
    return panics[:4] or lines[-3:]
