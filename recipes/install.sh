#!/usr/bin/env bash
# Installs the packages that the CPU build needs and this machine lacks (Debian or Ubuntu), without
# asking. Sourced by recipes/quickstart.sh and tests/install.sh. It does not install Rust: `cargo`
# must be there already, from rustup.
set -euo pipefail
. recipes/packages.sh

if ! command -v cargo >/dev/null 2>&1 && [ -f "$HOME/.cargo/env" ]; then
  . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null 2>&1; then
  echo "cargo is not installed: install Rust from https://rustup.rs, then run this script again" >&2
  exit 1
fi

need gcc command -v cc
need g++ command -v g++
need pkg-config command -v pkg-config
need openmpi-bin command -v mpirun
need libopenmpi-dev command -v mpicc
# bindgen loads libclang.so, libclang.so.N or libclang-N.so. It cannot use libclang-cpp, which other
# packages install.
need libclang-dev bash -c 'ls {/usr/lib/llvm-*/lib,/usr/lib/*,/usr/lib64,"${LIBCLANG_PATH:-/nowhere}"}/libclang{,-[0-9]*}.so* 2>/dev/null | grep -q .'
for library in avcodec avformat avutil swscale; do
  need "lib$library-dev" pkg-config --exists "lib$library"
done
# The crate turbojpeg-sys builds libjpeg-turbo from its source.
need cmake command -v cmake
need make command -v make
need nasm command -v nasm
need procps command -v pgrep
install_needed

# Features and output folder of all builds of the CPU programs. They are the same everywhere, so
# that a machine compiles each crate only once.
features=vljepa-worker/mpi,vljepa-worker/video,vljepa-data/video,vljepa-tests/mpi,vljepa-tests/video${VLJEPA_FEATURES:+,$VLJEPA_FEATURES}
programs=${CARGO_TARGET_DIR:-target}/release
