"""What a GPU machine has: NVRTC and cuBLASLt, and the name and memory of its first GPU.

As a program, it asks the driver for the GPU's name and memory, without nvidia-smi."""

import ctypes, glob, os, pathlib, re, sys

# Two ways to ask for the first GPU. Each prints its name first and its memory last. Without
# persistence mode, nvidia-smi first starts the driver, which takes 10 to 20 seconds.
QUERY = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
SMI = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
DRIVER = [sys.executable, os.path.abspath(__file__)]


def answer(text):
    """The line that describes the first GPU, and its memory in MiB, or `None` if there is no such
    line."""
    found = re.search(r"^(.+, (\d+) MiB)$", text, re.MULTILINE)
    return (found[1], int(found[2])) if found else None


def ask_driver():
    """Describes the first GPU as nvidia-smi does. No memory of the GPU is used: there is no
    context."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        sys.exit(f"libcuda.so.1 does not load: {error}")

    def call(function, *arguments):
        code = getattr(cuda, function)(*arguments)
        if code:
            sys.exit(f"{function} returned CUDA error {code}")

    version, device, memory, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(100)
    call("cuInit", 0)
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return f"{name.value.decode(errors='replace')}, CUDA {cuda_version}, {memory.value >> 20} MiB"


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


if __name__ == "__main__":
    print(ask_driver())
