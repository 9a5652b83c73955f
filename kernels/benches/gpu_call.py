"""One call of gpu.py: its phases, each under a deadline, and the archive of their output."""

import concurrent.futures, contextlib, importlib.metadata, importlib.util, json, os, pathlib, shutil, signal, sys
import tarfile, tempfile, time

import gpu_machine, gpu_report
from gpu_processes import Processes
from gpu_report import TIME_UP

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Time limit of each call in seconds, and the seconds that each phase has at least. They leave time
# to unpack the programs and to write the archive.
CALLS = {
    "call1": (
        270,
        {"machine": 25, "warm-up": 20, "gate": 45, "modules": 45, "steps": 20, "images": 30, "operations": 45, "video": 36},
    ),
    "call2": (
        300,
        {"machine": 25, "warm-up": 20, "red": 25, "sanitizers": 45, "long": 50, "torch-kernels": 50, "images-beside-torch": 80},
    ),
}
# Seconds of a call for its last archive.
ARCHIVE_SECONDS = 2
# Seconds that nvidia-smi and the driver may take to describe the GPU.
SMI_SECONDS, DRIVER_SECONDS = 15, 10
# Seconds without a printed row after which an operation counts as hanging. The first row needs
# most: opening the GPU and cuBLASLt, and two tensors of 2 GiB.
QUIET_SECONDS = 20
# Tests that must pass before the other phases run: memory and copies, then products.
GATE = ("device::cuda::tests::values_survive", "device::cuda::tests::linear_layers")
# Small tests that reach every kernel of attention and InfoNCE, for tools that slow a kernel down a
# hundredfold.
SANITIZED = ("device::cuda::tests::attention_and_pooling", "device::cuda::tests::info_nce_agrees")
# For each step: frames; rows of a rank and recomputation, on a GPU of 141 GB and of 80 GB; rows
# that fit PyTorch; steps before the timed ones; seconds after which no further step is timed; and
# the samples per second that one H200 should reach.
STEPS = {
    "images": dict(frames=2, batch=(128, 128), recompute=("none", "none"), torch_batch=128, warm_up=2, seconds=8, target=430),
    "video": dict(frames=8, batch=(128, 128), recompute=("none", "mlp"), torch_batch=48, warm_up=2, seconds=12, target=105),
    "long": dict(frames=32, batch=(80, 64), recompute=("mlp", "block"), torch_batch=12, warm_up=1, seconds=14, target=20),
}
# A GPU with more memory in MiB takes the first rows and recomputation of a step.
LARGE_MIB = 100_000
RANKS, TEXT = 192, 32
AT_ONCE = 6
# A step of the quickstart's model with one layer per part, which an emulated GPU can run.
SMALL_STEP = [
    *("--recipe", ROOT / "recipes/quickstart.yaml"),
    *"--set model.x_encoder.num_layers=1 --set model.predictor.layers=[0,1] --set device=cuda --set precision=bf16".split(),
    *"--batch 4 --frames 2 --ranks 3 --text 4 --query 0 --steps 1 --warm-up 0".split(),
]


class Call(Processes):
    """One call: its phases, each under a deadline, and the archive of their output."""

    def __init__(self, name, arguments):
        start = time.monotonic()
        self.small, self.emulated = arguments.small or arguments.emulated, arguments.emulated
        self.keep_going, self.after = arguments.keep_going, arguments.after
        self.out = arguments.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        limit, self.phases = CALLS[name]
        folder = pathlib.Path(tempfile.mkdtemp(prefix="vljepa-gpu-"))
        super().__init__(name, folder, start + (limit - ARCHIVE_SECONDS) * arguments.patience, arguments.patience)
        # Name and memory of the GPU, as soon as they are known.
        self.gpu, self.mib = "unknown", None
        with tarfile.open(arguments.packed) as packed:
            packed.extractall(self.folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.kernels = self.folder / "cache/vljepa/kernels"
        self.packed_kernels = set(os.listdir(self.kernels))
        folders = {"VLJEPA_GOLDEN": ROOT / "tests/golden", "VLJEPA_RECIPES": ROOT / "recipes"}
        self.env |= {"VLJEPA_SAY_ERRORS": "1", **{name: str(folder) for name, folder in folders.items()}}
        self.torch = importlib.util.find_spec("torch") is not None

    def archive(self):
        """Writes the archive and the summary. The archive appears only when it is complete. An
        error costs the summary, not the phases that follow."""
        with self.lock:
            try:
                part = self.out / f".{self.name}.part"
                with tarfile.open(part, "w:gz") as tar:
                    tar.add(self.results, arcname=self.name)
                part.rename(self.out / f"{self.name}.tar.gz")
                (self.out / f"{self.name}.md").write_text(gpu_report.text(gpu_report.lines(self.results)))
            except Exception as error:
                self.note(what="process", name="archive", rc=None, failed=repr(error))

    # Tests

    def tests(self, name, program, tests, seconds=None, blocking=False, prefix=()):
        """Runs tests of a module by their full names. Returns 0 if all ran and passed, and else a
        status as `start` does."""
        threads, env = ("1", {"CUDA_LAUNCH_BLOCKING": "1"}) if blocking else ("4", {})
        command = [*prefix, self.folder / program, "--exact", *tests, "--nocapture", "--test-threads", threads]
        rc = self.start(name, command, seconds, **env)
        if rc is None:
            return None
        passed = f"test result: ok. {len(tests)} passed" in self.log(name).read_text(errors="replace")
        rc = rc if passed or rc else 1
        self.note(what="module", program=program, module=name, tests=tests, green=rc == 0, rc=rc)
        return rc

    def matching(self, beginnings):
        """Packed tests whose names start with one of `beginnings`, as (program, test)."""
        packed = [(p, t) for p, modules in self.manifest["modules"].items() for m in modules.values() for t in m]
        for beginning in beginnings:
            if not any(test.startswith(beginning) for _, test in packed):
                raise LookupError(f"no packed test starts with {beginning}")
        return [(program, test) for program, test in packed if test.startswith(beginnings)]

    def outcomes(self, modules):
        """Runs a process for each module, six at a time. Modules that are not green run again, with
        blocking launches. Returns the status of each module's first and second run."""
        limit = self.left() * 2 / 3

        def run(item, suffix="", blocking=False):
            (program, module), tests = item
            return self.tests(module + suffix, program, tests, limit, blocking)

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            first = dict(zip(modules, pool.map(run, modules.items())))
        red = {module: tests for module, tests in modules.items() if first[module] != 0}
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            again = dict(zip(red, pool.map(lambda item: run(item, ".again", True), red.items())))
        return [(first[module], again.get(module)) for module in modules]

    def in_modules(self, modules):
        """Runs modules. Returns whether each is green: it passed, or its time was up and it passed
        when it ran again."""
        if not modules:
            self.note(what="modules", failed="no module to run")
            return False
        return all(first == 0 or (first, again) == (TIME_UP, 0) for first, again in self.outcomes(modules))

    def modules_of(self, program):
        return {(program, module): tests for module, tests in self.manifest["modules"].get(program, {}).items()}

    # Phases

    def machine(self):
        if self.emulated:
            self.gpu = "emulated"
        else:
            env, note = gpu_machine.libraries(self.manifest["nvrtc"])
            self.env |= {**env, "VLJEPA_TEST_GPU": "0", "VLJEPA_TEST_KERNELS": str(self.kernels)}
            self.env["XDG_CACHE_HOME"] = str(self.folder / "cache")
            if note["nvrtc"] is None:
                note["failed"] = "no NVRTC near PyTorch or in /usr/local/cuda: programs search for it elsewhere"
            elif note["nvrtc"] != note["packed_nvrtc"]:
                note["failed"] = "NVRTC has another version than the packed one: kernels are compiled on this machine"
            self.note(what="libraries", **note)
            if not self.ask_gpu("nvidia-smi", gpu_machine.SMI, SMI_SECONDS):
                self.ask_gpu("driver", gpu_machine.DRIVER, DRIVER_SECONDS)
        torch = importlib.metadata.version("torch") if self.torch else None
        told = dict(gpu=self.gpu, cores=os.cpu_count(), torch=torch, commit=self.manifest["commit"])
        self.note(what="machine", date=time.strftime("%Y-%m-%d %H:%M"), **told)
        return self.emulated or self.mib is not None

    def ask_gpu(self, name, command, seconds):
        """Asks for the name and memory of the GPU. Returns whether there was an answer."""
        rc = self.start(name, command, seconds * self.patience)
        answer = gpu_machine.answer(self.log(name).read_text(errors="replace")) if rc == 0 else None
        if answer:
            self.gpu, self.mib = answer
        elif rc == 0:
            self.note(what="process", name=name, rc=rc, failed="the answer states no memory")
        return answer is not None

    def warm_up(self):
        """Runs the first program that uses the GPU. It loads libraries of hundreds of megabytes and
        starts the driver, so that the gate need not wait for them."""
        return self.start("warm-up", [*self.operations_gpu(small=True), "ceilings"]) == 0

    def gate(self):
        """Stops the call if memory or products do not work, because everything else would fail for
        the same reason."""
        tests = self.matching(GATE)
        [statuses] = self.outcomes({(tests[0][0], "gate"): [name for _, name in tests]})
        if 0 not in statuses and not self.keep_going:
            raise Stop("the gate failed twice: memory, copies or products do not work")
        return statuses in ((0, None), (TIME_UP, 0))

    def modules(self):
        return self.in_modules(self.modules_of("kernels_tests"))

    def steps(self):
        return self.in_modules(self.modules_of("tests"))

    def step(self, kind, trace=True):
        """Times a step with the rows and the recomputation that suit the memory of the GPU."""
        name, step = f"step-{kind}", STEPS[kind]
        if not self.emulated and self.mib is None:
            if not self.ask_gpu(f"driver-{kind}", gpu_machine.DRIVER, DRIVER_SECONDS):
                unknown = "the memory of the GPU is unknown, and so are the rows and the recomputation that suit it"
                self.note(what="process", name=name, rc=None, failed=unknown)
                return False
            self.note(what="machine", gpu=self.gpu)
        large = not self.emulated and self.mib > LARGE_MIB
        column = 0 if large else 1
        arguments, rows = SMALL_STEP, {}
        if not self.small:
            sizes = ["--ranks", RANKS, "--batch", step["batch"][column], "--frames", step["frames"], "--text", TEXT, "--query", 0]
            times = ["--steps", 12, "--warm-up", step["warm_up"], "--seconds", step["seconds"], "--threads", os.cpu_count()]
            arguments = ["--recipe", ROOT / "recipes/pretrain.yaml", *sizes, *times]
            rows = {"target": step["target"]} if large and "H200" in self.gpu else {}
        device = ["--emulated"] if self.emulated else []
        trace = ["--trace", self.results / f"trace-{kind}.json"] if trace else []
        more = ["--recompute", step["recompute"][column], "--phases", *trace]
        return self.start(name, [self.folder / "step", *device, *arguments, *more], rows=rows) == 0

    def images(self):
        return self.step("images")

    def video(self):
        return self.step("video")

    def long(self):
        return self.step("long")

    def operations_gpu(self, small):
        flags = ["--emulated"] if self.emulated else ["--small"] if small else []
        return [self.folder / "operations_gpu", *flags]

    def operations(self):
        """Runs all sections. If one fails or hangs, those after it that are not green run again in
        a new process with a new CUDA context."""
        command = self.operations_gpu(self.small)
        if self.start("operations", command, rows={}, quiet=QUIET_SECONDS) == 0:
            return True
        told = [line for line in gpu_report.lines(self.results) if line.get("what") == "section"]
        green = {line["section"] for line in told if "failed" not in line}
        red = [section for section in self.manifest["sections"] if section not in green]
        if len(red) > 1:
            self.start("operations-again", [*command, *dict.fromkeys(["ceilings", *red[1:]])], rows={}, quiet=QUIET_SECONDS)
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
                good &= self.tests(name, program, [test], self.left() / 2, blocking=True, prefix=prefix) == 0
        return good

    def python(self, name, script, *arguments):
        if not self.torch:
            self.note(what="process", name=name, rc=None, skipped="PyTorch is not installed on this machine")
            return self.small
        return self.start(name, [sys.executable, script, *arguments], rows={}) == 0

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

    def begin(self, phase):
        """Starts a phase. Returns its seconds: its share of what is left of the call, so the time
        that one phase leaves lengthens all later ones."""
        phases = list(self.phases)
        later = sum(self.phases[name] for name in phases[phases.index(phase) :])
        now = time.monotonic()
        seconds = max(self.end - now, 0) * self.phases[phase] / later
        self.phase, self.deadline = phase, now + seconds
        return seconds

    def run_phase(self, phase):
        """Runs a phase. Returns whether it passed. Its errors and bugs cost no other phase."""
        since, limit = time.monotonic(), self.begin(phase)
        try:
            green = getattr(self, phase.replace("-", "_"))()
        except Exception as error:
            green = False
            self.note(what="process", name=phase, rc=None, failed=repr(error))
        self.note(what="phase", green=green, seconds=round(time.monotonic() - since, 1), limit=round(limit, 1))
        self.archive()
        return green

    def run(self):
        """Runs all phases in order. Returns whether all passed, except for the warm-up. The archive
        is written in any case."""
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
            for phase in self.phases:
                good &= self.run_phase(phase) or phase == "warm-up"
            good &= self.compiled_here()
        except Stop as reason:
            good = False
            self.note(what="stopped", failed=str(reason))
        finally:
            for process in list(self.running):
                self.kill(process)
            self.archive()
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            print((self.out / f"{self.name}.md").read_text()[-6000:], flush=True)
        return good


class Stop(BaseException):
    """Ends the call early. The archive is still written."""
