#!/usr/bin/env bash
# Benchmark of several GPUs in one machine. It checks the results of all collectives, times them at
# a step's sizes, measures the communication that a step does not hide, and compares one training
# step on one GPU with the same step on all GPUs.
#   worker/benches/multi_gpu.sh [RANKS]            all GPUs by default, at least two
#   worker/benches/multi_gpu.sh --dry-run [RANKS]  the same on CPUs over MPI at small sizes; this
#                                                  shows that the script works, and measures nothing
# Prints one line of JSON per result to standard output. Exits with an error at the first wrong
# result.
set -euo pipefail
cd "$(dirname "$0")/../.."
dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ -n "$dry_run" ]; then
  ranks=${1:-2}
else
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || gpus=0
  ranks=${1:-$gpus}
  if [ "$ranks" -lt 2 ] || [ "$gpus" -lt "$ranks" ]; then
    echo "found $gpus GPUs, but at least two GPUs and one per rank are needed; --dry-run needs none" >&2
    exit 1
  fi
  export VLJEPA_FEATURES=${VLJEPA_FEATURES:-vljepa-worker/cuda}
fi
. recipes/install.sh
need python3 command -v python3
install_needed
if [ -z "$dry_run" ]; then . kernels/nvrtc.sh; . worker/nccl.sh; fi
work=$(mktemp -d)
pids=()
clean() { [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"; }
trap clean EXIT

echo "building" >&2
cargo build --release --workspace --features "$features" >&2
cargo bench --no-run --workspace --features "$features" --bench multi_gpu --bench step \
  --message-format=json-render-diagnostics >"$work/built.json"
bench() { # NAME: prints the path of a benchmark program
  python3 - "$work/built.json" "$1" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[2] and "bench" in message["target"]["kind"]:
        print(message["executable"])
PY
}
checks=$(bench multi_gpu)
step=$(bench step)

# Starts a program once per rank. Every process must succeed.
on_all_ranks() {
  if [ -n "$dry_run" ]; then
    mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl_vader_single_copy_mechanism none -np "$ranks" "$@"
    return
  fi
  local meet
  meet=$(mktemp -u "$work/meet.XXXX")
  pids=()
  for ((rank = 0; rank < ranks; rank++)); do
    VLJEPA_RANK=$rank VLJEPA_WORLD_SIZE=$ranks VLJEPA_LOCAL_RANK=$rank VLJEPA_LOCAL_WORLD_SIZE=$ranks \
      "$@" --meet "$meet" &
    pids+=($!)
  done
  for _ in "${pids[@]}"; do wait -n; done
  pids=()
}

# 1. Collectives: correctness, and speed for 24,576 embeddings of 1,536 and for 800 M gradients.
sizes=()
if [ -n "$dry_run" ]; then sizes=(--rows 256 --width 64 --million-gradients 1 --bucket-mib 1 --repeat 3); fi
on_all_ranks "$checks" "${sizes[@]}"

# 2. Time that a step waits for communication: the step of a rank with the other ranks, compared
# with the same step alone.
if [ -n "$dry_run" ]; then
  shape=(--batch 4 --frames 2 --steps 3 --warm-up 1)
else
  shape=(--recipe recipes/pretrain.yaml --batch 128 --frames 1 --query 16 --text 32 --recompute mlp --steps 20)
fi
"$step" --ranks "$ranks" "${shape[@]}" | tee "$work/without.json"
on_all_ranks "$step" --ranks "$ranks" "${shape[@]}" | tee "$work/with.json"
python3 - "$work" <<'PY'
import json, sys
without, joined = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("without", "with"))
assert joined["joined"] and not without["joined"]
exposed = joined["ms"] - without["ms"]
print(json.dumps({"what": "exposed communication", "ms": round(exposed, 3), "share": round(exposed / joined["ms"], 4)}))
PY

# 3. The same training step on one rank and on all ranks, with 8 clips of the quickstart.
programs=${CARGO_TARGET_DIR:-target}/release
"$programs/vljepa-shards" synth --scale 0.02 "$work/set" >&2
device=(--set device=cuda --set precision=bf16 --set deterministic=true)
if [ -n "$dry_run" ]; then device=(); fi
cat >"$work/one-step.yaml" <<YAML
extends: $PWD/recipes/quickstart.yaml
name: one-step
model:
  predictor: {tokenizer: $work/set/tokenizer.json}
  y_encoder: {tokenizer: $work/set/tokenizer.json}
data:
  threads: 1
  sources:
    clips: {shards: $work/set/train/clips-000000.tar}
    images: {shards: $work/set/train/images-000000.tar}
    questions: {shards: $work/set/train/questions-000000.tar}
stages:
  - {name: one, steps: 1, batch: 8, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 1}
YAML
for n in 1 "$ranks"; do
  "$programs/vljepa-launch" "$work/one-step.yaml" --run "$work/run-$n" "${device[@]}" --set "cluster.ranks_per_node=$n" >&2
done
# Sums are rounded in another order. tests/tests/all/world_size.rs derives the tolerance for f32;
# bf16 activations have a relative error of 2^-9 each.
python3 - "$work" "$ranks" "${dry_run:-0}" <<'PY'
import json, sys
work, ranks, host = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
one, all_ = (json.loads(open(f"{work}/run-{n}/metrics.jsonl").readline()) for n in ("1", ranks))
tolerance = 1.4e-5 if host else 2e-2
apart = {key: abs(one[key] - all_[key]) / abs(one[key]) for key in ("loss", "gradient_norm")}
print(json.dumps({"what": "one step on 1 and on several ranks", "ranks": int(ranks), "apart": apart, "allowed": tolerance}))
assert all(value < tolerance for value in apart.values()), apart
PY
