"""Runs both calls of gpu.py without a GPU, from a packed archive and a copy of the files they need,
outside the checkout.

On the emulator every phase must pass. On stub libraries, laid out like PyTorch's wheels of CUDA 13,
every library must be found and every kernel must have been packed. Tests that compare numbers must
fail there, run again, and stop the call.
"""

import json, os, pathlib, shutil, subprocess, sys, tarfile, tempfile, time

import gpu_call, gpu_pack, gpu_report

# Tests that are quick on the emulator. Tests of copies and traces pass on the stubs too, which copy
# but do not compute.
GREEN = ("device::cuda::mark", "device::snapshot", "gpu_run")
NUMBERS = "activation::tests_cube"
QUICK = ("device::cuda::mark::", "device::snapshot::", "gpu_run::a_trace_of_a_gpu_s_step", f"{NUMBERS}::")
TESTS = (*QUICK, *gpu_call.GATE, *gpu_call.SANITIZED)
# Files of a checkout that the calls read.
FILES = ("kernels/benches/*.py", "worker/benches/torch_step.py", "recipes/*.yaml", "tests/golden/*/*")


def check(truth, message, output=""):
    if not truth:
        sys.exit(f"rehearsal: {message}\n{output[-4000:]}")


def run(command, **options):
    """Runs a program and returns its status and output."""
    command = [str(word) for word in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    return done.returncode, done.stdout


def modules(found):
    """Whether each module passed."""
    return {line["module"]: line["green"] for line in found if line.get("what") == "module"}


def green_phases(found):
    return [line["phase"] for line in found if line.get("what") == "phase" and line["green"]]


class Rehearsal:
    def __init__(self, folder):
        self.folder, self.tree, self.packed = folder, folder / "tree", folder / "packed.tar.xz"
        self.script = self.tree / "kernels/benches/gpu.py"
        for pattern in FILES:
            for file in filter(pathlib.Path.is_file, gpu_call.ROOT.glob(pattern)):
                to = self.tree / file.relative_to(gpu_call.ROOT)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)

    def call(self, name, out, *flags, **env):
        """Runs a call of the copied script in a bare environment. Returns its status, its results
        and its output."""
        command = [sys.executable, self.script, name, self.packed, self.folder / out, "--patience", "20", *flags]
        env = {"PATH": self.tools(), "HOME": str(self.folder), **env}
        rc, output = run(command, cwd=self.folder, env=env)
        archive = self.folder / out / f"{name}.tar.gz"
        check(archive.exists(), f"{name} left no archive", output)
        return rc, gpu_report.archived(archive), output

    def tools(self):
        """A PATH with a compute-sanitizer that only runs the program and an nvidia-smi that reports
        a card of 80 GB."""
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        card = "echo 'stub, 580.00, 1980, 2619, 700.00, 81559 MiB'"
        for name, script in {"compute-sanitizer": 'shift 4; exec "$@"', "nvidia-smi": card}.items():
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        return f"{tools}:{os.environ['PATH']}"

    def filters(self):
        """A filter must match tests, and programs must read golden files and recipes from the
        folders in the variables."""
        programs = self.folder / "programs"
        with tarfile.open(self.packed) as packed:
            packed.extractall(programs, [packed.getmember("tests")])
        try:
            gpu_pack.modules(programs, patterns_of={"tests": ("no_test_has_this_name",)})
        except SystemExit as error:
            check("no_test_has_this_name" in str(error), f"unexpected error: {error}")
        else:
            check(False, "a filter that matches no test was accepted")
        for variable, test in (("VLJEPA_GOLDEN", "gpu_step::"), ("VLJEPA_RECIPES", "gpu_run::a_trace")):
            rc, output = run([programs / "tests", test], env={**os.environ, variable: "/nowhere"})
            check(rc != 0 and "/nowhere" in output, f"{test} does not read {variable}", output)

    def stopped(self):
        """A call that is told to stop leaves an archive that states the reason."""
        command = [sys.executable, self.script, "call1", self.packed, self.folder / "stopped", "--emulated"]
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        archive = self.folder / "stopped/call1.tar.gz"
        while process.poll() is None and not archive.exists():
            time.sleep(0.05)
        process.terminate()
        check(process.wait(60) == 1, "a stopped call did not exit with status 1")
        reasons = [line["failed"] for line in gpu_report.archived(archive) if line.get("what") == "stopped"]
        check(reasons == ["signal 15"], f"the record states {reasons} instead of the signal")

    def emulator(self):
        """Every phase of both calls passes."""
        out = self.folder / "emulator"
        for name, flags in (("call1", []), ("call2", ["--after", out / "call1.tar.gz"])):
            rc, found, output = self.call(name, "emulator", "--emulated", *flags)
            check(rc == 0, f"{name} failed on the emulator", output)
            check(green_phases(found) == list(gpu_call.CALLS[name][1]), f"{name} left out phases", output)
            if name == "call1":
                ran = [test for line in found if line.get("what") == "module" for test in line["tests"]]
                missing = [wanted for wanted in TESTS if not any(test.startswith(wanted) for test in ran)]
                check(not missing, f"{missing} did not run", output)
        check(len(os.listdir(out)) <= 8, "the calls left more than 8 files")
        with tarfile.open(out / "call1.tar.gz") as archive:
            check("call1/trace-images.json" in archive.getnames(), "no trace of a step")
        rc, output = run([sys.executable, self.script, "report", out])
        report = (out / "README.md").read_text() if rc == 0 else output
        for part in ("## Phases", "modules are green", "| step-long |", "| attention_vit_forward |", "| adamw |"):
            check(part in report, f"no {part} in the report", report)

    def stub_libraries(self):
        """Builds the stubs in the layout of the CUDA 13 wheels. Returns the environment in which
        they are found."""
        wheel, driver = self.folder / "site/nvidia/cu13", self.folder / "driver"
        for folder in (wheel / "lib", wheel / "include", driver):
            folder.mkdir(parents=True)
        (wheel / "include/cuda_bf16.h").touch()
        with tarfile.open(self.packed) as packed:
            version = json.loads(packed.extractfile("manifest.json").read())["nvrtc"]
        major, minor = version.split(".")
        libraries = {
            wheel / "lib/libnvrtc.so.13": ["-DNVRTC", f"-DMAJOR={major}", f"-DMINOR={minor}"],
            wheel / f"lib/libnvrtc-builtins.so.{version}": [],
            wheel / "lib/libcublasLt.so.13": ["-DBLAS"],
            driver / "libcuda.so.1": ["-DDRIVER"],
        }
        for library, flags in libraries.items():
            subprocess.run(["cc", "-shared", "-fPIC", *flags, "-o", library, gpu_call.HERE / "stubs.c"], check=True)
        compiled = self.folder / "compiled"
        return {"PYTHONPATH": str(wheel.parent.parent), "LD_LIBRARY_PATH": str(driver), "STUB_COMPILED": str(compiled)}

    def stubs(self):
        """Libraries are found, every kernel was packed, and tests fail on a GPU that computes
        nothing."""
        env, compiled = self.stub_libraries(), self.folder / "compiled"
        rc, found, output = self.call("call1", "gate", "--small", **env)
        red = {"gate": False, "gate.again": False}
        check(rc == 1 and modules(found) == red, f"a failed gate did not stop the call: {modules(found)}", output)
        rc, found, output = self.call("call1", "stubs", "--small", "--keep-going", **env)
        green = green_phases(found)
        phases = ["machine", "warm-up", "steps", "images", "operations", "video"]
        check(green == phases, f"phases that passed on the stubs: {green}; expected: {phases}", output)
        for module, good in modules(found).items():
            check(good == module.startswith(GREEN), f"{module} {'passed' if good else 'failed'} on the stubs", output)
        check(f"{NUMBERS}.again" in modules(found), "a failed module did not run again", output)
        recomputed = [line["recompute"] for line in found if "recompute" in line]
        check(recomputed == ["none", "mlp"], f"a card of 80 GB recomputes {recomputed}", output)
        told = compiled.read_text() if compiled.exists() else ""
        check(not told, f"kernels were not packed:\n{told}", output)
        rc, found, output = self.call("call2", "stubs", "--small", "--after", self.folder / "stubs/call1.tar.gz", **env)
        again = {line["module"] for line in found if line.get("what") == "module" and line["phase"] == "red"}
        check(NUMBERS in again and not any(m.startswith(GREEN) for m in again), f"call 2 ran {again} again", output)


def rehearse(features):
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = Rehearsal(pathlib.Path(folder))
        gpu_pack.pack(rehearsal.packed, features, TESTS, recipes=[], preset=0)
        rehearsal.filters()
        rehearsal.stopped()
        rehearsal.emulator()
        rehearsal.stubs()
    print("rehearsal: both calls of gpu.py run on the emulator and on stub libraries")
