#!/usr/bin/env bash
# Runs every test: format, lints, docs, unit and integration tests, and the quickstart once with its gates.
set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/install.sh

cargo fmt --all --check
cargo build --release --workspace --features "$features"
cargo clippy --release --workspace --all-targets --features "$features" -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --features "$features" --quiet
cargo test --release --workspace --features "$features"
