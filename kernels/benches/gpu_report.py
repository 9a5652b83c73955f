"""The report on the results of gpu.py's calls. Parts without results are left out."""

import json, pathlib, re, tarfile

# Exit status of a program that was stopped because its time was up, as that of `timeout`.
TIME_UP = 124
# Frames of each stage's step.
STAGES = {"step-images": 2, "step-video": 8, "step-long": 32}
OPERATIONS = ("operations", "operations-again", "torch-kernels")
# Columns of the table of attention: our kernels by the end of a row's name, then PyTorch's by
# backend.
ATTENTION = {"": "mma", "_warpgroups": "wgmma", "_deterministic": "deterministic"}
BACKENDS = {"FLASH_ATTENTION": "PyTorch flash", "CUDNN_ATTENTION": "PyTorch cuDNN", "MATH": "PyTorch math"}
RATES = {
    "GB_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "fwd_tflops": "TFLOP/s forward",
    "bwd_tflops": "TFLOP/s backward",
    "gemm_tflops": "TFLOP/s",
    "error": "",
}


def parse(text):
    """Parses lines of JSON objects. Other lines are ignored, such as a last line that was cut
    off."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return [line for line in found if isinstance(line, dict)]


def lines(results):
    """Results in a folder of results."""
    file = pathlib.Path(results) / "results.jsonl"
    return parse(file.read_text()) if file.exists() else []


def archived(archive):
    """Results in the archive of a call."""
    with tarfile.open(archive) as tar:
        names = [name for name in tar.getnames() if name.endswith("/results.jsonl")]
        return [line for name in names for line in parse(tar.extractfile(name).read().decode())]


def table(heads, rows):
    """Lines of a Markdown table, or no lines if there are no rows."""
    line = lambda cells: "| " + " | ".join(str(cell) for cell in cells) + " |"
    return [line(heads), "|---" * len(heads) + "|", *map(line, rows), ""] if rows else []


def phases(found):
    told = [p for p in found if p.get("what") == "phase"]
    rows = [[p["call"], p["phase"], "green" if p["green"] else "red", p["seconds"], p["limit"]] for p in told]
    return table(["call", "phase", "", "seconds", "of at most"], rows)


def tests(found):
    """The number of modules that passed, and a table of those that ran twice."""
    runs = {}
    for line in found:
        if line.get("what") == "module":
            name = line["module"].removesuffix(".again")
            run = runs.setdefault((line["call"], line["phase"], name), [len(line["tests"]), "", ""])
            ended = "green" if line["green"] else "time is up" if line["rc"] == TIME_UP else f"red (rc {line['rc']})"
            run[2 if line["module"].endswith(".again") else 1] = ended
    late = [run for run in runs.values() if run[1:] == ["time is up", "green"]]
    green = [run for run in runs.values() if run[1] == "green"]
    count = f"{len(green) + len(late)} of {len(runs)} modules are green"
    count += f", {len(late)} of them only when they ran again after their time was up." if late else "."
    twice = [[*key, *run] for key, run in runs.items() if run[1] != "green"]
    return ([count, ""] if runs else []) + table(["call", "phase", "module", "tests", "run", "run again, blocking"], twice)


def steps(found):
    """The step of one rank, beside PyTorch's step with the same number of frames."""
    rows = []
    for stage, frames in STAGES.items():
        measured = [s for s in found if s.get("samples_per_s")]
        ours = [s for s in measured if s.get("program") == stage]
        theirs = [s for s in measured if s.get("peer") == "torch" and s.get("frames") == frames]
        for s in ours + theirs:
            name = f"{s.get('peer')} {s.get('mode')}" + (f", recompute {s.get('recompute')}" if s in ours else "")
            ratio = f"{ours[-1]['samples_per_s'] / s['samples_per_s']:.2f}" if ours and s in theirs else ""
            numbers = [s.get("batch"), s.get("ms"), s["samples_per_s"], s.get("target", ""), s.get("peak_gib") or ""]
            rows.append([stage, name, *numbers, ratio])
    return table(["stage", "peer", "rows", "ms", "samples/s", "target on an H200", "GiB", "ours / peer"], rows)


def attention(found):
    """TFLOP/s of attention: our kernels with each tensor core instruction, beside PyTorch's."""
    rates = {}
    for k in found:
        what, shape = k.get("what") or "", tuple(k.get("shape") or ())
        ours = re.fullmatch("attention_([^_]+)_(forward|backward)(.*)", what)
        if k.get("program") not in OPERATIONS:
            continue
        if ours:
            rates.setdefault((ours[1], ours[2], shape), {})[ATTENTION.get(ours[3], ours[3])] = k.get("tflops")
        elif what == "attention" and "model" in k:
            for key, direction in (("fwd_tflops", "forward"), ("bwd_tflops", "backward")):
                backend = BACKENDS.get(k.get("backend"), k.get("backend"))
                rates.setdefault((k["model"], direction, shape), {})[backend] = k.get(key, k.get("error", ""))
    known = [*ATTENTION.values(), *BACKENDS.values()]
    columns = [column for column in known if any(column in cells for cells in rates.values())]
    rows = [[*key[:2], list(key[2]), *(cells.get(column, "") for column in columns)] for key, cells in rates.items()]
    return table(["attention", "pass", "shape", *columns], rows)


def kernels(found):
    rows = []
    for k in found:
        if k.get("program") in OPERATIONS and k.get("what") not in (None, "device", "section"):
            name = k["what"] + (f" {k['model']}" if "model" in k else "")
            peer = f"{k.get('peer', 'torch')} {k.get('backend', k.get('mode', ''))}"
            rates = ", ".join(f"{k[key]} {unit}" for key, unit in RATES.items() if key in k)
            rows.append([name, peer, k.get("shape", k.get("parameters", "")), k.get("ms", ""), rates, k.get("share", "")])
    return table(["what", "peer", "shape", "ms", "rate", "share of the ceiling"], rows)


def budgets(found):
    text = []
    for b in found:
        if b.get("what") == "budget":
            busy = f"{b.get('ms')} ms, of which kernels, products and copies are {b.get('busy_ms')}"
            rows = [[r.get("name"), r.get("count"), r.get("ms")] for r in b.get("rows", [])[:30]]
            text += [f"{b.get('program')}: {busy}", "", *table(["what", "launches", "ms"], rows)]
    return text


def failures(found):
    """The failures with their location and reason, one line each."""
    text = []
    for line in found:
        why = line.get("failed", line.get("skipped"))
        if why is not None:
            why = " / ".join(why) if isinstance(why, list) else str(why)
            where = [line[key] for key in ("call", "phase", "name", "program", "section") if line.get(key)]
            text.append(f"- {', '.join(where)}: {why}"[:1500])
    return text


def text(found):
    """The report on all results as a Markdown document."""
    machines = [m for m in found if m.get("what") == "machine" and "gpu" in m]
    keys = {"gpu": "", "cores": "cores ", "torch": "PyTorch ", "commit": "commit ", "date": ""}
    heads = [f"- {m['call']}: " + ", ".join(f"{name}{m.get(key)}" for key, name in keys.items() if key in m) for m in machines]
    parts = {
        "Phases": phases(found),
        "Tests on the GPU": tests(found),
        "The step of one rank, without communication": steps(found),
        "TFLOP/s of attention": attention(found),
        "Kernels": kernels(found),
        "Where a step's time goes": budgets(found),
        "Failed": failures(found),
    }
    body = [line for title, part in parts.items() if part for line in (f"## {title}", "", *part, "")]
    return "\n".join(["# Measured on a GPU", "", *heads, "", *body]).rstrip() + "\n"


def write(out):
    """Writes the report on all archives in OUT to OUT/README.md."""
    found = [line for archive in sorted(out.glob("*.tar.gz")) for line in archived(archive)]
    if not found:
        raise SystemExit(f"gpu.py: no archive of a call in {out}")
    (out / "README.md").write_text(text(found))
    print(out / "README.md")
