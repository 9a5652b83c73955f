#!/usr/bin/env bash
# Installs what the CPU build needs and this machine lacks (Debian or Ubuntu): says what, asks nothing. Sourced by
# recipes/quickstart.sh and tests/install.sh; `cargo` by rustup is the one thing it expects to find.
set -euo pipefail
. recipes/packages.sh

if ! command -v cargo >/dev/null 2>&1 && [ -f "$HOME/.cargo/env" ]; then
  . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null 2>&1; then
  echo "cargo is not installed: get Rust from https://rustup.rs, then run this again" >&2
  exit 1
fi

need gcc command -v cc
need g++ command -v g++
need pkg-config command -v pkg-config
need openmpi-bin command -v mpirun
need libopenmpi-dev command -v mpicc
# bindgen loads libclang.so, libclang.so.N or libclang-N.so; it cannot use libclang-cpp, which other packages bring.
need libclang-dev bash -c 'ls {/usr/lib/llvm-*/lib,/usr/lib/*,/usr/lib64,"${LIBCLANG_PATH:-/nowhere}"}/libclang{,-[0-9]*}.so* 2>/dev/null | grep -q .'
for library in avcodec avformat avutil swscale; do
  need "lib$library-dev" pkg-config --exists "lib$library"
done
need procps command -v pgrep
install_needed

# What every build of the CPU programs uses, so that a machine compiles each crate once.
features=vljepa-worker/mpi,vljepa-worker/video,vljepa-data/video,vljepa-tests/mpi,vljepa-tests/video${VLJEPA_FEATURES:+,$VLJEPA_FEATURES}
programs=${CARGO_TARGET_DIR:-target}/release
