#!/usr/bin/env bash
# Downloads NCCL from NVIDIA's wheel on PyPI (320 MB) into a folder and sets VLJEPA_NCCL. Loading
# NCCL needs no GPU or driver. tests/install.sh sources this script. By hand: . worker/nccl.sh
. recipes/packages.sh

if [ -z "${VLJEPA_NCCL:-}" ]; then
  nccl_folder=${VLJEPA_NCCL_FOLDER:-${CARGO_TARGET_DIR:-target}/nccl-2.27.7}
  fetch_wheels "$nccl_folder" nvidia-nccl-cu12==2.27.7 || return
  VLJEPA_NCCL=$(cd "$nccl_folder" && pwd)/nvidia/nccl/lib/libnccl.so.2
  export VLJEPA_NCCL
fi
