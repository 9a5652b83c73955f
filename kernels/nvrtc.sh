#!/usr/bin/env bash
# Puts NVRTC and the CUDA headers of one version, from NVIDIA's wheels on PyPI, into a folder and sets VLJEPA_NVRTC. No GPU,
# driver or CUDA toolkit is needed. Sourced by tests/install.sh; by hand: . kernels/nvrtc.sh
. recipes/packages.sh

if [ -z "${VLJEPA_NVRTC:-}" ]; then
  nvrtc_folder=${VLJEPA_NVRTC_FOLDER:-${CARGO_TARGET_DIR:-target}/nvrtc-12.9.86}
  fetch_wheels "$nvrtc_folder" nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-cccl-cu12==12.9.27 \
    nvidia-cuda-nvcc-cu12==12.9.86 || return
  VLJEPA_NVRTC=$(cd "$nvrtc_folder" && pwd)/nvidia/cuda_nvrtc/lib/libnvrtc.so.12
  export VLJEPA_NVRTC
fi
