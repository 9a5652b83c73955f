#!/usr/bin/env bash
# Downloads NVRTC and the matching CUDA headers from NVIDIA's wheels on PyPI into a folder, and sets
# VLJEPA_NVRTC. Needs no GPU, driver or CUDA toolkit. tests/install.sh sources this file; by hand, run
# `. kernels/nvrtc.sh` in the root of the repository.
#
# VLJEPA_CUDA=13 selects CUDA 13 instead of 12. A machine with CUDA 13 then uses cubins of the same
# version as its own NVRTC.
. recipes/packages.sh

if [ -z "${VLJEPA_NVRTC:-}" ]; then
  case ${VLJEPA_CUDA:-12} in
    12)
      nvrtc_folder=${VLJEPA_NVRTC_FOLDER:-${CARGO_TARGET_DIR:-target}/nvrtc-12.9.86}
      fetch_wheels "$nvrtc_folder" nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-cccl-cu12==12.9.27 \
        nvidia-cuda-nvcc-cu12==12.9.86 || return
      VLJEPA_NVRTC=$(cd "$nvrtc_folder" && pwd)/nvidia/cuda_nvrtc/lib/libnvrtc.so.12
      ;;
    13)
      nvrtc_folder=${VLJEPA_NVRTC_FOLDER:-${CARGO_TARGET_DIR:-target}/nvrtc-13.0.88}
      fetch_wheels "$nvrtc_folder" nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 \
        nvidia-cuda-crt==13.0.88 || return
      VLJEPA_NVRTC=$(cd "$nvrtc_folder" && pwd)/nvidia/cu13/lib/libnvrtc.so.13
      ;;
    *)
      echo "VLJEPA_CUDA is $VLJEPA_CUDA, but must be a CUDA version: 12 or 13" >&2
      return 1
      ;;
  esac
  export VLJEPA_NVRTC
fi
