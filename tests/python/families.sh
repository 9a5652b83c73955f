#!/usr/bin/env bash
# Compares exports of the families that the quickstart does not have, in miniature: trains one step
# of three recipes and runs compare.py on each. `families.sh RECORDS` writes a record per recipe to
# the folder RECORDS. Run it in the repository root after a build and the quickstart, with a python
# that has torch, transformers, pillow and pyyaml.
set -euo pipefail
records=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compare() { # NAME, keys of `model` as YAML
  printf 'extends: %s/recipes/quickstart.yaml\nname: %s\nmodel:\n%s\n' "$PWD" "$1" "$2" >"$work/$1.yaml"
  target/release/vljepa-launch "$work/$1.yaml" --run "$work/$1" --set stages.0.steps=1 --set evaluation.tasks=[] \
    --set cluster.ranks_per_node=1 --set stages.0.learning_rate.warmup_steps=0
  python tests/python/compare.py "$work/$1" datasets/quickstart/eval/colour.tar \
    "a red circle" "a blue bar and a red circle" green --record "$records/$1.json"
}

sizes='hidden_size: 64, num_layers: 2, num_heads: 4, intermediate_size: 128'
gated='num_kv_heads: 2, head_dim: 16, vocab_size: 128, max_target_tokens: 32'
tokenizer='tokenizer: datasets/quickstart/tokenizer.json'
compare clip-qwen3 "  x_encoder: {family: clip, trainable: false, patch_size: 8, $sizes, final_norm: true, pool: 2}
  y_encoder: {family: qwen3_embedding, $sizes, $gated, $tokenizer}"
compare siglip2-sonar "  projection_bias: false
  x_encoder: {family: siglip2, trainable: false, patch_size: 8, $sizes}
  y_encoder: {family: sonar, $sizes, vocab_size: 128, max_target_tokens: 32, $tokenizer}"
compare vjepa2-dense "  predictor: {attention: causal, text_projection: true, rope_scaling: {factor: 32, low_freq_factor: 1,
    high_freq_factor: 4, original_max_position_embeddings: 64}}
  y_encoder: {num_layers: 3, full_attention_every: 2, effective_window: 3, dense_heads: true, dense_hidden_size: 96,
    prompt: 'it is '}"
