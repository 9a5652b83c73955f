#!/usr/bin/env bash
# Runs every test: format, lints, docs, unit and integration tests, and the quickstart once with its gates.
set -euo pipefail
cd "$(dirname "$0")/.."
# The GPU's kernels are compiled and executed without a GPU.
export VLJEPA_FEATURES=vljepa-worker/cuda,vljepa-tests/cuda
. recipes/install.sh
. kernels/nvrtc.sh
. tests/slurm/install.sh
. worker/nccl.sh

# Other people's files, which are not copied into this project: shards, photos and clips to read (tests/tests/all/real_material.rs).
export VLJEPA_MATERIAL=${VLJEPA_MATERIAL:-$(cd .. && pwd)/shared/material}
[ -d "$VLJEPA_MATERIAL" ] || echo "tests of real material are not run: no folder $VLJEPA_MATERIAL (VLJEPA_MATERIAL names another)"

cargo fmt --all --check
cargo build --release --workspace --features "$features"
cargo clippy --release --workspace --all-targets --features "$features" -- -D warnings
# No feature is on by default, and everything builds without one.
cargo check --release --workspace
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --features "$features" --quiet
cargo test --release --workspace --features "$features"
kernels/benches/gpu.py rehearse --features "$features"
