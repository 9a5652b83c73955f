#!/usr/bin/env bash
# Puts NCCL, from NVIDIA's wheel on PyPI (320 MB), into a folder and sets VLJEPA_NCCL. No GPU or driver is needed to load it.
# Sourced by tests/install.sh; by hand: . worker/nccl.sh
. recipes/packages.sh

if [ -z "${VLJEPA_NCCL:-}" ]; then
  nccl_folder=${VLJEPA_NCCL_FOLDER:-${CARGO_TARGET_DIR:-target}/nccl-2.27.7}
  fetch_wheels "$nccl_folder" nvidia-nccl-cu12==2.27.7 || return
  VLJEPA_NCCL=$(cd "$nccl_folder" && pwd)/nvidia/nccl/lib/libnccl.so.2
  export VLJEPA_NCCL
fi
