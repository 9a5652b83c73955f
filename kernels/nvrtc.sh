#!/usr/bin/env bash
# Puts NVRTC and the CUDA headers of one version, from NVIDIA's wheels on PyPI, into a folder and sets VLJEPA_NVRTC. No GPU,
# driver or CUDA toolkit is needed. Sourced by tests/run.sh; by hand: . kernels/nvrtc.sh
nvrtc_wheels="nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-cccl-cu12==12.9.27 nvidia-cuda-nvcc-cu12==12.9.86"
nvrtc_folder=${VLJEPA_NVRTC_FOLDER:-${CARGO_TARGET_DIR:-target}/nvrtc-12.9.86}

if [ -z "${VLJEPA_NVRTC:-}" ]; then
  if [ ! -f "$nvrtc_folder/complete" ]; then
    echo "fetching NVRTC 12.9 (PyPI) into $nvrtc_folder"
    rm -rf "$nvrtc_folder"
    # shellcheck disable=SC2086
    python3 -m pip install --quiet --no-deps --no-input --disable-pip-version-check --root-user-action=ignore \
      --target "$nvrtc_folder" $nvrtc_wheels
    touch "$nvrtc_folder/complete"
  fi
  VLJEPA_NVRTC=$(cd "$nvrtc_folder" && pwd)/nvidia/cuda_nvrtc/lib/libnvrtc.so.12
  export VLJEPA_NVRTC
fi
