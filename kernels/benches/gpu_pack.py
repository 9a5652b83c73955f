"""Builds and packs everything that the calls of gpu.py need: programs, the cubins of their kernels,
and the list of tests."""

import json, lzma, os, pathlib, re, subprocess, sys, tarfile, tempfile

import gpu_call, gpu_machine

ROOT = gpu_call.ROOT
FEATURES = "vljepa-worker/emulator,vljepa-tests/cuda"
PACKAGES = ["-p", "vljepa-kernels", "-p", "vljepa-tests", "-p", "vljepa-worker"]
# Cargo's artifacts by package and target, and their names in the archive.
PROGRAMS = {
    ("vljepa-kernels", "vljepa_kernels"): "kernels_tests",
    ("vljepa-tests", "all"): "tests",
    ("vljepa-kernels", "operations_gpu"): "operations_gpu",
    ("vljepa-worker", "step"): "step",
    ("vljepa-worker", "vljepa-worker"): "worker",
}
# Modules of tests that use a GPU if there is one. Each pattern must match a test.
DEVICE = ("device::cuda::tests::", "device::cuda::large::", "device::cuda::mark::", "device::snapshot::")
MODULES = {"kernels_tests": ("::tests_cube::", "::tests_strips::", *DEVICE), "tests": ("gpu_run::", "gpu_step::")}


def run(command, **options):
    """Runs a program and returns its output; exits if the program fails."""
    command = [str(word) for word in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, errors="replace", **options)
    if done.returncode:
        sys.exit(f"gpu.py: {' '.join(command[:4])} … failed:\n{done.stdout[-3000:]}")
    return done.stdout


def build(features, folder):
    """Builds the programs and strips them into `folder`.

    Builds without MPI and FFmpeg, or with `features` takes the build of the workspace."""
    packages, target = (["--workspace"], None) if features else (PACKAGES, ROOT / "target/gpu-build")
    targets = "--lib --test all --bench operations_gpu --bench step".split()
    command = ["cargo", "test", "--no-run", "--release", *packages, "--features", features or FEATURES, *targets]
    env = {**os.environ, **({"CARGO_TARGET_DIR": str(target)} if target else {})}
    output = run([*command, "--message-format=json-render-diagnostics"], cwd=ROOT, env=env)
    for message in map(json.loads, output.splitlines()):
        for (package, name), to in PROGRAMS.items():
            if message.get("executable") and message["target"]["name"] == name and f"#{package}@" in message["package_id"]:
                run(["strip", "-o", folder / to, message["executable"]])
    missing = [to for to in PROGRAMS.values() if not (folder / to).exists()]
    if missing:
        sys.exit(f"gpu.py: not built: {', '.join(missing)}")


def modules(folder, only=None, patterns_of=None):
    """The tests of each module in each program. `only` limits them to names that start with one of
    its entries."""
    found = {}
    for program, patterns in (patterns_of or MODULES).items():
        listed = run([folder / program, "--list", "--format", "terse"])
        tests = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
        kept = found.setdefault(program, {})
        for pattern in patterns:
            matching = [test for test in tests if pattern in test]
            if not matching:
                sys.exit(f"gpu.py: no test of {program} matches {pattern}")
            for test in matching:
                module = test.rsplit("::", 1)[0]
                if only is None or test.startswith(only):
                    kept.setdefault(module, []).append(test)
    return found


def compile_kernels(folder, cache, found, recipes):
    """Compiles all kernels of the recipes, tests and benchmarks. The emulated GPU compiles each
    kernel that it runs."""
    folders = {"VLJEPA_TEST_KERNELS": cache, "VLJEPA_GOLDEN": ROOT / "tests/golden", "VLJEPA_RECIPES": ROOT / "recipes"}
    env = {**os.environ, **{variable: str(folder) for variable, folder in folders.items()}}
    env.pop("VLJEPA_TEST_GPU", None)
    if recipes:
        run([folder / "worker", "compile", *recipes, "--cache", cache], env=env)
    for program, modules in found.items():
        tests = [test for tests in modules.values() for test in tests]
        run([folder / program, "--exact", *tests], env=env)
    run([folder / "operations_gpu", "--emulated"], env=env)
    run([folder / "step", "--emulated", *gpu_call.SMALL_STEP], env=env)
    return sorted(os.listdir(cache))


def runs():
    """The recipes of the folder, without programmes, which have no kernels of their own."""
    found = sorted((ROOT / "recipes").glob("*.yaml"))
    return [recipe for recipe in found if not re.search(r"^programme:", recipe.read_text(), re.M)]


def pack(packed, features=None, only=None, recipes=None, preset=6):
    """Writes the archive. `only` limits the tests to names with these beginnings, `recipes` the
    recipes (default: all)."""
    library = os.environ.get("VLJEPA_NVRTC")
    if not library:
        sys.exit("gpu.py: VLJEPA_NVRTC is not set; `. kernels/nvrtc.sh` downloads NVRTC and sets it")
    nvrtc = gpu_machine.nvrtc_version(library)
    recipes = runs() if recipes is None else recipes
    packed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packed.parent) as folder:
        folder = pathlib.Path(folder)
        build(features, folder)
        found = modules(folder, only)
        cache = folder / "cache/vljepa/kernels"
        cache.mkdir(parents=True)
        kernels = compile_kernels(folder, cache, found, recipes)
        (folder / "worker").unlink()
        commit = run(["git", "describe", "--always", "--dirty"], cwd=ROOT).strip()
        sections = re.findall(r'^    \("(\w+)", ', (gpu_call.HERE / "operations_gpu.rs").read_text(), re.M)
        manifest = {"commit": commit, "nvrtc": nvrtc, "modules": found, "sections": sections}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        part = packed.with_name(f".{packed.name}.part")
        with lzma.open(part, "w", preset=preset) as file, tarfile.open(fileobj=file, mode="w|") as tar:
            for entry in sorted(folder.iterdir()):
                tar.add(entry, arcname=entry.name)
        part.rename(packed)
    tests = sum(len(tests) for modules in found.values() for tests in modules.values())
    size = packed.stat().st_size / 2**20
    print(f"{packed}: {size:.1f} MiB, commit {commit}, {tests} tests, {len(kernels)} kernels of NVRTC {nvrtc}")
