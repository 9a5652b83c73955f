#!/usr/bin/env bash
# Puts NVRTC and the CUDA headers of one version, from NVIDIA's wheels on PyPI, into a folder and sets VLJEPA_NVRTC. No GPU,
# driver or CUDA toolkit is needed. Sourced by tests/run.sh; by hand: . kernels/nvrtc.sh
# VLJEPA_CUDA=13 takes CUDA 13 instead of 12: cubins for a machine with CUDA 13 are compiled by its NVRTC (kernels/benches/README.md).
case ${VLJEPA_CUDA:-12} in
  12)
    nvrtc_version=12.9.86
    nvrtc_wheels="nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-cccl-cu12==12.9.27 nvidia-cuda-nvcc-cu12==12.9.86"
    nvrtc_library=nvidia/cuda_nvrtc/lib/libnvrtc.so.12
    ;;
  13)
    nvrtc_version=13.0.88
    nvrtc_wheels="nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-crt==13.0.88"
    nvrtc_library=nvidia/cu13/lib/libnvrtc.so.13
    ;;
  *)
    echo "VLJEPA_CUDA is $VLJEPA_CUDA; it names CUDA 12 or 13" >&2
    return 1
    ;;
esac
nvrtc_folder=${VLJEPA_NVRTC_FOLDER:-${CARGO_TARGET_DIR:-target}/nvrtc-$nvrtc_version}

if [ -z "${VLJEPA_NVRTC:-}" ]; then
  if [ ! -f "$nvrtc_folder/complete" ]; then
    echo "fetching NVRTC $nvrtc_version (PyPI) into $nvrtc_folder"
    rm -rf "$nvrtc_folder"
    # shellcheck disable=SC2086
    python3 -m pip install --quiet --no-deps --no-input --disable-pip-version-check --root-user-action=ignore \
      --target "$nvrtc_folder" $nvrtc_wheels
    touch "$nvrtc_folder/complete"
  fi
  VLJEPA_NVRTC=$(cd "$nvrtc_folder" && pwd)/$nvrtc_library
  export VLJEPA_NVRTC
fi
