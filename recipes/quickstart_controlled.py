"""Tabulates the runs of quickstart_controlled.sh as Markdown: python3 quickstart_controlled.py RUNS [RUNS …], one folder per seed.

Every value is the mean over the seeds, with the lowest and the highest in brackets if there are several.
"""

import json
import sys
from pathlib import Path

BATCH = 128
SIDES = {"vl_jepa": "VL-JEPA", "vlm": "VLM"}


def scores(run):
    """Scores by samples seen."""
    files = sorted((run / "evaluations").glob("step-*.json"))
    return {int(file.stem.split("-")[1]) * BATCH: json.loads(file.read_text()) for file in files}


def trained(plan):
    """Numbers of all parameters and of the trained ones in the text of a plan."""
    rows = [line.split() for line in plan.read_text().splitlines()]
    return [next(row[-1] for row in rows if row[:1] == [name]) for name in ("all", "trained")]


def cell(values, unit=100, digits=1):
    values = [value * unit for value in values]
    text = f"{sum(values) / len(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}–{max(values):.{digits}f})"
    return text


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main(folders):
    of = {side: [scores(folder / side) for folder in folders] for side in SIDES}
    first = of["vl_jepa"][0]
    names = [name for name in next(iter(first.values())) if not name.endswith("_top5")]
    for name in names:
        score = next(iter(first.values()))[name]
        is_share = score["chance"] < 1 and not name.endswith("_cider")
        unit = 100 if is_share else 1
        print(f"### {name}: " + (f"%, chance {100 * score['chance']:.1f}, " if is_share else "") + f"n = {score['n']}\n")
        rows = []
        for samples in first:
            values = [[seed[samples][name]["value"] for seed in of[side]] for side in SIDES]
            rows.append([f"{samples:,}"] + [cell(value, unit, 1 if is_share else 2) for value in values])
        table(["samples seen", *SIDES.values()], rows)

    rows = []
    for side, name in SIDES.items():
        everything, learned = trained(folders[0] / f"{side}-plan.txt")
        latencies = [json.loads((folder / f"{side}-latency.json").read_text()) for folder in folders]
        parts = [
            cell([latency[part]["mean_s"] for latency in latencies], 1000, 2)
            for part in ("query_embedding", "encoder", "decoder", "total")
        ]
        rows.append([name, everything, learned, *parts])
    frames, repeats = latencies[0]["frames"], latencies[0]["repeats"]
    print(f"### Size, and milliseconds of one answer about {frames} frames, mean of {repeats}\n")
    table(["", "parameters", "trained", "query", "encoder", "decoder", "total"], rows)


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
