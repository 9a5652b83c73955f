#!/usr/bin/env bash
# The controlled comparison of VL-JEPA with a VLM (paper §4.4, Figure 3) on the quickstart's data: trains the quickstart, whose encoders
# both sides read, the decoder and both sides, and prints their scores over the samples seen, their sizes and their latency as Markdown.
#   recipes/quickstart_controlled.sh [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/install.sh

seed=${1:-0}
runs=runs/controlled-$seed weights=weights/controlled-$seed
cargo build --release --workspace --features "$features"
[ -f datasets/quickstart/manifest.json ] || "$programs/vljepa-shards" synth datasets/quickstart

launch() { "$programs/vljepa-launch" "$@" >&2; }
# Trains a recipe, or goes on with its run.
train() {
  local recipe=$1 run=$2
  shift 2
  launch "recipes/$recipe.yaml" --run "$runs/$run" --set seed="$seed" "$@"
}
export_to() { [ -d "$weights/$2" ] || launch export "$runs/$1" "$weights/$2"; }

encoder=model.x_encoder.weights=$weights/quickstart/x_encoder/model.safetensors
texts=model.y_encoder.weights=$weights/quickstart/y_encoder/model.safetensors
train quickstart quickstart --set evaluation.tasks=[]
export_to quickstart quickstart
train quickstart_controlled_decoder decoder --set "$encoder" --set "$texts"
export_to decoder decoder
train quickstart_controlled_vl_jepa vl_jepa --set "$encoder" --set "$texts" \
  --set "model.y_decoder.weights=$weights/decoder/y_decoder/model.safetensors"
train quickstart_controlled_vlm vlm --set "$encoder"

clip=$runs/clip.mp4
tar -xOf datasets/quickstart/eval/heldout.tar heldout-000000.mp4 >"$clip"
for run in vl_jepa vlm; do
  "$programs/vljepa-launch" "$runs/$run/recipe.yaml" --dry-run >"$runs/$run-plan.txt"
  "$programs/vljepa-launch" latency "$runs/$run" "$clip" --json >"$runs/$run-latency.json"
done
python3 recipes/quickstart_controlled.py "$runs"
