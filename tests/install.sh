#!/usr/bin/env bash
# Installs what the tests need and this machine lacks (Debian or Ubuntu). Sourced by tests/run.sh.
# The GPU's kernels are compiled and executed without a GPU.
export VLJEPA_FEATURES=vljepa-worker/cuda,vljepa-tests/cuda
. recipes/install.sh
need slurm-wlm test -x /usr/sbin/slurmctld
need munge test -x /usr/sbin/munged
install_needed
. kernels/nvrtc.sh
. worker/nccl.sh
