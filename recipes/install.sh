#!/usr/bin/env bash
# Installs what the CPU build needs and this machine lacks (Debian or Ubuntu): says what, asks nothing. Sourced by
# recipes/quickstart.sh and tests/run.sh; `cargo` by rustup is the one thing it expects to find.
set -euo pipefail

if ! command -v cargo >/dev/null 2>&1 && [ -f "$HOME/.cargo/env" ]; then
  . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null 2>&1; then
  echo "cargo is not installed: get Rust from https://rustup.rs, then run this again" >&2
  exit 1
fi

# package=what shows that it is there already, however it was installed
needed=()
need() { # package, test command
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || needed+=("$package")
}
need gcc command -v cc
need g++ command -v g++
need pkg-config command -v pkg-config
need openmpi-bin command -v mpirun
need libopenmpi-dev command -v mpicc
# bindgen loads libclang.so, libclang.so.N or libclang-N.so; libclang-cpp, which other packages bring, does not serve it
need libclang-dev bash -c 'ls {/usr/lib/llvm-*/lib,/usr/lib/*,/usr/lib64,"${LIBCLANG_PATH:-/nowhere}"}/libclang{,-[0-9]*}.so* 2>/dev/null | grep -q .'
for library in avcodec avformat avutil swscale; do
  need "lib$library-dev" pkg-config --exists "lib$library"
done
need procps command -v pgrep
if ! command -v pkg-config >/dev/null 2>&1; then
  needed+=(libavcodec-dev libavformat-dev libavutil-dev libswscale-dev)
fi

if [ ${#needed[@]} -gt 0 ]; then
  mapfile -t needed < <(printf '%s\n' "${needed[@]}" | sort -u)
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing: ${needed[*]} (Debian's names); install them, then run this again" >&2
    exit 1
  fi
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  echo "installing ${needed[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
fi

# What every build of the CPU programs uses, so that a machine compiles each crate once.
features=vljepa-worker/mpi,vljepa-worker/video,vljepa-data/video,vljepa-tests/mpi,vljepa-tests/video${VLJEPA_FEATURES:+,$VLJEPA_FEATURES}
programs=${CARGO_TARGET_DIR:-target}/release
