#!/bin/bash
# Compares the training step on the host with PyTorch's at the quickstart's dimensions: runs both in
# turns on this machine and prints the ratio of their samples per second (above 1: ours is faster).
#
#   PYTHON=/path/to/python worker/benches/compare_host.sh [RECORD.jsonl]
#
# PYTHON is a python with PyTorch (default: python3). All output lines of both programs are appended
# to RECORD.jsonl, with the number of threads, the round, and the machine's load when the program
# began. ROUNDS, STEPS, THREADS, FRAMES and MODES can be set. MODES are "eager" and the modes of
# torch.compile ("default"). HOST_STEP is the path of a built benchmark, to measure without cargo.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
rounds=${ROUNDS:-5} steps=${STEPS:-40} threads=${THREADS:-"1 2"} frames=${FRAMES:-"4 2"} modes=${MODES:-"eager default"}
record=${1:-$(mktemp --suffix=.jsonl)}

if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "compare_host.sh: '$python' has no PyTorch; set PYTHON to a python with PyTorch: PYTHON=/path/to/python $0" >&2
    exit 1
fi
ours() {
    if [ -n "${HOST_STEP:-}" ]; then "$HOST_STEP" "$@"; else
        (cd "$here/../.." && cargo bench -q -p vljepa-worker --bench step -- "$@")
    fi
}
theirs() {
    "$python" "$here/torch_step.py" --device cpu --batch 128 --negatives 0 --patch 8 --crop 32 --query 4 --text 8 --train-vision \
        --dims '{"vd":64,"vh":4,"vf":256,"vl":2,"qv":128,"pd":64,"ph":4,"pkv":2,"phd":16,"pf":128,"pl":2,"yd":64,"yh":4,"ykv":1,"yhd":16,"yf":128,"yl":1,"yv":128,"e":64}' \
        "$@" 2>/dev/null
}
measure() { # THREADS ROUND COMMAND…: appends one record
    local load line
    load=$(cut -d' ' -f1 /proc/loadavg)
    line=$("${@:3}")
    case $line in *'"threads"'*) ;; *) line="{\"threads\": $1, ${line#\{}" ;; esac
    echo "{\"round\": $2, \"load\": $load, ${line#\{}" | tee -a "$record"
}

ours --steps 1 >/dev/null # build the benchmark
first=$(($(wc -l 2>/dev/null <"$record" || echo 0) + 1))
for f in $frames; do
    for t in $threads; do
        for r in $(seq "$rounds"); do
            measure "$t" "$r" ours --threads "$t" --frames "$f" --steps "$steps"
            for mode in $modes; do
                measure "$t" "$r" theirs --threads "$t" --frames "$f" --steps "$steps" --mode "$mode"
            done
        done
    done
done

tail -n +"$first" "$record" | "$python" -c '
import json, statistics, sys
runs = {}
for line in sys.stdin:
    line = json.loads(line)
    key = line["frames"], line["threads"]
    runs.setdefault(key, {}).setdefault((line["peer"], line["mode"]), []).append(line["samples_per_s"])
print("| frames | threads | peer | samples/s of rounds | median | ratio of medians | ratios of rounds |\n|---|---|---|---|---|---|---|")
for (frames, threads), peers in sorted(runs.items(), reverse=True):
    ours = peers["vljepa", "host"]
    for (peer, mode), values in peers.items():
        ratios = [o / v for o, v in zip(ours, values)]
        print("|", " | ".join([str(frames), str(threads), f"{peer} {mode}", ", ".join(f"{v:.0f}" for v in values), f"{statistics.median(values):.0f}",
            f"{statistics.median(ours) / statistics.median(values):.2f}", f"{min(ratios):.2f} – {max(ratios):.2f}"]), "|")
'
echo "record: $record"
