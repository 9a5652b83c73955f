#!/usr/bin/env bash
# Installs the packages that the tests need and this machine lacks (Debian or Ubuntu). Sourced by
# tests/run.sh. The tests need no GPU: they compile the GPU kernels and execute them on an emulated
# GPU.
export VLJEPA_FEATURES=vljepa-worker/cuda,vljepa-tests/cuda
. recipes/install.sh
need slurm-wlm test -x /usr/sbin/slurmctld
need munge test -x /usr/sbin/munged
install_needed
. kernels/nvrtc.sh
. worker/nccl.sh
