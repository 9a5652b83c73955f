#!/usr/bin/env bash
# Puts NCCL, from NVIDIA's wheel on PyPI (320 MB), into a folder and sets VLJEPA_NCCL. No GPU or driver is needed to load it.
# Sourced by tests/run.sh; by hand: . worker/nccl.sh
nccl_version=2.27.7
nccl_folder=${VLJEPA_NCCL_FOLDER:-${CARGO_TARGET_DIR:-target}/nccl-$nccl_version}

if [ -z "${VLJEPA_NCCL:-}" ]; then
  if [ ! -f "$nccl_folder/complete" ]; then
    echo "fetching NCCL $nccl_version (PyPI) into $nccl_folder"
    rm -rf "$nccl_folder"
    python3 -m pip install --quiet --no-deps --no-input --disable-pip-version-check --root-user-action=ignore \
      --target "$nccl_folder" "nvidia-nccl-cu12==$nccl_version"
    touch "$nccl_folder/complete"
  fi
  VLJEPA_NCCL=$(cd "$nccl_folder" && pwd)/nvidia/nccl/lib/libnccl.so.2
  export VLJEPA_NCCL
fi
