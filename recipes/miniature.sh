#!/usr/bin/env bash
# The paper in miniature: trains everything that has a synthetic twin on the quickstart's data, collects Tables 1 to 5 and Figures 3 and 4,
# and writes runs/miniature/paper.html, which says which claims of the paper hold here.
#   recipes/miniature.sh [--excerpt] [--runs FOLDER] [SEED …]
# The default is seed 0. --excerpt trains a few steps of some rows, which shows that everything works but says nothing about the claims.
# After an interruption, give the same command again.
set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/install.sh

excerpt=no root=runs/miniature
while [ "${1:-}" = --excerpt ] || [ "${1:-}" = --runs ]; do
  if [ "$1" = --runs ]; then
    root=${2:?--runs needs a folder}
    shift
  else
    excerpt=yes
  fi
  shift
done
[ $# -gt 0 ] || set -- 0
cargo build --release --workspace --features "$features"
"$programs/vljepa-shards" synth datasets/quickstart
"$programs/vljepa-shards" synth-stream datasets/quickstart_stream

launch() { "$programs/vljepa-launch" "$@" >&2; }
# train RECIPE RUN STAGES OPTION…: trains a recipe of that many stages, or goes on with its run.
train() {
  local recipe=$1 run=$2 stages=$3 short=()
  shift 3
  if [ $excerpt = yes ]; then
    for ((stage = 0; stage < stages; stage++)); do short+=(--set "stages.$stage.steps=60"); done
  fi
  launch "recipes/$recipe.yaml" --run "$runs/$run" --set seed="$seed" "$@" "${short[@]}"
}
export_of() { [ -d "$runs/weights/$1" ] || launch export "$runs/$1" "$runs/weights/$1"; }
# weights PART RUN: option for the weights of a part that were exported from a run.
weights() { echo "--set=model.$1.weights=$runs/weights/$2/$1/model.safetensors"; }

rows=(b_multiplier_{1,0_1,0_01,0} c_{info_nce,cosine,l1,l2} d_{layers_0_2,layers_0_4,layers_0_16,causal} e_embedding_gemma)
at_samples=()
if [ $excerpt = yes ]; then
  rows=(c_l2)
  at_samples=(--set 'evaluation.at_samples=[3840]')
fi

for seed in "$@"; do
  runs=$root/$seed
  encoder=$(weights x_encoder encoders) texts=$(weights y_encoder texts)

  # In the place of published weights. The text encoder has not seen what the vision encoder has.
  train quickstart encoders 1 --set evaluation.tasks=[]
  train quickstart texts 1 --set evaluation.tasks=[] --set stages.0.steps=700 --set seed=$((seed + 1000))
  for run in encoders texts; do export_of $run; done

  train miniature/pretrain pretrain 2 "$encoder" "$texts"
  train miniature/finetune finetune 1 --set init.run="$runs/pretrain"
  train miniature/decoder decoder 2 --set init.run="$runs/finetune"

  # Table 5
  for row in base "${rows[@]}"; do train "miniature/$row" "$row" 1 "$encoder" "$texts"; done
  train miniature/a_pretraining a_pretraining 1 --set init.run="$runs/pretrain"
  if [ $excerpt = no ]; then
    train miniature/texts_large texts_large 1 --set seed=$((seed + 2000))
    export_of texts_large
    train miniature/e_qwen3_8b e_qwen3_8b 1 "$encoder" "$(weights y_encoder texts_large)"
    train miniature/e_pe_b e_pe_b 1 "$encoder" "$(weights y_encoder encoders)"
  fi

  # Figure 3, as recipes/quickstart_controlled.sh
  aligned=$(weights y_encoder encoders)
  train quickstart_controlled_decoder controlled_decoder 1 "$encoder" "$aligned"
  export_of controlled_decoder
  train quickstart_controlled_vl_jepa vl_jepa 1 "$encoder" "$aligned" "$(weights y_decoder controlled_decoder)" "${at_samples[@]}"
  train quickstart_controlled_vlm vlm 1 "$encoder" "${at_samples[@]}"

  for recipe in recipes/miniature/{table,figure}*.yaml; do
    table=$runs/$(basename "$recipe" .yaml)
    # The excerpt has no runs of some tables.
    launch "$recipe" --run "$table" --set table.runs="$runs" || [ $excerpt = yes ]
  done
done

tables=()
for seed in "$@"; do
  for table in "$root/$seed"/{table,figure}*/; do
    [ ! -f "$table/table.json" ] || tables+=("$table")
  done
done
"$programs/vljepa-launch" paper "${tables[@]}" --html "$root/paper.html"
