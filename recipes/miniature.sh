#!/usr/bin/env bash
# The paper in miniature: trains what has a synthetic twin on the quickstart's data, collects Tables 1 to 5 and Figures 3 and 4, and writes
# paper.html in the folder of the runs, which says which claims of the paper hold here.
#   recipes/miniature.sh [--excerpt] [--runs FOLDER] [SEED …]
# The default is seed 0 in runs/miniature. --excerpt trains a few steps of some rows, in runs/miniature-excerpt: it shows that everything
# works, and says nothing about the claims. After an interruption, give the same command again.
set -euo pipefail

excerpt=no root='' seeds=()
while [ $# -gt 0 ]; do
  case $1 in
    --excerpt) excerpt=yes ;;
    --runs)
      root=$(realpath -m -- "${2:?--runs needs a folder}")
      shift
      ;;
    0 | [1-9] | [1-9][0-9] | [1-9][0-9][0-9]) seeds+=("$1") ;;
    *)
      echo "miniature: \`$1\` is neither --excerpt, --runs FOLDER nor a seed from 0 to 999" >&2
      exit 2
      ;;
  esac
  shift
done
[ ${#seeds[@]} -gt 0 ] || seeds=(0)
cd "$(dirname "$0")/.."
. recipes/install.sh

if [ $excerpt = yes ]; then
  root=${root:-runs/miniature-excerpt}
  rows=(base c_l2)
  tables=(table1 table2 table3 table4 table5a table5c figure3 figure4)
  at_samples=(--set 'evaluation.at_samples=[256,2560]')
else
  root=${root:-runs/miniature}
  rows=(base b_multiplier_{1,0_1,0_01,0} c_{info_nce,cosine,l1,l2} d_{layers_0_2,layers_0_4,layers_0_16,causal} e_embedding_gemma)
  tables=(table1 table2 table3 table4 table5{a,b,c,d,e} figure3 figure4)
  at_samples=()
fi

# Runs a program of this repository. It gets the signals that end this script.
run() {
  "$programs/$@" &
  running=$!
  wait $running
}
trap 'kill -TERM $running; wait $running || true; exit 143' TERM
trap 'wait $running || true; exit 130' INT
launch() { run vljepa-launch "$@" >&2; }
# train RECIPE RUN STAGES OPTION…: trains a recipe of that many stages, or goes on with its run.
train() {
  local recipe=$1 name=$2 stages=$3 short=()
  shift 3
  if [ $excerpt = yes ]; then
    for ((stage = 0; stage < stages; stage++)); do short+=(--set "stages.$stage.steps=60"); done
  fi
  launch "recipes/$recipe.yaml" --run "$runs/$name" --set seed="$seed" "$@" "${short[@]}"
}
export_of() {
  [ ! -d "$runs/weights/$1" ] || return 0
  rm -rf "$runs/weights/$1.part" # of an export that was killed
  launch export "$runs/$1" "$runs/weights/$1"
}
# weights PART RUN: option for the weights of a part that were exported from a run.
weights() { echo "--set=model.$1.weights=$runs/weights/$2/$1/model.safetensors"; }

cargo build --release --workspace --features "$features"
run vljepa-shards synth datasets/quickstart
run vljepa-shards synth-stream datasets/quickstart_stream

for seed in "${seeds[@]}"; do
  runs=$root/$seed
  # In the place of published weights: quickstarts from other initial weights, whose embeddings have nothing in common.
  train quickstart encoders 1 --set evaluation.tasks=[]
  train quickstart texts 1 --set evaluation.tasks=[] --set stages.0.steps=700 --set seed=$((seed + 1000))
  for name in encoders texts; do export_of $name; done
  encoder=$(weights x_encoder encoders) texts=$(weights y_encoder texts)

  train miniature/pretrain pretrain 2 "$encoder" "$texts"
  train miniature/finetune finetune 1 --set init.run="$runs/pretrain"
  train miniature/decoder decoder 2 --set init.run="$runs/finetune"

  # Table 5
  for row in "${rows[@]}"; do train "miniature/$row" "$row" 1 "$encoder" "$texts"; done
  train miniature/a_pretraining a_pretraining 1 --set init.run="$runs/pretrain"
  if [ $excerpt = no ]; then
    train miniature/texts_large texts_large 1 --set seed=$((seed + 1000))
    export_of texts_large
    train miniature/e_qwen3_8b e_qwen3_8b 1 "$encoder" "$(weights y_encoder texts_large)"
  fi

  # Figure 3
  train quickstart_controlled_decoder controlled_decoder 1 "$encoder" "$texts"
  export_of controlled_decoder
  train quickstart_controlled_vl_jepa vl_jepa 1 "$encoder" "$texts" "$(weights y_decoder controlled_decoder)" "${at_samples[@]}"
  train quickstart_controlled_vlm vlm 1 "$encoder" "${at_samples[@]}"

  for table in "${tables[@]}"; do
    launch "recipes/miniature/$table.yaml" --run "$runs/$table" --set table.runs="$runs"
  done
done

computed=()
for seed in "${seeds[@]}"; do
  for table in "${tables[@]}"; do computed+=("$root/$seed/$table"); done
done
run vljepa-launch paper "${computed[@]}" --html "$root/paper.html"
