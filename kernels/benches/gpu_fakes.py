"""Runs calls of gpu.py with fake programs and a fake nvidia-smi: on a slow machine, with programs
that hang or fail, and with a GPU that tells its memory late or never.

The fake programs print what the real ones print. An archive with them is packed in a second.
"""

import json, os, pathlib, shutil, subprocess, sys, tarfile, tempfile, time

import gpu_call, gpu_machine, gpu_report

# Source of every fake program. `FAKE` tells for each program what its runs do, in their order; runs
# that are not listed pass. Each run leaves its arguments in the folder `FAKE_RUNS`.
PROGRAM = '''#!{python}
import json, os, pathlib, shutil, sys, time

name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
runs = pathlib.Path(os.environ["FAKE_RUNS"])
number = len(list(runs.glob(name + ".*")))
(runs / f"{{name}}.{{number}}").write_text(json.dumps(arguments))
todo = json.loads(os.environ["FAKE"]).get(name, [])
act = todo[number] if number < len(todo) else "pass"


def value(flag):
    return arguments[arguments.index(flag) + 1]


def row(**line):
    print(json.dumps(line), flush=True)


if act == "hang":
    time.sleep(600)
if act == "fail":
    print("thread 'a' panicked at b:\\nit failed")
    sys.exit(101)
if act == "install the driver":
    shutil.copy(os.environ["FAKE_DRIVER"], os.environ["LD_LIBRARY_PATH"].split(":")[0])
if name in ("kernels_tests", "tests"):
    count = arguments.index("--nocapture") - arguments.index("--exact") - 1
    print(f"test result: ok. {{count}} passed; 0 failed")
if name == "step":
    rows = int(value("--batch"))
    row(peer="vljepa", mode="cuda", frames=int(value("--frames")), batch=rows, ms=100.0, samples_per_s=10.0 * rows,
        recompute=value("--recompute"), peak_gib=None, memory_mib=dict(process=None, used=None))
if name == "operations_gpu":
    for section in {sections}:
        if not set({sections}) & set(arguments) or section in arguments:
            if act == "hang in " + section:
                time.sleep(600)
            suffix = dict(warpgroups="_warpgroups").get(section, "")
            if section in ("attention", "warpgroups"):
                what, rate = "attention_vit_forward" + suffix, 100.5 + len(suffix)
                row(peer="vljepa", what=what, shape=[16, 2048, 16, 16, 64], ms=1.0, tflops=rate)
            row(what="section", section=section, seconds=0.1)
'''
SECTIONS = ["ceilings", "attention", "info_nce", "warpgroups", "norms"]
TESTS = {
    "kernels_tests": {"cuda": [f"{test}_in_a_fake" for test in (*gpu_call.GATE, *gpu_call.SANITIZED)]},
    "tests": {"gpu_step": ["gpu_step::a_fake"], "gpu_run": ["gpu_run::a_fake"]},
}
H200 = "echo 'NVIDIA H200, 580.00, 1980, 3201, 700.00 W, 143771 MiB'"
H100 = "echo 'NVIDIA H100 80GB HBM3, 580.00, 1980, 2619, 700.00 W, 81559 MiB'"
HANGS = "exec sleep 600"
# Factor for all time limits: programs that hang are stopped sooner.
PATIENCE = 0.2


def check(truth, message, output=""):
    if not truth:
        sys.exit(f"rehearsal with fake programs: {message}\n{output[-4000:]}")


class Outcome:
    """Results of a call, and the arguments of the programs that it ran."""

    def __init__(self, rc, output, out, name, runs):
        self.rc, self.output, self.out, self.name, self.runs = rc, output, out, name, runs
        check((out / f"{name}.tar.gz").exists(), "no archive", output)
        self.found = gpu_report.archived(out / f"{name}.tar.gz")
        self.summary = (out / f"{name}.md").read_text()
        told = [line for line in self.found if line.get("what") == "phase"]
        self.phases = {line["phase"]: line["green"] for line in told}
        self.limits = {line["phase"]: line["limit"] for line in told}

    def check(self, truth, message):
        check(truth, message, self.output + self.summary)

    def red(self, *expected):
        """Every phase must have run, and these alone must be red."""
        found = [phase for phase, green in self.phases.items() if not green]
        needed = gpu_call.CALLS[self.name][1]
        self.check(list(self.phases) == list(needed), f"only {list(self.phases)} ran")
        short = [phase for phase in needed if self.limits[phase] < needed[phase] * PATIENCE * 0.95]
        self.check(not short, f"{short} had too little time")
        self.check(found == list(expected), f"{found} are red; expected: {list(expected)}")

    def failures(self, name):
        return [str(line["failed"]) for line in self.found if line.get("name") == name and "failed" in line]

    def steps(self):
        """Rows and recomputation of each step that ran."""
        arguments = [json.loads(run.read_text()) for run in sorted(self.runs.glob("step.*"))]
        return [tuple(a[a.index(flag) + 1] for flag in ("--batch", "--recompute")) for a in arguments]


class Fakes:
    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.packed = self.pack("packed", TESTS)
        # A driver that answers, and a folder with one that does not load.
        self.driver, self.broken = folder / "driver", folder / "broken"
        self.driver.mkdir()
        command = ["cc", "-shared", "-fPIC", "-DDRIVER", "-o", self.driver / "libcuda.so.1", gpu_call.HERE / "stubs.c"]
        subprocess.run(command, check=True)
        self.broken.mkdir()
        (self.broken / "libcuda.so.1").write_text("no library\n")

    def pack(self, name, tests):
        """An archive of fake programs with these tests."""
        packed = self.folder / name
        (packed / "cache/vljepa/kernels").mkdir(parents=True)
        for program in ("kernels_tests", "tests", "operations_gpu", "step"):
            (packed / program).write_text(PROGRAM.format(python=sys.executable, sections=SECTIONS))
            (packed / program).chmod(0o755)
        manifest = {"commit": "fake", "nvrtc": "13.0", "modules": tests, "sections": SECTIONS}
        (packed / "manifest.json").write_text(json.dumps(manifest))
        with tarfile.open(self.folder / f"{name}.tar", "w") as tar:
            for entry in sorted(packed.iterdir()):
                tar.add(entry, arcname=entry.name)
        return self.folder / f"{name}.tar"

    def call(self, smi=H200, driver=None, name="call1", packed=None, flags=(), stop_in=None, **todo):
        """Runs a call in which the programs do what `todo` tells, and nvidia-smi runs a script. The
        call is told to stop when the program `stop_in` has started."""
        self.count += 1
        out, runs, tools = (self.folder / f"{part}{self.count}" for part in ("out", "runs", "tools"))
        for folder in (runs, tools):
            folder.mkdir()
        for tool, script in {"nvidia-smi": smi, "compute-sanitizer": 'shift 4; exec "$@"'}.items():
            (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
            (tools / tool).chmod(0o755)
        env = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(driver or self.driver),
            "FAKE": json.dumps(todo),
            "FAKE_RUNS": str(runs),
            "FAKE_DRIVER": str(self.driver / "libcuda.so.1"),
        }
        command = [sys.executable, gpu_call.HERE / "gpu.py", name, packed or self.packed, out, "--patience", PATIENCE, *flags]
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process = subprocess.Popen([str(word) for word in command], env={**os.environ, **env}, **streams)
        while stop_in and process.poll() is None:
            if (runs / f"{stop_in}.0").exists():
                process.terminate()
                break
            time.sleep(0.05)
        output, _ = process.communicate()
        return Outcome(process.returncode, output, out, name, runs)

    def after(self, first, **options):
        """Runs the second call after a first one."""
        return self.call(name="call2", flags=["--after", first.out / "call1.tar.gz"], **options)

    def h200(self):
        """On an H200 all is green, and steps have its rows, recomputation and targets."""
        done = self.call()
        done.red()
        done.check(done.rc == 0, "a call in which all passed failed")
        done.check(done.steps() == [("128", "none"), ("128", "none")], f"steps of an H200 ran as {done.steps()}")
        attention = ("| attention | pass | shape | mma | wgmma |", "| 100.5 | 111.5 |")
        for part in ("4 of 4 modules are green.", "| 430 |", "| 105 |", *attention):
            done.check(part in done.summary, f"the summary lacks {part}")
        usual = gpu_call.CALLS["call1"][1]["video"] * PATIENCE
        done.check(done.limits["video"] > usual, "unused time did not lengthen the last phase")
        done = self.after(done)
        done.check(done.steps() == [("80", "mlp"), ("128", "none")], f"steps of an H200 ran as {done.steps()}")

    def other_gpu(self):
        """On another GPU, steps have its rows and recomputation, and no target."""
        done = self.call(smi=H100)
        done.check(done.steps() == [("128", "none"), ("128", "mlp")], f"steps of an H100 ran as {done.steps()}")
        done.check("| 430 |" not in done.summary and "| 105 |" not in done.summary, "the target of an H200 beside another GPU")

    def slow_start(self):
        """The first programs sleep until they are stopped, but the call goes on."""
        done = self.call(operations_gpu=["hang"], kernels_tests=["hang"])
        done.red("warm-up")
        done.check(done.rc == 0, "a slow start failed the call")
        done.check(done.failures("warm-up") == ["time is up"], f"the warm-up failed for {done.failures('warm-up')}")
        late = "4 of 4 modules are green, 1 of them only when they ran again after their time was up."
        done.check(late in done.summary, f"the summary does not say: {late}")
        done.check("| gate | gate | 2 | time is up | green |" in done.summary, "the summary hides that the gate ran again")
        self.call(kernels_tests=["pass", "hang"]).red()

    def gate(self):
        """A gate that fails once is red; one that fails twice stops the call."""
        self.call(kernels_tests=["fail"]).red("gate")
        for twice in (["fail", "fail"], ["hang", "hang"], ["hang", "fail"]):
            done = self.call(kernels_tests=twice)
            reasons = [line["failed"] for line in done.found if line.get("what") == "stopped"]
            done.check(list(done.phases) == ["machine", "warm-up"], f"{list(done.phases)} ended with a gate that failed twice")
            done.check(reasons and "gate failed twice" in reasons[0], f"the call was stopped for {reasons}")

    def memory(self):
        """If nvidia-smi hangs, the driver tells the memory, before the steps at the latest. If it
        does not, no step runs, and all other phases do."""
        done = self.call(smi=HANGS)
        done.red()
        done.check(done.failures("nvidia-smi") == ["time is up"], f"nvidia-smi failed for {done.failures('nvidia-smi')}")
        done.check(done.steps() == [("128", "none"), ("128", "mlp")], f"steps on a stub of 80 GB ran as {done.steps()}")
        done.check("- call1: stub, CUDA 13.0, 81920 MiB, cores" in done.summary, "the summary does not describe the GPU")
        late = shutil.copytree(self.broken, self.folder / "late")
        done = self.call(smi="exit 9", driver=late, operations_gpu=["install the driver"])
        done.red("machine")
        done.check(done.steps() == [("128", "none"), ("128", "mlp")], f"steps with a late driver ran as {done.steps()}")
        done = self.call(smi="echo 'NVIDIA H200, [N/A]'", driver=self.broken)
        done.red("machine", "images", "video")
        done.check(not done.steps(), f"steps ran as {done.steps()} although the memory is unknown")
        failures = done.failures("step-images") + done.failures("step-video")
        done.check(len(failures) == 2 and "unknown" in failures[0], f"steps failed for {failures}")

    def failures(self):
        """A phase that fails or hangs stops none of those after it."""
        done = self.call(kernels_tests=["pass", "fail"], tests=["fail", "fail", "fail"], step=["hang", "fail"])
        done.red("modules", "steps", "images", "video")
        done = self.call(operations_gpu=["pass", "hang in info_nce"])
        done.red("operations")
        again = json.loads((done.runs / "operations_gpu.2").read_text())
        done.check(again == ["ceilings", "warpgroups", "norms"], f"the sections {again} ran again after one that hangs")
        done.check("| 100.5 | 111.5 |" in done.summary, "no row from before and after a section that hangs")
        tests = {**TESTS, "kernels_tests": {"cuda": TESTS["kernels_tests"]["cuda"][:2]}}
        done = self.after(done, packed=self.pack("without-sanitized", tests), step=["fail"])
        done.check(list(done.phases) == list(gpu_call.CALLS["call2"][1]), f"only {list(done.phases)} ran")
        done.check(not done.phases["sanitizers"] and not done.phases["long"], "phases that cannot run are green")

    def stopped(self):
        """A call that is told to stop ends the programs and writes its archive at once."""
        since = time.monotonic()
        done = self.call(step=["hang"], stop_in="step")
        seconds = time.monotonic() - since
        reasons = [line["failed"] for line in done.found if line.get("what") == "stopped"]
        done.check(done.rc == 1 and reasons == ["signal 15"], f"the call ended with {done.rc} for {reasons}")
        done.check(seconds < 60 and done.limits["steps"] > 0, f"the call took {seconds:.0f} s beside a program of 600 s")

    def limits(self):
        """The seconds of all phases and of the archive are less than the call's, and a phase that
        needs less leaves more to the others."""
        for name, (limit, phases) in gpu_call.CALLS.items():
            needed = sum(phases.values()) + gpu_call.ARCHIVE_SECONDS
            check(needed < limit, f"the phases of {name} need {needed} s of {limit} s")
            longest = gpu_call.SMI_SECONDS + gpu_call.DRIVER_SECONDS
            check(longest <= phases["machine"], f"nvidia-smi and the driver may take {longest} s")
        two = "error\nNVIDIA H200, 1 W, 143771 MiB\nNVIDIA H100, 81559 MiB\n"
        check(gpu_machine.answer(two)[1] == 143771, "the memory is not that of the first GPU")
        check(gpu_machine.answer("NVIDIA H200, [N/A]\n") is None, "memory where there is none")


def rehearse():
    with tempfile.TemporaryDirectory() as folder:
        fakes = Fakes(pathlib.Path(folder))
        fakes.limits()
        fakes.h200()
        fakes.other_gpu()
        fakes.slow_start()
        fakes.gate()
        fakes.memory()
        fakes.failures()
        fakes.stopped()
    print("rehearsal: calls with fake programs go on after what is slow, hangs or fails")
